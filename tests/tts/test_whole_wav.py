"""A WAV that is made whole before it is sent."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import IO

import pytest
from quintet_common.errors import ApiError
from quintet_tts.api import speech
from quintet_tts.wav import wav_header


async def sound(ended: list[bool]) -> AsyncGenerator[bytes, None]:
    try:
        yield wav_header(24_000)
        for _ in range(4):
            yield bytes(1000)
    finally:
        ended.append(True)


async def test_its_header_is_true() -> None:
    with await speech._whole(sound([])) as file:
        file.seek(40)
        assert int.from_bytes(file.read(4), "little") == 4000


async def test_a_full_disk_is_said_and_ends_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """/dev/full is a disk without room: what is written there fails as it does on one."""

    def full(_in_memory: int) -> IO[bytes]:
        return open("/dev/full", "r+b", buffering=0)

    monkeypatch.setattr(speech, "SpooledTemporaryFile", full)
    ended: list[bool] = []
    with pytest.raises(ApiError, match="no room on its disk") as caught:
        await speech._whole(sound(ended))
    assert (caught.value.status, caught.value.code, caught.value.retry) == (507, "disk_full", False)
    assert ended == [True]
