"""espeak-ng: robotic, tiny, and the languages that the embedded voice does not speak. One process per sentence.

The library comes from the wheel ``espeakng-loader`` or with the system's program; either runs in a process of its own,
which is also what makes it end at once when a client leaves.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from quintet_common.errors import ApiError

from quintet_tts.speech.reshape import Samples
from quintet_tts.speech.scripts import Script
from quintet_tts.voices import Engine, Voice
from quintet_tts.wav import HEADER_BYTES

WORDS_PER_MINUTE = 175
"""espeak-ng's own pace."""

SECONDS = 20.0
"""For one sentence, which takes some hundredths of a second."""

_CHUNK = 1 << 15
_NOTE = "Robotic. Not CosyVoice, whose names these are."
_LATIN = Script.LATIN
_TABLE: list[tuple[str, str, str, str, set[Script], str]] = [
    ("中文女", "Chinese woman", "zh-CN", "cmn+f3", {Script.HAN, _LATIN}, _NOTE),
    ("中文男", "Chinese man", "zh-CN", "cmn", {Script.HAN, _LATIN}, _NOTE),
    ("粤语女", "Cantonese woman", "yue-HK", "yue+f3", {Script.HAN, _LATIN}, _NOTE),
    ("日语男", "Japanese man", "ja-JP", "ja", {Script.KANA, _LATIN}, f"{_NOTE} Reads kana, no kanji."),
    ("韩语女", "Korean woman", "ko-KR", "ko+f3", {Script.HANGUL, _LATIN}, _NOTE),
    ("英文男", "English man", "en-US", "en-us", {_LATIN}, _NOTE),
    ("ru", "Russian man", "ru-RU", "ru", {Script.CYRILLIC, _LATIN}, "Robotic."),
    ("el", "Greek man", "el-GR", "el", {Script.GREEK, _LATIN}, "Robotic."),
    ("ar", "Arab man", "ar", "ar", {Script.ARABIC, _LATIN}, "Robotic."),
    ("hi", "Hindi man", "hi-IN", "hi", {Script.DEVANAGARI, _LATIN}, "Robotic."),
]


class EspeakBackend:
    sample_rate = 22050
    min_speed = 0.5
    max_speed = 2.0
    joins_up_to = 120

    def __init__(self) -> None:
        self._command, version = _find()
        # Up to 1.51 the voice cmn spells the pinyin of each character out in English.
        self._mandarin = "cmn" if version >= (1, 52) else "cmn-latn-pinyin"

    @property
    def available(self) -> bool:
        return bool(self._command)

    def voices(self) -> list[Voice]:
        return [
            Voice(
                id=id,
                name=name,
                language=language,
                gender="female" if "女" in id else "male",
                engine=Engine.ESPEAK,
                available=self.available,
                scripts=frozenset(scripts),
                speaker=speaker.replace("cmn", self._mandarin),
                note=note,
            )
            for id, name, language, speaker, scripts, note in _TABLE
        ]

    def synthesize(self, text: str, voice: Voice, speed: float, seed: list[int] | None) -> Iterator[Samples]:
        del seed  # what chance is in it is the same every time
        command = [*self._command, "-v", voice.speaker, "-s", str(round(WORDS_PER_MINUTE * speed))]
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd="/"
        )
        alarm = threading.Timer(SECONDS, process.kill)
        alarm.daemon = True
        alarm.start()
        try:
            yield from _read(process, text)
            if process.wait() != 0:
                raise ApiError(500, f"espeak-ng failed on one sentence with the voice {voice.id!r}.")
        finally:
            alarm.cancel()
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()


def _read(process: subprocess.Popen[bytes], text: str) -> Iterator[Samples]:
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        # Sentences are shorter than the pipe, so this cannot block. A double bracket would begin phoneme codes.
        process.stdin.write(text.replace("[[", "[ [").encode())
        process.stdin.close()
    except BrokenPipeError:
        return
    process.stdout.read(HEADER_BYTES)
    while data := process.stdout.read(_CHUNK):
        yield np.frombuffer(data[: len(data) & ~1], "<i2").astype(np.float32) / np.float32(32768)


def library_command() -> list[str] | None:
    """The command that runs the library of the wheel; None without the wheel."""
    loader = importlib.util.find_spec("espeakng_loader")
    if loader is None or loader.origin is None:
        return None
    folder = Path(loader.origin).parent
    library = next(folder.glob("*espeak-ng.so"), None) or next(folder.glob("*espeak-ng.d*"), None)
    if library is None:
        return None
    program = str(Path(__file__).with_name("espeak_program.py"))
    return [sys.executable, "-I", "-S", program, str(library), str(folder / "espeak-ng-data")]


def _find() -> tuple[list[str], tuple[int, int]]:
    """The command that speaks and its version; the wheel first, whose version is known. Empty when there is neither."""
    if command := library_command():
        return command, (1, 52)
    program_path = shutil.which("espeak-ng")
    if program_path is None:
        return [], (0, 0)
    said = subprocess.run([program_path, "--version"], capture_output=True, text=True, timeout=10, check=False).stdout
    found = re.search(r"(\d+)\.(\d+)", said)
    return [program_path, "--stdin", "--stdout"], (int(found[1]), int(found[2])) if found else (0, 0)
