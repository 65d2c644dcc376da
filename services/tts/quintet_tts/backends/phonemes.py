"""Text to phonemes by espeak-ng, in a process of its own: what Piper's voices and most of Kokoro's read."""

from __future__ import annotations

import re
import subprocess

from quintet_common.errors import ApiError
from quintet_common.worker.host import LoadError

from quintet_tts.backends.espeak import library_command

SECONDS = 20.0
"""For one sentence, which takes some hundredths of a second."""

_LANGUAGE_SWITCH = re.compile(r"\([a-z-]+\)")
_PAUSES = {"…": ",", "—": ",", "–": ",", "、": ",", "，": ",", "；": ";", "：": ":", "。": ".", "！": "!", "？": "?"}
_MARK = re.compile(r"[,;:!?…—–、，；：！？]")


class Phonemizer:
    """``language`` is espeak-ng's name of a voice: ``en-us``, ``fr-fr``, ``cmn``."""

    def __init__(self, language: str) -> None:
        command = library_command()
        if command is None:
            raise LoadError("This voice reads espeak-ng's phonemes: install the Python package espeakng-loader.")
        self._command = [*command, "-v", language, "--ipa"]
        try:
            self("a")
        except ApiError:
            raise LoadError(f"espeak-ng does not know the language {language!r}.") from None

    def __call__(self, sentence: str) -> str:
        """IPA of one sentence, with a mark where a clause ends. Raises ApiError 500."""
        try:
            found = subprocess.run(
                self._command, input=sentence.encode(), capture_output=True, timeout=SECONDS, check=True, cwd="/"
            )
        except subprocess.SubprocessError:
            raise ApiError(500, "espeak-ng failed on one sentence.") from None
        lines = [line.partition("\t") for line in found.stdout.decode(errors="replace").splitlines()]
        clauses = [_LANGUAGE_SWITCH.sub("", phonemes).strip() + _mark(text) for phonemes, _, text in lines]
        spoken = " ".join(clause for clause in clauses if clause)
        end = sentence.rstrip(" \"'”’»）)」』】》〉]")[-1:]
        return spoken + "." if _PAUSES.get(end, end) == "." else spoken


def _mark(clause: str) -> str:
    """The mark that ended a clause. A full stop is none: within a sentence it only ends an abbreviation."""
    marks = _MARK.findall(clause)
    return _PAUSES.get(marks[-1], marks[-1]) if marks else ""
