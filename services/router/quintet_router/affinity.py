"""What two requests have in common: the session that they belong to, or the beginning of their conversation.

A replica keeps the keys and values of what it has read. A request that begins like an earlier one is answered sooner,
and at less cost, where that one was; so a beginning is cut into chunks, and it is remembered which replica got which.
"""

from __future__ import annotations

from collections.abc import Sequence
from zlib import crc32

import msgspec

CHUNK = 1024
"""Bytes of JSON in one chunk: about 250 tokens. The end of a message ends a chunk, too."""
MAX_CHUNKS = 256
"""Later chunks are not looked at."""
_LONG = 32 * CHUNK
"""Of a longer piece, a picture for instance, only the beginning, the end and the length are looked at."""

_NOTHING = msgspec.Raw(b"")


TALKS = frozenset(("/chat/completions", "/completions", "/responses", "/messages"))
"""Paths whose bodies have something of a conversation."""

_Said = list[msgspec.Raw] | dict[str, msgspec.Raw] | str | float | bool | None
"""Messages, or whatever a client writes there instead."""


class Talk(msgspec.Struct):
    """The members of all OpenAI and Anthropic bodies that a model reads, as the bytes that were sent; and its name, so
    that a body is gone through once."""

    model: str | None = None
    tools: msgspec.Raw = _NOTHING
    system: msgspec.Raw = _NOTHING
    instructions: msgspec.Raw = _NOTHING
    messages: _Said = None
    input: _Said = None
    prompt: msgspec.Raw = _NOTHING


class _Session(msgspec.Struct):
    prompt_cache_key: str | None = None
    user: str | None = None


_session = msgspec.json.Decoder(_Session).decode


class Conversation(msgspec.Struct, frozen=True):
    """``chunks``: one number for each beginning of it, the shortest first. Two conversations share so many numbers as
    their beginnings share chunks. The numbers are of this process, for Python's hashes have a secret key.

    ``opening``: how many chunks there are up to the first message that is not the application's own. ``key`` stands
    for these chunks, and is the same in every router.
    """

    chunks: list[int]
    opening: int
    key: int


def session_in(body: bytes) -> str | None:
    """Whose request it is, by the body's ``prompt_cache_key`` or ``user``."""
    try:
        found = _session(body)
    except msgspec.DecodeError:
        return None
    return found.prompt_cache_key or found.user


def conversation_in(talk: Talk | None) -> Conversation | None:
    """The conversation in a body; None when there is none."""
    if talk is None:
        return None
    chunks: list[int] = []
    before = key = opening = 0
    fixed: list[msgspec.Raw] = []
    if talk.tools or talk.system or talk.instructions:
        fixed = [each for each in (talk.tools, talk.system, talk.instructions) if each]
    said = talk.messages or talk.input
    pieces = fixed + said if isinstance(said, list) else fixed.copy()
    if isinstance(said, str):
        pieces.append(msgspec.Raw(said.encode("utf-8", "surrogatepass")))
    if talk.prompt:
        pieces.append(talk.prompt)
    for number, piece in enumerate(pieces):
        whole = memoryview(piece)  # a picture is not copied
        parts = [bytes(whole)] if len(whole) <= CHUNK else _parts(whole)
        for part in parts:
            before = hash((before, part))
            chunks.append(before)
        if not opening:
            for part in parts:
                key = crc32(part, key)
            if number >= len(fixed) and not _instructs(parts):
                opening = len(chunks)
        if len(chunks) >= MAX_CHUNKS:
            break
    return Conversation(chunks[:MAX_CHUNKS], opening or len(chunks), key) if chunks else None


def _instructs(parts: Sequence[bytes]) -> bool:
    """Whether a message is the application's own. The role stands at the beginning or the end of its members."""
    ends = parts[0]
    if len(parts) > 1 or len(ends) > 128:
        last = ends if len(parts) == 1 else parts[-2] + parts[-1]
        ends = ends[:64] + last[-64:]
    return b'"system"' in ends or b'"developer"' in ends


def _parts(piece: memoryview) -> list[bytes]:
    parts = [bytes(piece[start : start + CHUNK]) for start in range(0, min(len(piece), _LONG), CHUNK)]
    if len(piece) > _LONG:
        parts.append(b"%d:" % len(piece) + piece[-CHUNK:])
    return parts


class Holders:
    """Which replicas were sent which chunks, each replica as one bit.

    At most ``capacity`` chunks are remembered, in two generations: when the young one has half of them it becomes the
    old one, and what was in the old one and not used since is forgotten.
    """

    def __init__(self, capacity: int) -> None:
        self._half = max(1, capacity // 2)
        self._young: dict[int, int] = {}
        self._old: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._young) + len(self._old)

    def find(self, chain: Sequence[int]) -> list[tuple[int, int]]:
        """(number of chunks, bits of the replicas that hold so many): the longest first, a replica once only."""
        young, old = self._young, self._old
        steps: list[tuple[int, int]] = []
        among = -1
        for depth, chunk in enumerate(chain):
            held = (young.get(chunk, 0) | old.get(chunk, 0)) & among
            if held != among:
                if depth:
                    steps.append((depth, among & ~held))
                among = held
                if not held:
                    return steps[::-1]
        if chain:
            steps.append((len(chain), among))
        return steps[::-1]

    def learn(self, chain: Sequence[int], bit: int) -> None:
        """The replica of ``bit`` is sent all of ``chain``."""
        young = self._young
        for chunk in chain:
            young[chunk] = young.get(chunk, 0) | bit
        if len(young) >= self._half:
            self._old, self._young = young, {}
