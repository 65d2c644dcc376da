"""scripts/bootstrap.py: which Python, from where, and when there is nothing to do."""

from __future__ import annotations

import ast
import importlib.util
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
FILE = ROOT / "scripts" / "bootstrap.py"


@pytest.fixture
def bootstrap(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("quintet_bootstrap", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name in ("TORCH_BACKEND", "UV_TORCH_BACKEND"):
        monkeypatch.delenv(name, raising=False)
    return module


def set_pip(monkeypatch: pytest.MonkeyPatch, bootstrap: ModuleType, listing: str) -> None:
    """Let ``pip config list`` print this."""
    done = subprocess.CompletedProcess([], 0, listing.encode())
    monkeypatch.setattr(bootstrap.subprocess, "run", lambda *_, **__: done)


def test_old_pythons_can_read_it() -> None:
    ast.parse(FILE.read_text(), feature_version=(3, 7))


def test_a_python_that_is_too_old_is_told_so_in_one_line(
    bootstrap: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bootstrap.sys, "version_info", (3, 9, 2))
    monkeypatch.setattr(bootstrap.shutil, "which", lambda _: None)
    with pytest.raises(SystemExit) as ended:
        bootstrap.require_python()
    assert "needs Python 3.11 or newer; this is 3.9" in str(ended.value)
    assert "\n" not in str(ended.value)


def test_a_newer_python_of_the_machine_takes_over(bootstrap: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bootstrap.sys, "version_info", (3, 9, 2))
    monkeypatch.setattr(bootstrap.shutil, "which", lambda name: sys.executable if name == "python3.12" else None)
    started: list[list[str]] = []
    monkeypatch.setattr(bootstrap.os, "execv", lambda _, arguments: started.append(arguments) or sys.exit(0))
    with pytest.raises(SystemExit):
        bootstrap.require_python()
    assert started[0][0] == sys.executable


def test_pip_s_sources_become_uv_s(bootstrap: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    listing = f"""global.extra-index-url='https://extra.example/simple file:///not/there file://{tmp_path}'
global.find-links='/wheels'
global.index-url='https://mirror.example/simple'
global.trusted-host='mirror.example'
install.find-links='/other'
freeze.find-links='/never'
:env:.index-url='https://wins.example/simple'
"""
    set_pip(monkeypatch, bootstrap, listing)
    options = bootstrap.pip_sources()
    pairs = list(zip(options[::2], options[1::2], strict=True))
    assert pairs == [
        ("--find-links", "/other"),
        ("--index", "https://extra.example/simple"),
        ("--index", f"file://{tmp_path}"),
        ("--default-index", "https://wins.example/simple"),
        ("--allow-insecure-host", "mirror.example"),
        ("--index-strategy", "unsafe-best-match"),
    ]


def test_pip_s_defaults_need_no_options(bootstrap: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    set_pip(monkeypatch, bootstrap, "global.timeout='60'\n")
    assert bootstrap.pip_sources() == []


def test_torch_without_settings_is_the_build_for_the_machine(
    bootstrap: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bootstrap, "pip_sources", list)
    ways = bootstrap.torch_ways()
    assert [options for _, options in ways] == [["--torch-backend", "auto"], []]


@pytest.mark.parametrize(("cuda", "first"), [(False, ["--find-links", "/w"]), (True, ["--torch-backend", "auto"])])
def test_torch_of_pip_s_sources_comes_first_only_without_cuda(
    bootstrap: ModuleType, monkeypatch: pytest.MonkeyPatch, cuda: bool, first: list[str]
) -> None:
    """A mirror of the whole index has the CUDA build; a folder of wheels may have the light one."""
    monkeypatch.setattr(bootstrap, "pip_sources", lambda: ["--find-links", "/w"])
    monkeypatch.setattr(bootstrap, "brings_cuda", lambda _: cuda)
    ways = bootstrap.torch_ways()
    assert ways[0][1][-2:] == first
    assert len(ways) == 2


def test_when_one_way_to_torch_fails_the_other_is_tried_and_said(
    bootstrap: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bootstrap, "pip_sources", list)
    monkeypatch.setattr(bootstrap, "uv_environment", dict)
    tried: list[list[str]] = []
    results = iter([2, 0])
    monkeypatch.setattr(bootstrap.subprocess, "call", lambda command, **_: tried.append(command) or next(results))
    bootstrap.install_torch()
    assert ["--torch-backend" in command for command in tried] == [True, False]
    assert "That did not work; trying another way." in capsys.readouterr().out


def test_no_way_to_torch_is_one_line(bootstrap: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bootstrap, "pip_sources", list)
    monkeypatch.setattr(bootstrap, "uv_environment", dict)
    monkeypatch.setattr(bootstrap.subprocess, "call", lambda *_, **__: 2)
    with pytest.raises(SystemExit, match="Could not install torch"):
        bootstrap.install_torch()


def test_torch_backend_decides_alone(bootstrap: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bootstrap, "pip_sources", list)
    monkeypatch.setenv("TORCH_BACKEND", "cu130")
    assert [options for _, options in bootstrap.torch_ways()] == [["--torch-backend", "cu130"]]


def test_the_fingerprint_follows_what_is_installed(
    bootstrap: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("requirements.lock", "services/embed/pyproject.toml"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    monkeypatch.setattr(bootstrap, "TOP", tmp_path)
    monkeypatch.setattr(bootstrap, "LOCK", tmp_path / "requirements.lock")
    seen = [bootstrap.fingerprint()]
    assert bootstrap.fingerprint() == seen[0]
    for file in (tmp_path / "requirements.lock", tmp_path / "services/embed/pyproject.toml"):
        file.write_text(file.read_text() + "\n# changed\n")
        seen.append(bootstrap.fingerprint())
    monkeypatch.setenv("TORCH_BACKEND", "cpu")
    seen.append(bootstrap.fingerprint())
    assert len(set(seen)) == len(seen)


def test_nothing_to_do_takes_no_time(tmp_path: Path) -> None:
    for name in ("scripts/bootstrap.py", "requirements.lock"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.symlink_to(sys.executable)
    ask = "import sys; sys.path.insert(0, 'scripts'); import bootstrap; sys.stdout.write(bootstrap.fingerprint())"
    print_it = subprocess.run([sys.executable, "-c", ask], cwd=tmp_path, stdout=subprocess.PIPE, check=True)
    (tmp_path / ".venv" / "installed").write_bytes(print_it.stdout)
    started = time.monotonic()
    done = subprocess.run([sys.executable, "scripts/bootstrap.py"], cwd=tmp_path, stdout=subprocess.PIPE, check=True)
    assert done.stdout == b""
    assert time.monotonic() - started < 5  # 0.1 on a quiet machine
