"""The engines that speak, each for real."""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from quintet_common.errors import ApiError
from quintet_tts.backends import espeak
from quintet_tts.backends.espeak import EspeakBackend
from quintet_tts.voices import Engine, Voice
from tts.sound import loudness


def say(backend: Any, text: str, voice: Voice, speed: float = 1.0, seed: list[int] | None = None) -> Any:
    return np.concatenate(list(backend.synthesize(text, voice, speed, seed)))


def by_id(backend: Any, voice: str) -> Voice:
    return next(each for each in backend.voices() if each.id == voice)


def test_hibari_speaks_and_its_seed_decides(model: Any) -> None:
    hibari = model[1][Engine.HIBARI]
    heart = by_id(hibari, "heart")
    one, same, other = (say(hibari, "Hello there.", heart, seed=[seed]) for seed in (1, 1, 2))
    assert 0.8 < one.size / hibari.sample_rate < 3
    assert loudness(one) > 0.01
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)
    assert say(hibari, "Hello there.", heart, speed=2.0).size < 0.75 * one.size


@pytest.mark.parametrize("text", ["\u2460h", "x\u00b2", "9" * 37, "$" + "9" * 40, "1,000," * 20 + "000th", "7" * 400])
def test_hibari_reads_odd_digits_and_numbers_without_a_name(model: Any, text: str) -> None:
    hibari = model[1][Engine.HIBARI]
    assert loudness(say(hibari, text, by_id(hibari, "heart"))) > 0.01


def test_hibari_has_words_for_powers(model: Any) -> None:
    hibari = model[1][Engine.HIBARI]
    heart = by_id(hibari, "heart")
    assert np.array_equal(say(hibari, "5\u00b2", heart, seed=[1]), say(hibari, "five squared", heart, seed=[1]))


def test_hibari_reads_long_numbers_digit_by_digit(model: Any) -> None:
    hibari = model[1][Engine.HIBARI]
    heart = by_id(hibari, "heart")
    assert np.array_equal(say(hibari, "8" * 40, heart, seed=[1]), say(hibari, "8 " * 40, heart, seed=[1]))


def test_hibari_gives_the_same_sound_on_many_threads(model: Any) -> None:
    hibari = model[1][Engine.HIBARI]
    heart = by_id(hibari, "heart")
    alone = say(hibari, "Many at once.", heart, seed=[7, 0])
    results: list[Any] = []
    threads = [
        threading.Thread(target=lambda: results.append(say(hibari, "Many at once.", heart, seed=[7, 0])))
        for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 6
    assert all(np.array_equal(alone, result) for result in results)


TEXTS = {
    "中文女": "你好，世界。",
    "中文男": "你好，世界。",
    "粤语女": "你好，世界。",
    "日语男": "こんにちは。",
    "韩语女": "안녕하세요.",
    "英文男": "Hello there.",
}


@pytest.mark.parametrize("voice", TEXTS)
def test_espeak_speaks_its_languages(voice: str) -> None:
    backend = EspeakBackend()
    sound = say(backend, TEXTS[voice], by_id(backend, voice))
    assert 0.4 < sound.size / backend.sample_rate < 4
    assert loudness(sound) > 0.01


def test_espeak_says_each_chinese_character_once() -> None:
    """Spelled out in English letters, as old versions do, a character takes half as long again."""
    backend = EspeakBackend()
    sound = say(backend, "今天天气很好今天天气很好", by_id(backend, "中文男"))
    assert sound.size / backend.sample_rate < 12 * 0.38


def test_espeak_men_and_women_differ() -> None:
    backend = EspeakBackend()
    man, woman = (say(backend, "你好", by_id(backend, voice)) for voice in ("中文男", "中文女"))
    assert not np.array_equal(man, woman)


def test_espeak_does_not_take_text_for_commands_or_options() -> None:
    backend = EspeakBackend()
    voice = by_id(backend, "英文男")
    plain = say(backend, "h@l'oU and more", voice)
    coded = say(backend, "[[h@l'oU]] and more", voice)
    assert coded.size > 0.8 * plain.size
    assert say(backend, "--version", voice).size > 0.3 * backend.sample_rate


def test_espeak_is_ended_when_the_listener_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    started = watch_processes(monkeypatch)
    backend = EspeakBackend()
    chunks = backend.synthesize(
        "A rather long sentence about nothing in particular. " * 20, by_id(backend, "英文男"), 0.5, None
    )
    next(chunks)
    chunks.close()
    assert started[0].poll() is not None


def test_an_espeak_that_hangs_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    started = watch_processes(monkeypatch)
    backend = EspeakBackend()
    monkeypatch.setattr(espeak, "SECONDS", 0.2)
    monkeypatch.setattr(backend, "_command", [sys.executable, "-c", "import time; time.sleep(60)"])
    with pytest.raises(ApiError) as caught:
        say(backend, "Hello", by_id(backend, "英文男"))
    assert caught.value.status == 500
    assert started[0].poll() is not None


def test_a_system_program_is_used_where_the_wheel_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(espeak.importlib.util, "find_spec", lambda _name: None)
    program = shutil.which("espeak-ng")
    backend = EspeakBackend()
    assert backend.available is (program is not None)
    if program is None:
        pytest.skip("no espeak-ng program on this machine")
    test_espeak_says_each_chinese_character_once()
    assert say(backend, "Hello", by_id(backend, "英文男")).size > 5000


def test_without_espeak_its_voices_are_listed_as_not_available(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(espeak.importlib.util, "find_spec", lambda _name: None)
    monkeypatch.setattr(espeak.shutil, "which", lambda _name: None)
    assert {voice.available for voice in EspeakBackend().voices()} == {False}


def test_the_process_that_holds_the_library_holds_nothing_of_ours() -> None:
    program = Path(espeak.__file__).with_name("espeak_program.py")
    code = f"import runpy, sys; runpy.run_path({str(program)!r}); print([m for m in sys.modules if 'quintet' in m])"
    result = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def watch_processes(monkeypatch: pytest.MonkeyPatch) -> list[subprocess.Popen[bytes]]:
    started: list[subprocess.Popen[bytes]] = []

    class Watched(subprocess.Popen[bytes]):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            started.append(self)

    monkeypatch.setattr(espeak.subprocess, "Popen", Watched)
    return started


def test_espeak_says_the_same_in_another_second() -> None:
    if espeak.library_command() is None:
        pytest.skip("the library's wheel is not installed")
    backend = EspeakBackend()
    first = say(backend, "世界", by_id(backend, "中文女"))
    begun = int(time.time())
    while int(time.time()) == begun:
        time.sleep(0.05)
    assert np.array_equal(say(backend, "世界", by_id(backend, "中文女")), first)
