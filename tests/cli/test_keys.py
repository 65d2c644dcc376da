"""``quintet keys``: what it prints, what it writes, and what it says when something is wrong."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import pytest
from cli.test_commands import status_of
from quintet_router.access import keyfile


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "keys.yml"


def test_a_key_is_made_listed_and_revoked(capsys: pytest.CaptureFixture[str], file: Path) -> None:
    where = ("--file", str(file))
    limits = ("--models", "qwen*", "m", "--requests-per-minute", "60", "--concurrent-requests", "4")
    assert status_of("keys", "add", "alice", *limits, *where) == 0
    secret = capsys.readouterr().out.strip()
    assert secret.startswith("sk-quintet-")
    assert secret not in file.read_text()
    assert file.stat().st_mode & 0o777 == 0o600
    assert status_of("keys", "add", "root", "--admin", *where) == 0
    assert capsys.readouterr().out.strip() != secret
    alice, root = keyfile.read(file)
    assert alice.sha256 == hashlib.sha256(secret.encode()).hexdigest()
    assert (alice.models, alice.requests_per_minute, alice.concurrent_requests) == (["qwen*", "m"], 60, 4)
    assert (alice.admin, root.admin, root.models) == (False, True, None)
    assert status_of("keys", "list", *where) == 0
    listed = capsys.readouterr().out
    assert all(word in listed for word in ("alice", "qwen*, m", "60", "root", "all", "yes"))
    assert alice.sha256 not in listed
    assert status_of("keys", "revoke", "alice", *where) == 0
    assert [key.name for key in keyfile.read(file)] == ["root"]


def test_mistakes_are_one_line_and_change_nothing(capsys: pytest.CaptureFixture[str], file: Path) -> None:
    where = ("--file", str(file))
    assert status_of("keys", "list", *where) == 1
    assert capsys.readouterr().err == f"{file}: cannot be read: No such file or directory.\n"
    status_of("keys", "add", "alice", *where)
    before = file.read_text()
    capsys.readouterr()
    assert status_of("keys", "add", "alice", *where) == 1
    assert capsys.readouterr().err == f"{file} has a key 'alice' already; revoke it first.\n"
    assert status_of("keys", "revoke", "bob", *where) == 1
    assert capsys.readouterr().err == f"{file} has no key 'bob'.\n"
    for wrong in (("a b",), ("",), ("bob", "--requests-per-minute", "0"), ("bob", "--concurrent-requests", "-1")):
        assert status_of("keys", "add", *wrong, *where) == 1
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.count("\n") == 1
    assert file.read_text() == before


def test_of_two_keys_made_at_once_none_is_lost(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    both, write = threading.Barrier(2), keyfile.write

    def late(path: Path, keys: Sequence[keyfile.Key]) -> None:
        with suppress(threading.BrokenBarrierError):  # the other one waits for its turn
            both.wait(0.3)
        write(path, keys)

    monkeypatch.setattr(keyfile, "write", late)
    makers = [threading.Thread(target=status_of, args=("keys", "add", name, "--file", str(file))) for name in "ab"]
    for maker in makers:
        maker.start()
    for maker in makers:
        maker.join()
    assert sorted(key.name for key in keyfile.read(file)) == ["a", "b"]


def test_a_file_in_a_missing_folder(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert status_of("keys", "add", "alice", "--file", str(tmp_path / "no" / "keys.yml")) == 1
    captured = capsys.readouterr()
    assert "cannot be written" in captured.err
    assert captured.out == ""  # a key that is not in force is not shown
