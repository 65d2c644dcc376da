"""What the README shows is run as it stands, but for the address."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from stack import ROOT, Stack


def block(language: str, containing: str) -> str:
    text = (ROOT / "README.md").read_text()
    found = re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    (code,) = [code for code in found if containing in code]
    return str(code)


def test_the_python_example(stack: Stack, tmp_path: Path) -> None:
    code = block("python", "OpenAI(").replace("http://127.0.0.1:8000", stack.url)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "Paris" in done.stdout
    assert done.stdout.endswith("384\n")
    assert Image.open(tmp_path / "apple.png").size == (512, 512)
    assert (tmp_path / "morning.mp3").stat().st_size > 2000


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_curl_example(stack: Stack) -> None:
    command = block("bash", "curl ").replace("http://127.0.0.1:8000", stack.url)
    done = subprocess.run(["sh", "-c", command], capture_output=True, timeout=300, check=True)
    assert "Paris" in json.loads(done.stdout)["choices"][0]["message"]["content"]
