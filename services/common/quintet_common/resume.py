"""Large files of a hub, fetched so that a download that was cut off goes on where it ended.

The hub's own client begins such a file anew. Here a file that is not whole has the checksum of what it is to become as
its name, so another version of it is another file, and two versions are never put together. When all of it is there it
goes where that client looks for it, which then has nothing to fetch.
"""

from __future__ import annotations

import fcntl
import re
import shutil
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import httpx2

from quintet_common.footprint import in_words

WORKERS = 8
"""Files that are fetched at a time."""

TRIES = 5
"""Answers in a row of which nothing came, until a file is given up."""

PAUSE = 1.0
"""Seconds before the next try."""

SUFFIX = ".incomplete"
"""Of what is not whole; the hub's own tools know it by this, and clear it away."""

_LARGEST = 50 * 10**9
"""Bytes of a file that the hub gives by plain HTTP; for more its client has another way."""

_SECONDS = 60.0
"""So long nothing may come before a connection is given up."""

_PART, _NO_SUCH_PART = 206, 416
_PASSING = (408, 429, 500, 502, 503, 504)
_RANGE = re.compile(r"bytes (\d+)-")
_HALF = re.compile(rf"[0-9a-f]{{64}}{re.escape(SUFFIX)}")


class Large(NamedTuple):
    """A file of a repository that the hub gives a checksum for."""

    name: str
    size: int
    sha256: str


class _Job(NamedTuple):
    file: Large
    url: str
    half: Path
    whole: Path


class _Progress:
    """One bar for all files; and whether to stop, since one of them cannot be had."""

    def __init__(self, name: str, total: int, there: int) -> None:
        from huggingface_hub import utils

        self.stopped = threading.Event()
        self._lock = threading.Lock()
        bar: Any = utils.tqdm  # type: ignore[attr-defined]  # it is made on demand
        self._bar = bar(desc=name, total=total, initial=there, unit="B", unit_scale=True, disable=None)

    def add(self, count: int) -> None:
        with self._lock:
            self._bar.update(count)

    def close(self) -> None:
        self._bar.close()


def fetch(repository: str, commit: str, files: Sequence[Large], into: Path | None) -> None:
    """Fetch those of ``files`` that are not there, into the folder ``into``, or the hub's cache without one.

    They are not yet compared with their checksums. Raises OSError, and what huggingface_hub raises.
    """
    if not (jobs := [job for file in files if (job := _job(repository, commit, file, into)) is not None]):
        return
    halves = jobs[0].half.parent
    halves.mkdir(parents=True, exist_ok=True)
    total, there = sum(job.file.size for job in jobs), sum(_size(job.half) for job in jobs)
    if total - there > (free := shutil.disk_usage(halves).free):  # better now than in some hours
        raise OSError(f"{in_words(total - there)} are to be fetched, but {halves} has only {in_words(free)} free.")
    with closing(_Progress(repository, total, there)) as progress, ThreadPoolExecutor(WORKERS) as workers:
        tasks = [workers.submit(_fetch, job, progress) for job in jobs]
        try:
            for task in as_completed(tasks):
                task.result()
        finally:
            progress.stopped.set()  # the others would go on for hours, and what they have is kept
            workers.shutdown(cancel_futures=True)
    _drop_old(halves)


def _job(repository: str, commit: str, file: Large, into: Path | None) -> _Job | None:
    """None for what is there, and for what the hub's client has to fetch itself."""
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url, try_to_load_from_cache

    if isinstance(try_to_load_from_cache(repository, file.name, revision=commit), str) or file.size > _LARGEST:
        return None
    if into is None:
        halves = Path(constants.HF_HUB_CACHE, f"models--{repository.replace('/', '--')}", "blobs")
        whole = halves / file.sha256
    else:
        halves = into / repository / ".cache" / "huggingface" / "download"
        whole = into / repository / file.name
    if _size(whole) == file.size:
        return None
    url = hf_hub_url(repository, file.name, revision=commit)
    # The client looks for the file by this tag. A mirror may have tags of its own; all would come once more then.
    known = get_hf_file_metadata(url).etag == file.sha256
    return _Job(file, url, halves / (file.sha256 + SUFFIX), whole) if known else None


def _fetch(job: _Job, progress: _Progress) -> None:
    with job.half.open("ab") as out:
        with suppress(OSError):  # where the disk knows of no locks
            fcntl.flock(out, fcntl.LOCK_EX)  # another process may be fetching it; then it is waited for
        if _size(job.whole) != job.file.size:
            _go_on(job, out, progress)
            if _end(out) < job.file.size:
                return
            job.whole.parent.mkdir(parents=True, exist_ok=True)
            job.half.replace(job.whole)
    job.half.unlink(missing_ok=True)


def _go_on(job: _Job, out: BinaryIO, progress: _Progress) -> None:
    """Ask for what is missing until nothing is, or all is to stop. Raises OSError when nothing comes any more."""
    from huggingface_hub.errors import HfHubHTTPError

    fruitless = 0
    while (have := _end(out)) < job.file.size and not progress.stopped.is_set():
        why: Exception | None = None
        try:
            _take(job.url, out, have, progress)
        except (httpx2.TransportError, HfHubHTTPError) as error:
            if isinstance(error, HfHubHTTPError) and error.response.status_code not in _PASSING:
                raise
            why = error
            progress.stopped.wait(PAUSE)
        fruitless = 0 if _end(out) > have else fruitless + 1
        if fruitless == TRIES:
            text = (
                f"it broke off at {in_words(have)} of {in_words(job.file.size)}; the same command goes on from there."
            )
            raise OSError(f"{job.file.name}: {text}") from why


def _take(url: str, out: BinaryIO, have: int, progress: _Progress) -> None:
    """Write what one answer has behind the ``have`` bytes that are there; from the beginning where the server gives no
    parts of files, or another part than it was asked for."""
    from huggingface_hub import get_session, hf_raise_for_status, utils

    part = {"Range": f"bytes={have}-"} if have else {}
    mine = utils.build_hf_headers()  # type: ignore[attr-defined]  # it is made on demand
    headers = {**mine, "Accept-Encoding": "identity", **part}
    with get_session().stream("GET", url, headers=headers, timeout=_SECONDS) as response:
        if response.status_code != _NO_SUCH_PART or not have:
            hf_raise_for_status(response)
        given = _RANGE.match(response.headers.get("Content-Range", "")) if response.status_code == _PART else None
        begins = int(given[1]) if given else 0
        if begins != have:
            out.truncate(0)
            progress.add(-have)
        if begins not in (0, have) or response.status_code == _NO_SUCH_PART:
            return
        for block in response.iter_bytes():
            out.write(block)
            out.flush()
            progress.add(len(block))
            if progress.stopped.is_set():
                return


def _drop_old(halves: Path) -> None:
    """Remove what is left of versions that nobody fetches any more."""
    for file in halves.iterdir():
        with suppress(OSError):
            if _HALF.fullmatch(file.name):
                with file.open("rb") as half:
                    fcntl.flock(half, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    file.unlink()


def _size(file: Path) -> int:
    """In bytes; 0 where there is none."""
    return file.stat().st_size if file.is_file() else 0


def _end(out: BinaryIO) -> int:
    return out.seek(0, 2)
