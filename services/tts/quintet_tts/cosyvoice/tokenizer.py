"""Whisper's multilingual tokenizer: text to the ids that the language model reads."""

from __future__ import annotations

import base64
import importlib.util
from pathlib import Path

import tiktoken
from quintet_common.worker.host import LoadError

RANKS = "multilingual.tiktoken"

# GPT-2's: contractions, words, numbers, other signs, each with the space before it; then the spaces that are left.
_PATTERN = r"""'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""

_CODES = (
    "en zh de es ru ko fr ja pt tr pl ca nl ar sv it id hi fi vi he uk el ms cs ro da hu ta no th ur hr bg lt la mi ml "
    "cy sk te fa lv bn sr az sl kn et mk br eu is hy ne mn bs kk sq sw gl mr pa si km sn yo so af oc ka be tg sd gu am "
    "yi lo uz fo ht ps tk nn mt sa lb my bo tl mg as tt haw ln ha ba jw su yue"
)
"""Of the languages, in the order of their ids."""
_TASKS = ["translate", "transcribe", "startoflm", "startofprev", "nospeech", "notimestamps"]
_TIMES = [f"{step * 0.02:.2f}" for step in range(1501)]


class Tokenizer:
    def __init__(self, file: Path) -> None:
        """Raises LoadError when the file is not a list of ranks."""
        names = ["endoftext", "startoftranscript", *_CODES.split(), *_TASKS, *_TIMES]
        try:
            lines = [line.split() for line in file.read_bytes().splitlines() if line]
            ranks = {base64.b64decode(token): int(rank) for token, rank in lines}
            special = {f"<|{name}|>": len(ranks) + index for index, name in enumerate(names)}
            self._encoding = tiktoken.Encoding(
                "whisper", pat_str=_PATTERN, mergeable_ranks=ranks, special_tokens=special
            )
        except (OSError, ValueError) as error:
            raise LoadError(f"{file}: not a tiktoken vocabulary: {error}") from None

    @property
    def size(self) -> int:
        return self._encoding.n_vocab

    def encode(self, text: str) -> list[int]:
        """The ids; names such as ``<|zh|>`` are marks, wherever they stand."""
        return self._encoding.encode(text, allowed_special="all")


def find_ranks(folder: Path) -> Path:
    """The vocabulary: in the model's folder, else in the package openai-whisper. Raises LoadError."""
    places = [folder / RANKS]
    package = importlib.util.find_spec("whisper")
    if package is not None and package.origin is not None:
        places.append(Path(package.origin).parent / "assets" / RANKS)
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        raise LoadError(
            f"Whisper's vocabulary {RANKS} is neither in {folder} nor in an installed openai-whisper: install "
            "quintet-tts[cosyvoice], or put the file into the folder."
        )
    return found
