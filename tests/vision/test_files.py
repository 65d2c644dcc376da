"""Pictures by URL: names nobody guesses, a time, and room for only so much."""

from __future__ import annotations

import asyncio

import pytest
from quintet_vision import files
from quintet_vision.files import FileStore


def test_a_file_is_found_under_its_name_only() -> None:
    store = FileStore()
    first, second = store.put(b"one", "png"), store.put(b"two", "webp")
    assert first != second
    assert len(first) >= 32
    assert (store.get(second).data, store.get(second).media_type) == (b"two", "image/webp")
    assert store.get(first[:-5]) is None


def test_a_file_expires(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(files.time, "monotonic", lambda: now[0])
    store = FileStore(seconds=10)
    name = store.put(b"one", "png")
    now[0] = 109.0
    assert store.get(name) is not None
    now[0] = 110.0
    assert store.get(name) is None


def test_the_oldest_make_room() -> None:
    store = FileStore(max_bytes=25)
    names = [store.put(b"0123456789", "png") for _ in range(3)]
    assert [store.get(name) is not None for name in names] == [False, True, True]
    large = store.put(b"x" * 100, "png")
    assert store.get(large) is not None
    assert store.get(names[2]) is None


async def test_an_expired_file_is_forgotten_though_nobody_asks() -> None:
    store = FileStore(seconds=0.05)
    store.put(b"one", "png")
    assert store.bytes == 3
    await asyncio.sleep(0.2)
    assert store.bytes == 0
