"""From tokens to text, piece by piece: no half characters, no stop strings, no special tokens."""

from __future__ import annotations

import re
from typing import Any

from quintet_chat.tools.scan import overlap

REPLACEMENT = "\ufffd"
MAX_PARTIAL = 8
"""Tokens that may be held back for a character to complete; a UTF-8 character has at most four bytes."""


class Detokenizer:
    """Incremental decoding that gives the same text as decoding everything at once.

    ``before`` are tokens that the text continues (the end of the prompt): some tokenizers write a leading space only
    inside a text.
    """

    def __init__(self, decode: Any, before: list[int]) -> None:
        self._decode = decode
        self._ids = list(before)
        self._prefix = 0
        self._read = len(before)

    def push(self, token: int) -> str:
        """The text that is certain now; empty while a character is incomplete."""
        self._ids.append(token)
        return self._advance(len(self._ids) - self._read > MAX_PARTIAL)

    def flush(self) -> str:
        """What is left at the end, without the bytes of a character that never completed."""
        return self._advance(True).rstrip(REPLACEMENT)

    def _advance(self, force: bool) -> str:
        known = self._decode(self._ids[self._prefix : self._read])
        text: str = self._decode(self._ids[self._prefix :])
        if text.endswith(REPLACEMENT) and not force:
            return ""
        # Two windows: the last piece is decoded again with the next, so that spaces between them come out right.
        self._ids = self._ids[self._read :]
        self._prefix, self._read = 0, len(self._ids)
        return text[len(known) :]


class StopFinder:
    """Passes text on up to the first stop string; holds back what may be the beginning of one."""

    def __init__(self, stops: list[str]) -> None:
        self._stops = [stop for stop in stops if stop]
        self._held = ""
        self.found = False

    def push(self, text: str) -> str:
        """The text that can be sent now. ``found`` is set once a stop string is complete."""
        if not self._stops:
            return text
        self._held += text
        cut = min((at for stop in self._stops if (at := self._held.find(stop)) >= 0), default=None)
        if cut is not None:
            self.found = True
            out, self._held = self._held[:cut], ""
            return out
        keep = max(overlap(self._held, stop) for stop in self._stops)
        split = len(self._held) - keep
        out, self._held = self._held[:split], self._held[split:]
        return out

    def flush(self) -> str:
        out, self._held = self._held, ""
        return out


class TokenText:
    """What single tokens look like: their text and their exact bytes, for logprobs."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._byte_of = _byte_level_alphabet() if _is_byte_level(tokenizer) else None
        self._special = {index: str(token) for index, token in tokenizer.added_tokens_decoder.items()}
        self._known: dict[int, tuple[str, list[int]]] = {}

    def __call__(self, token: int) -> tuple[str, list[int]]:
        """Text and UTF-8 bytes; bytes that are no whole character are written ``\\xNN`` in the text."""
        if token not in self._known:
            raw = self._bytes(token)
            self._known[token] = (raw.decode("utf-8", "backslashreplace"), list(raw))
        return self._known[token]

    def _bytes(self, token: int) -> bytes:
        if token in self._special:
            return self._special[token].encode()
        piece = self._tokenizer.convert_ids_to_tokens(token)
        if isinstance(piece, bytes):
            return piece
        if piece is None:  # a padded row of the vocabulary
            return b""
        if self._byte_of is not None and all(char in self._byte_of for char in piece):
            return bytes(self._byte_of[char] for char in piece)
        if match := re.fullmatch(r"<0x([0-9A-Fa-f]{2})>", piece):
            return bytes([int(match[1], 16)])
        return str(piece).replace("\u2581", " ").encode()


def _is_byte_level(tokenizer: Any) -> bool:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return backend is not None and "ByteLevel" in str(backend.decoder)


def _byte_level_alphabet() -> dict[str, int]:
    """Which byte each character of a byte-level vocabulary stands for.

    Printable Latin-1 bytes stand for themselves, the others for the characters from U+0100 on, in order (GPT-2's
    ``bytes_to_unicode``).
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    alphabet = {chr(byte): byte for byte in printable}
    return alphabet | {chr(0x100 + index): byte for index, byte in enumerate(others)}
