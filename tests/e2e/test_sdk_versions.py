"""The OpenAI SDK of each generation in use, through every slice. Each gets an environment of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image, ImageDraw
from stack import Stack

HERE = Path(__file__).parent
UV = Path(sys.executable).with_name("uv")


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    image = Image.new("RGB", (480, 120), "white")
    ImageDraw.Draw(image).text((20, 30), "QUINTET 2048", fill="black", font_size=48)
    file = tmp_path_factory.mktemp("picture") / "picture.png"
    image.save(file)
    return file


# On the bare paths, whose dialect is another, the oldest and the newest.
@pytest.mark.parametrize(
    ("version", "prefix"),
    [("1.109.1", "/v1"), ("1.109.1", ""), ("2.54.0", "/v1"), ("3.54.0", "/v1"), ("3.54.0", "")],
)
def test_every_slice(stack: Stack, picture: Path, version: str, prefix: str) -> None:
    if not UV.exists():
        pytest.skip("uv is not installed beside Python; make install puts it there")
    command = [str(UV), "run", "--no-project", "--python", sys.executable, "--with", f"openai=={version}", "python"]
    script = [str(HERE / "sdk_slices.py"), stack.url + prefix, str(picture)]
    done = subprocess.run([*command, *script], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"openai {version}: 0 failed" in done.stdout
