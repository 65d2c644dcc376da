"""Large files whose download breaks off: what is asked for next, and what is never put together."""

from __future__ import annotations

import fcntl
import hashlib
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from common.small_hub import COMMIT, FILES, LARGE_FILE, Hub, serving
from quintet_common import resume

CONTENT = FILES[LARGE_FILE]
HALF = len(CONTENT) // 2


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[resume._Job]:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(resume, "PAUSE", 0.01)
    file = resume.Large(LARGE_FILE, len(CONTENT), hashlib.sha256(CONTENT).hexdigest())
    with serving() as hub:
        url = f"{hub}/org/name/resolve/{COMMIT}/{LARGE_FILE}"
        yield resume._Job(file, url, tmp_path / f"{file.sha256}.incomplete", tmp_path / "whole")


def fetch(job: resume._Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resume, "_job", lambda *_: job)
    resume.fetch("org/name", COMMIT, [job.file], None)


def asked_from() -> list[int]:
    """The byte that each answer was asked to begin with."""
    return [int(each.partition("=")[2].rstrip("-") or 0) for each in Hub.fetched()]


def test_answers_that_break_off_are_gone_on_with(job: resume._Job, monkeypatch: pytest.MonkeyPatch) -> None:
    Hub.breaks_after = HALF - 1
    fetch(job, monkeypatch)
    assert job.whole.read_bytes() == CONTENT
    assert asked_from() == [0, HALF - 1, 2 * (HALF - 1)]
    assert not job.half.exists()


def test_a_server_that_gives_no_parts_gives_all(job: resume._Job, monkeypatch: pytest.MonkeyPatch) -> None:
    Hub.ranges = False
    job.half.write_bytes(CONTENT[:HALF])
    fetch(job, monkeypatch)
    assert job.whole.read_bytes() == CONTENT
    assert asked_from() == [HALF]


def test_one_that_gives_no_parts_and_breaks_off_is_given_up(job: resume._Job, monkeypatch: pytest.MonkeyPatch) -> None:
    Hub.ranges, Hub.breaks_after = False, HALF
    with pytest.raises(OSError, match=rf"^{LARGE_FILE}: it broke off at 128 kB of 256 kB; the same command goes on"):
        fetch(job, monkeypatch)
    assert len(Hub.fetched()) == 1 + resume.TRIES
    assert job.half.read_bytes() == CONTENT[:HALF]
    assert not job.whole.exists()


def test_another_part_than_was_asked_for_is_not_taken(job: resume._Job, monkeypatch: pytest.MonkeyPatch) -> None:
    send_part = Hub._send_part
    monkeypatch.setattr(Hub, "_send_part", lambda self, content, _, *rest: send_part(self, content, 7, *rest))
    job.half.write_bytes(CONTENT[:HALF])
    fetch(job, monkeypatch)
    assert job.whole.read_bytes() == CONTENT
    assert asked_from() == [HALF, 0]


def test_a_part_that_the_server_does_not_know_is_begun_anew(job: resume._Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Hub, "_send_part", lambda self, *_: self._send(416, b"", {}, True))
    job.half.write_bytes(CONTENT[:HALF])
    fetch(job, monkeypatch)
    assert job.whole.read_bytes() == CONTENT
    assert asked_from() == [HALF, 0]


def test_what_the_hub_refuses_costs_nothing_of_what_is_there(job: resume._Job, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub.errors import HfHubHTTPError

    del Hub.files[LARGE_FILE]
    job.half.write_bytes(CONTENT[:HALF])
    with pytest.raises(HfHubHTTPError):
        fetch(job, monkeypatch)
    assert len(Hub.fetched()) == 1
    assert job.half.read_bytes() == CONTENT[:HALF]


def test_what_another_process_fetches_is_waited_for(job: resume._Job, monkeypatch: pytest.MonkeyPatch) -> None:
    with job.half.open("ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        waiting = threading.Thread(target=fetch, args=(job, monkeypatch))
        waiting.start()
        waiting.join(0.3)
        assert waiting.is_alive()
        other.write(CONTENT)
        other.flush()
        job.half.replace(job.whole)
    waiting.join(10)
    assert not waiting.is_alive()
    assert Hub.fetched() == []
    assert job.whole.read_bytes() == CONTENT


def test_halves_of_versions_that_nobody_fetches_go(job: resume._Job, monkeypatch: pytest.MonkeyPatch) -> None:
    old, others = (job.half.with_name(f"{letter * 64}.incomplete") for letter in "ab")
    foreign = job.half.with_name("a.12345678.incomplete")
    for file in (old, others, foreign):
        file.touch()
    with others.open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        fetch(job, monkeypatch)
    assert (old.exists(), others.exists(), foreign.exists()) == (False, True, True)


def test_a_disk_without_room_is_told_at_once(job: resume._Job, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(job.half.parent)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=HALF))
    with pytest.raises(OSError, match=r"^256 kB are to be fetched, but .* has only 128 kB free\.$"):
        fetch(job, monkeypatch)
    assert Hub.asked == []
    job.half.write_bytes(CONTENT[:HALF])
    fetch(job, monkeypatch)
    assert asked_from() == [HALF]
