"""``quintet run MODEL "text"``: ask one model, whatever its kind is."""

from __future__ import annotations

import argparse
import base64
import mimetypes
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args

import openai

from quintet.client import Card, ClientError, add_url, cards, connect, explain

SpeechFormat = Literal["mp3", "opus", "aac", "flac", "wav", "pcm"]
PICTURE_FORMATS: dict[str, Literal["png", "jpeg", "webp"]] = {
    "png": "png",
    "jpg": "jpeg",
    "jpeg": "jpeg",
    "webp": "webp",
}
"""What a picture's file may end in, and the format that this is."""

HEAD = 8
"""How many numbers of a vector are printed."""

ONLY = {
    "image": ("chat", "multimodal", "image"),
    "document": ("rerank",),
    "voice": ("tts",),
    "size": ("image",),
    "out": ("image", "tts"),
}
"""The kinds that have a use for an option; a chat model that sees nothing says so itself."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="id or alias, as `quintet models` lists them")
    parser.add_argument(
        "text",
        nargs="?",
        metavar="TEXT",
        help="what to say, draw, read out or embed; without it, or for -, standard input is read",
    )
    parser.add_argument(
        "--image",
        action="append",
        default=[],
        metavar="FILE",
        help="a picture to look at (multimodal) or to change (image), may be repeated",
    )
    parser.add_argument("--out", metavar="FILE", help="where a picture or speech goes (default: MODEL.png, MODEL.wav)")
    parser.add_argument("--size", help="size of a picture, like 512x512 (default: the model's own)")
    parser.add_argument("--voice", help="voice of speech (default: chosen by the text's writing)")
    parser.add_argument(
        "--document", action="append", default=[], metavar="TEXT", help="a text to rank (rerank), may be repeated"
    )
    add_url(parser)
    parser.set_defaults(refuse=parser.error)


def run(options: argparse.Namespace) -> int:
    """Print or save the answer. 1 when there is none."""
    if options.text is None and not options.image and sys.stdin.isatty():
        options.refuse("there is no text: it is given behind the model's name, or on standard input")
    client = connect(options.url)
    try:
        card = _find(cards(client), options.model)
        _check(card, options)
        WAYS[card.kind](client, _text(options), options)
    except openai.OpenAIError as error:
        print(explain(error, options.url), file=sys.stderr)
        return 1
    except BrokenPipeError:
        raise
    except OSError as error:
        print(f"{error.filename or 'files'}: {error.strerror or error}", file=sys.stderr)
        return 1
    except ClientError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _find(found: list[Card], name: str) -> Card:
    card = next((card for card in found if name == card.id or name in card.aliases), None)
    if card is None:
        raise ClientError(f"There is no model {name!r}; there are: {', '.join(card.id for card in found) or 'none'}.")
    if card.kind not in WAYS:
        raise ClientError(f"The endpoint does not say what kind of model {name!r} is.")
    return card


def _check(card: Card, options: argparse.Namespace) -> None:
    for name, kinds in ONLY.items():
        if getattr(options, name) and card.kind not in kinds:
            raise ClientError(f"--{name}: {card.id!r} is of kind {card.kind!r}, which takes none.")


def _text(options: argparse.Namespace) -> str:
    """A picture may go without; nobody who gave one is waited for at a terminal."""
    if options.text is None and options.image and sys.stdin.isatty():
        return ""
    return sys.stdin.read() if options.text in (None, "-") else str(options.text)


def _chat(client: openai.OpenAI, text: str, options: argparse.Namespace) -> None:
    content: Any = text
    if options.image:
        pictures = [{"type": "image_url", "image_url": {"url": _data_url(Path(file))}} for file in options.image]
        content = [*pictures, {"type": "text", "text": text}] if text else pictures
    messages: Any = [{"role": "user", "content": content}]
    for chunk in client.chat.completions.create(model=options.model, messages=messages, stream=True):
        if chunk.choices:
            print(chunk.choices[0].delta.content or "", end="", flush=True)
    print()


def _image(client: openai.OpenAI, text: str, options: argparse.Namespace) -> None:
    suffix = Path(options.out or "x.png").suffix.removeprefix(".")
    if suffix.lower() not in PICTURE_FORMATS:
        raise ClientError(f"--out: a picture is written as {', '.join(PICTURE_FORMATS)}, not {suffix!r}.")
    form = PICTURE_FORMATS[suffix.lower()]
    asked: Any = {"model": options.model, "prompt": text, "response_format": "b64_json"}
    asked["size"] = options.size or openai.omit  # without one, it is that of the model's entry, or its own
    asked["output_format"] = openai.omit if form == "png" else form  # the default, also of those who know no other
    if options.image:
        answer = client.images.edit(image=[Path(file) for file in options.image], **asked)
    else:
        answer = client.images.generate(**asked)
    if not answer.data or not answer.data[0].b64_json:
        raise ClientError("The answer has no picture.")
    _save(options, ".png", base64.b64decode(answer.data[0].b64_json))


def _speech(client: openai.OpenAI, text: str, options: argparse.Namespace) -> None:
    suffix = Path(options.out or "x.wav").suffix.removeprefix(".")
    if suffix not in get_args(SpeechFormat):
        raise ClientError(f"--out: speech is written as {', '.join(get_args(SpeechFormat))}, not {suffix!r}.")
    asked: Any = {"model": options.model, "input": text, "response_format": suffix}
    asked["voice"] = options.voice or openai.omit  # without one, the server chooses by the text's language
    _save(options, ".wav", client.audio.speech.create(**asked).content)


def _embed(client: openai.OpenAI, text: str, options: argparse.Namespace) -> None:
    vector = client.embeddings.create(model=options.model, input=text).data[0].embedding
    head = ", ".join(f"{value:.5f}" for value in vector[:HEAD])
    print(f"[{head}, …] {len(vector)} dimensions")


def _rerank(client: openai.OpenAI, text: str, options: argparse.Namespace) -> None:
    if not options.document:
        raise ClientError("Give the texts to rank with --document, once for each.")
    asked = {"model": options.model, "query": text, "documents": options.document}
    answer: Any = client.post("/rerank", cast_to=object, body=asked)
    for result in answer["results"]:
        print(f"{result['relevance_score']:.4f}  {options.document[result['index']]}")


def _data_url(file: Path) -> str:
    kind = mimetypes.guess_type(file.name)[0] or "application/octet-stream"
    return f"data:{kind};base64,{base64.b64encode(file.read_bytes()).decode()}"


def _save(options: argparse.Namespace, suffix: str, data: bytes) -> None:
    file = Path(options.out or options.model.replace("/", "-") + suffix)
    file.write_bytes(data)
    print(f"{file} ({len(data) / 1024:.0f} KiB)")


WAYS: dict[str, Callable[[openai.OpenAI, str, argparse.Namespace], None]] = {
    "chat": _chat,
    "multimodal": _chat,
    "image": _image,
    "tts": _speech,
    "embedding": _embed,
    "rerank": _rerank,
}
