"""The pictures and captions that emoji-64 learns from, made on the spot from three Debian packages' files.

Pictures: Noto Color Emoji (fonts-noto-color-emoji, SIL OFL 1.1), rendered at 64x64 on white. Captions: Unicode's names
(Python's own table) and CLDR's short names and keywords (unicode-cldr-core, Unicode licence), in several phrasings.
"""

from __future__ import annotations

import colorsys
import random
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

FONT = "/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf"
ANNOTATIONS = "/usr/share/unicode/cldr/common/annotations"
SIZE = 64

# Things that a picture of 64x64 can show and a word can name; no flags, signs, clocks, hands or people.
EMOJI = (
    "☁☂☃☄☘☠☪⚒⚓⚾⛄⛅⛪⛰⛱⛲⛵⛸⛺✈✡❄🌂🌃🌈🌋🌙🌞🌟🌠🌡🌧🌨🌩🌪🌭🌮🌯🌱🌲🌳🌴🌵🌶🌷🌸🌹🌺🌻🌼🌽🍀🍁🍂🍄🍅🍆🍇🍈🍉🍊🍋🍌🍍🍎🍏🍐🍑🍒🍓🍔🍕🍖🍞🍟🍠🍣🍤🍦🍧🍨🍩"
    "🍪🍫🍬🍭🍯🍰🍲🍳🍵🍷🍸🍹🍺🍿🎀🎁🎂🎃🎄🎆🎈🎋🎑🎒🎓🎗🎠🎥🎪🎷🎸🎺🎻🏀🏆🏇🏈🏉🏐🏔🏖🏘🏚🏜🏝🏠🏡🏫🏰🐀🐁🐂🐄🐅🐆🐇🐈🐉🐊🐋🐌🐍🐎🐏🐐🐑🐒🐓🐔🐕🐖🐘🐙🐚🐛🐜🐝🐞🐟🐠🐡🐢🐣🐦🐧"
    "🐨🐪🐫🐬🐭🐮🐯🐰🐱🐲🐳🐴🐵🐶🐷🐸🐹🐺🐻🐼🐽🐿👁👃👄👑👓👔👕👖👗👘👙👜👞👟👠👻👽👾💀💄💍💎💐💓💔💖💗💙💚💛💜💝💟💡💣💧💩💬💭💻💼💾💿📕📖📗📘📙📚📜📞📡📦📰📷📸📹📺📻🔋🔑🔒🔓🔔🔥🔧🔨🔬🔭🕯🕶🕷"
    "🕸🕹🖥🖨🗝🗞🗺😀😉😗😠😡😢😭😴😶😾😿🙀🙈🙉🙊🚀🚁🚂🚄🚆🚊🚋🚌🚏🚑🚒🚕🚗🚚🚜🚞🚠🚢🚤🚪🚲🚵🚽🛌🛎🛏🛟🛠🛡🛩🛫🛬🛰🛳🛴🛵🛸🛹🛻🤎🤒🤓🤔🤖🤡🥏🥐🥑🥒🥓🥔🥕🥖🥚🥛🥜🥝🥞🥟🥠🥢🥥🥦🥧🥨🥩🥪🥭🥮🥯🥼🥿🦀🦁🦂"
    "🦃🦄🦅🦆🦇🦈🦉🦊🦋🦌🦍🦎🦏🦐🦑🦒🦓🦔🦕🦖🦘🦙🦚🦛🦜🦝🦞🦢🦣🦥🦦🦨🦩🦫🦭🦴🦷🧀🧁🧄🧅🧇🧉🧊🧡🧢🧣🧤🧥🧦🧩🧭🧯🧲🧸🧹🧺🧽🪁🪂🪐🪑🪓🪕🪙🪜🪞🪟🪣🪤🪥🪨🪩🪫🪰🪱🪲🪶🪷🪸🫀🫐🫑🫒🫖🫙🫧"
)
# Added to a network that knew the others already, so they are drawn twice as often.
LATER = "❤☕⚽⭐⚡🌊🌍🌅🌕🗻🗼🗽🎨🎧🎤🎲🎹🥁👍😎😂🙂😊😍🥳🍜🍚🍙🥗🧋🐤🪴🛋🛁📱☎✂✏⚙🌰🏙🚓🏎🍱"

# What people say for one of several things that share a word, or instead of the formal name.
SPOKEN = {
    "🍎": "apple", "☕": "coffee|cup of coffee|cup of tea", "🚗": "car|red car", "🌞": "sun|sunshine|smiling sun",
    "🌙": "moon", "🌳": "tree|green tree", "🏠": "house|home", "🍔": "burger|cheeseburger", "🍕": "slice of pizza",
    "✈": "plane", "💡": "lamp", "💻": "laptop", "📖": "book", "🎂": "cake", "🌹": "red rose", "🌼": "flower|daisy",
    "🐰": "bunny", "🌊": "sea|ocean|wave|ocean wave", "🏔": "mountain|snowy mountain|snow on a mountain", "❤": "love",
    "😊": "happy face|smile|smiley", "😢": "sad face", "😠": "angry face", "😂": "laughing face", "😎": "cool face",
    "🎁": "gift|present", "🎈": "red balloon", "🍦": "ice cream", "🚲": "bike", "🚂": "train|steam train",
    "🌧": "rain", "❄": "snow", "⚡": "lightning", "🎃": "pumpkin", "🍺": "beer|glass of beer", "🍟": "fries",
    "🍷": "glass of wine|red wine", "🥛": "milk", "⭐": "golden star", "🚢": "boat|big ship", "📱": "phone",
    "⚽": "football|ball", "🏰": "medieval castle", "🐻": "brown bear", "🌸": "pink flower", "🍇": "purple grape",
}  # fmt: skip

FORMS = ("{}", "a {}", "an emoji of a {}", "a picture of a {}", "draw a {}", "{} emoji", "a drawing of {}", "the {}")


@dataclass
class Emoji:
    char: str
    names: list[str]
    """Unicode's name, CLDR's, and both without filler; the first is the one that accuracy is measured with."""
    keywords: list[str]
    picture: NDArray[np.uint8]
    """(64, 64, 3)"""


def render(char: str) -> NDArray[np.uint8]:
    """One emoji on white; the font's bitmaps are 136x128, its only size is 109."""
    font = ImageFont.truetype(FONT, 109)
    glyph = Image.new("RGBA", (136, 128), (255, 255, 255, 0))
    ImageDraw.Draw(glyph).text((0, 0), char, font=font, embedded_color=True)
    flat = Image.new("RGB", glyph.size, "white")
    flat.paste(glyph, mask=glyph.getchannel("A"))
    return np.asarray(flat.crop((4, 0, 132, 128)).resize((SIZE, SIZE), Image.Resampling.LANCZOS))


def annotations(language: str) -> tuple[dict[str, str], dict[str, list[str]]]:
    """CLDR's short names and keywords by emoji, in ``language`` (``en``, ``zh``)."""
    names, keywords = {}, {}
    for node in ElementTree.parse(Path(ANNOTATIONS) / f"{language}.xml").iter("annotation"):
        char, text = node.get("cp", "").replace("\ufe0f", ""), node.text or ""
        if node.get("type") == "tts":
            names[char] = text
        else:
            keywords[char] = [word.strip() for word in text.split("|")]
    return names, keywords


def emoji() -> list[Emoji]:
    """Every emoji with what only it is called: a cat's face is no "cat" while there is a whole cat."""
    short, keywords = annotations("en")
    chars = EMOJI + LATER
    formal = {char: unicodedata.name(char).lower() for char in chars}
    given = {char: [short.get(char, formal[char]), formal[char]] for char in chars}
    plain = {char: [_plain(name) for name in given[char]] for char in chars}
    taken = Counter(name for char in chars for name in {*given[char], *plain[char]})
    found = []
    for char in chars:
        names = [name for name in plain[char] if taken[name] == 1] + given[char]
        names = [given[char][0], *names] if taken[plain[char][0]] > 1 else names
        names += SPOKEN.get(char, "").split("|") if char in SPOKEN else []
        found.append(Emoji(char, list(dict.fromkeys(names)), keywords.get(char, []), render(char)))
    return found


def _plain(name: str) -> str:
    for filler in (" with face", " face", "large ", "heavy black ", "black ", "white medium "):
        name = name.replace(filler, "")
    return name


def captions(one: Emoji, others: Sequence[Emoji], count: int, rng: random.Random) -> list[str]:
    """``count`` ways to ask for one emoji: its names in every phrasing, its colour, keywords that fit no other."""
    name, colour = one.names[0], colour_of(one.picture)
    made = list(one.names)
    made += [f"a {name}", f"{name} emoji", f"a {colour} {name}" if colour else f"one {name}", f"a cute {name}"]
    rest = [{*other.keywords, *other.names} for other in others if other is not one]
    while len(made) < count:
        words, kind = rng.choice(one.names), rng.random()
        if colour and colour not in words and kind < 0.25:
            words = f"{colour} {words}"
        elif one.keywords and kind < 0.5:
            chosen = rng.sample(one.keywords, min(len(one.keywords), rng.choice((1, 2, 3))))
            if not any(words_of_other.issuperset(chosen) for words_of_other in rest):
                words = " ".join(chosen)
        made.append(rng.choice(FORMS).format(words))
    return made[:count]


_HUES = ((15, "red"), (42, "orange"), (66, "yellow"), (170, "green"), (255, "blue"), (300, "purple"), (345, "pink"))


def colour_of(picture: NDArray[np.uint8]) -> str | None:
    """The colour that most of what is drawn has, or None when no colour has half of it."""
    pixels = picture[::4, ::4].reshape(-1, 3) / 255
    names = [_colour(*pixel) for pixel in pixels if pixel.min() < 0.9]
    if not names:
        return None
    best = max(set(names), key=names.count)
    return best if names.count(best) >= len(names) / 2 else None


def _colour(red: float, green: float, blue: float) -> str:
    hue, saturation, value = colorsys.rgb_to_hsv(red, green, blue)
    if value < 0.25:
        return "black"
    if saturation < 0.2:
        return "white" if value > 0.85 else "gray"
    name = next((name for limit, name in _HUES if hue * 360 < limit), "red")
    return "brown" if name in ("red", "orange") and value < 0.65 else name
