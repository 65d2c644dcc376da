"""The command that brings what is missing."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from quintet_common import install

ROOT = Path(__file__).resolve().parents[2]


def test_from_the_repository_it_names_the_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(ROOT)
    assert install.command("quintet-chat", "gptq").endswith(" -e 'services/chat[gptq]'")
    assert install.command("quintet-router").endswith(" -e 'services/router'")
    monkeypatch.chdir(tmp_path)
    assert install.command("quintet-router").endswith(f" -e '{ROOT}/services/router'")


def test_elsewhere_it_names_what_the_extra_stands_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(install, "_folder", lambda _package: None)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    command = install.command("quintet-chat", "bitsandbytes")
    assert command == f"{tmp_path}/python -m pip install 'bitsandbytes>=0.50'"
    (tmp_path / "uv").touch()
    command = install.command("quintet-chat", "bitsandbytes")
    assert command == f"{tmp_path}/uv pip install -p {tmp_path}/python 'bitsandbytes>=0.50'"
