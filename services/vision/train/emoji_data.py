"""The pictures and captions that emoji-64 learns from, made on the spot from three Debian packages' files.

Pictures: Noto Color Emoji (fonts-noto-color-emoji, SIL OFL 1.1), rendered at 64x64 on white. Captions: Unicode's names
(Python's own table) and CLDR's short names and keywords (unicode-cldr-core, Unicode licence), in several phrasings.
"""

from __future__ import annotations

import colorsys
import random
import unicodedata
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
    short, keywords = annotations("en")
    found = []
    for char in EMOJI + LATER:
        formal = unicodedata.name(char).lower()
        names = dict.fromkeys([formal, short.get(char, formal), _plain(short.get(char, formal)), _plain(formal)])
        found.append(Emoji(char, list(names)[::-1], keywords.get(char, []), render(char)))
    return found


def _plain(name: str) -> str:
    for filler in (" face", "large ", "heavy black ", "black ", "white medium "):
        name = name.replace(filler, "")
    return name


def captions(one: Emoji, count: int, rng: random.Random) -> list[str]:
    """``count`` ways to ask for one emoji: its names in every phrasing, its colour, its keywords."""
    name, colour = one.names[0], colour_of(one.picture)
    made = list(one.names)
    made += [f"a {name}", f"{name} emoji", f"a {colour} {name}" if colour else f"one {name}", f"a cute {name}"]
    while len(made) < count:
        form, words = rng.choice(FORMS), rng.choice(one.names)
        kind = rng.random()
        if colour and colour not in words and kind < 0.25:
            words = f"{colour} {words}"
        elif one.keywords and kind < 0.5:
            words = " ".join(rng.sample(one.keywords, min(len(one.keywords), rng.choice((2, 2, 3)))))
        made.append(form.format(words))
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
