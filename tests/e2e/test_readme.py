"""What the README shows, and the documents under "Try it", is run as it stands, but for the address."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from openai import OpenAI
from PIL import Image
from stack import ROOT, Stack

FENCED = r"^```{}\n(.*?)^```$"
needs_curl = pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")


def blocks(text: str, language: str) -> list[str]:
    return re.findall(FENCED.format(language), text, re.MULTILINE | re.DOTALL)


def block(language: str, containing: str) -> str:
    (code,) = [code for code in blocks((ROOT / "README.md").read_text(), language) if containing in code]
    return code


def try_it(document: str) -> str:
    """The section of that name."""
    text = (ROOT / "docs" / document).read_text(encoding="utf-8")
    return text.partition("\n## Try it\n")[2].partition("\n## ")[0]


def output(stack: Stack, folder: Path, *command: str) -> str:
    """What a command with code from a document prints, when its address is ``stack``'s."""
    command = tuple(part.replace("http://127.0.0.1:8000", stack.url) for part in command)
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def python(stack: Stack, folder: Path, document: str) -> str:
    """What the section prints: what stands behind ``print(…)  #`` is among it, a line each, in that order."""
    code = "\n".join(blocks(try_it(document), "python"))
    printed = output(stack, folder, sys.executable, "-c", code)
    shown = re.findall(r"print\(.*\)  # (.+)$", code, re.MULTILINE)
    lines = iter(printed.splitlines())
    assert all(line in lines for line in shown), printed
    return printed


def shell(stack: Stack, folder: Path, document: str) -> str:
    (code,) = blocks(try_it(document), "bash")
    return output(stack, folder, "sh", "-c", code)


def test_the_python_example(stack: Stack, tmp_path: Path) -> None:
    (tmp_path / "docs").symlink_to(ROOT / "docs")
    printed = output(stack, tmp_path, sys.executable, "-c", block("python", "OpenAI("))
    assert "Paris" in printed
    assert "欢迎光临\nOpen daily 9:30\n" in printed
    assert printed.endswith("384\n")
    assert Image.open(tmp_path / "apple.png").size == (512, 512)
    assert (tmp_path / "morning.mp3").stat().st_size > 2000


@needs_curl
def test_the_curl_example(stack: Stack, tmp_path: Path) -> None:
    answer = json.loads(output(stack, tmp_path, "sh", "-c", block("bash", "curl ")))
    assert "Paris" in answer["choices"][0]["message"]["content"]


def test_every_section_to_try_is_tried() -> None:
    there = {file.name for file in (ROOT / "docs").glob("*.md") if try_it(file.name)}
    assert there == {"chat.md", "embeddings.md", "images.md", "speech.md"}


def test_chat(stack: Stack, tmp_path: Path) -> None:
    printed = python(stack, tmp_path, "chat.md").splitlines()
    assert "18" in printed[1], "the tool's answer is told"
    likeliest = [float(line.rpartition(" ")[2]) for line in printed[-4:-1]]
    assert all(more >= less for more, less in pairwise(likeliest))


def test_embeddings(stack: Stack, tmp_path: Path) -> None:
    python(stack, tmp_path, "embeddings.md")


@needs_curl
def test_images(stack: Stack, tmp_path: Path) -> None:
    printed = python(stack, tmp_path, "images.md")
    assert printed.count("image_generation.partial_image\n") == 2
    apple, pizza = (Image.open(tmp_path / name).convert("RGB") for name in ("apple.png", "half-a-pizza.png"))
    assert apple.size == (256, 256)
    left, right = (0, 0, 128, 256), (128, 0, 256, 256)
    assert apple.crop(right).tobytes() == pizza.crop(right).tobytes()
    assert apple.crop(left).tobytes() != pizza.crop(left).tobytes()

    variations = json.loads(shell(stack, tmp_path, "images.md"))["data"]
    client = OpenAI(base_url=stack.url, api_key="none")
    pictures = {client.get(each["url"], cast_to=bytes) for each in variations}
    assert len(pictures) == 2


@needs_curl
def test_speech(stack: Stack, tmp_path: Path) -> None:
    python(stack, tmp_path, "speech.md")
    size = {file.name: file.stat().st_size for file in tmp_path.iterdir()}
    assert {f"morning.{name}" for name in ("mp3", "opus", "aac", "flac", "wav")} <= size.keys()
    assert min(size.values()) > 2000
    assert size["fast.mp3"] < size["morning.mp3"] < size["chinese.mp3"]

    events = [line for line in shell(stack, tmp_path, "speech.md").splitlines() if line]
    assert len(events) > 2
    assert all('"speech.audio.delta"' in event for event in events[:-1])
    assert '"speech.audio.done"' in events[-1]
