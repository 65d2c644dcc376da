"""``quintet models`` and ``quintet run`` against the real stack."""

from __future__ import annotations

import subprocess
import sys
import wave
from pathlib import Path

import pytest
from PIL import Image, ImageDraw
from stack import CHAT, EMBEDDING, IMAGE, OCR, TTS, Stack


def quintet(stack: Stack, folder: Path, *arguments: str, status: int = 0) -> str:
    command = [str(Path(sys.executable).with_name("quintet")), *arguments, "--url", stack.url]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == status, done.stderr
    return done.stdout if status == 0 else done.stderr


def test_models_lists_all_five_with_their_state(stack: Stack, tmp_path: Path) -> None:
    rows = [line.split() for line in quintet(stack, tmp_path, "models").splitlines()[2:]]
    assert {row[0] for row in rows} == {CHAT, OCR, IMAGE, TTS, EMBEDDING}
    assert {row[-1] for row in rows} == {"ready"}


def test_run_prints_a_chat_answer(stack: Stack, tmp_path: Path) -> None:
    assert len(quintet(stack, tmp_path, "run", CHAT, "Say hello.").strip()) > 2


def test_run_reads_a_picture(stack: Stack, tmp_path: Path) -> None:
    picture = Image.new("RGB", (480, 120), "white")
    ImageDraw.Draw(picture).text((20, 30), "PLATFORM 7", fill="black", font_size=48)
    picture.save(tmp_path / "sign.png")
    assert "PLATFORM" in quintet(stack, tmp_path, "run", OCR, "Read it.", "--image", "sign.png")


def test_run_saves_a_picture(stack: Stack, tmp_path: Path) -> None:
    assert quintet(stack, tmp_path, "run", IMAGE, "a red apple", "--size", "128x128").startswith(f"{IMAGE}.png (")
    assert Image.open(tmp_path / f"{IMAGE}.png").size == (128, 128)


def test_run_saves_speech(stack: Stack, tmp_path: Path) -> None:
    quintet(stack, tmp_path, "run", TTS, "Good morning.", "--out", "said.wav")
    with wave.open(str(tmp_path / "said.wav")) as sound:
        assert sound.getframerate() >= 16000


def test_run_prints_the_head_of_a_vector(stack: Stack, tmp_path: Path) -> None:
    assert quintet(stack, tmp_path, "run", EMBEDDING, "hello").endswith("…] 384 dimensions\n")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("run", "nobody", "hello"), "There is no model 'nobody'; there are: "),
        (("run", TTS, "hello", "--out", "said.doc"), "--out: speech is written as mp3, "),
        (("run", TTS, "hello", "--voice", "nobody"), "nobody"),
    ],
)
def test_run_says_what_is_wrong_in_one_line(
    stack: Stack, tmp_path: Path, arguments: tuple[str, ...], said: str
) -> None:
    error = quintet(stack, tmp_path, *arguments, status=1)
    assert said in error
    assert error.count("\n") == 1
