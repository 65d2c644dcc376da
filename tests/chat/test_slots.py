"""The KV cache's memory: taken by need, within its limit, given back; and tensors of pages that make it so."""

from __future__ import annotations

import ctypes
import mmap
import sys

import pytest
import torch
from chat.blocks_kit import CACHES
from quintet_chat.engine.pages import Pages
from quintet_chat.engine.slots import KeyValueLayer, SlotCache


def filled(slots: SlotCache, lengths: list[int]) -> None:
    for row, length in enumerate(lengths):
        slots.plan = slots.prefill(row, [0], [length], fresh=False)
        for layer in slots.layers:
            layer.update(torch.full((1, 1, length, 8), row + 1.0), torch.full((1, 1, length, 8), -row - 1.0))


def kept(slots: SlotCache, row: int, length: int) -> bool:
    layer = slots.layers[0]
    assert isinstance(layer, KeyValueLayer)
    return all(bool((part.abs() == row + 1).all()) for part in layer.read(row, 0, length))


@pytest.mark.parametrize("cache", CACHES)
def test_slots_keep_what_they_hold_when_others_grow(cache: str) -> None:
    slots = CACHES[cache](1, 4, 1024, 2048)
    assert slots.reserve([100, 50])
    filled(slots, [100, 50])
    assert slots.reserve([100, 50, 300])
    assert kept(slots, 0, 100)
    assert kept(slots, 1, 50)
    assert slots.held <= 2048


@pytest.mark.parametrize("cache", CACHES)
def test_what_is_over_a_limit_is_refused_and_changes_nothing(cache: str) -> None:
    slots = CACHES[cache](1, 4, 1024, 1024)
    assert slots.reserve([100, 50])
    filled(slots, [100, 50])
    held = slots.held
    for lengths in ([1025], [10] * 5, [600, 600]):
        assert not slots.reserve(lengths)
    assert slots.held == held
    assert kept(slots, 0, 100)


@pytest.mark.parametrize("cache", CACHES)
def test_one_long_text_costs_no_more_than_its_own_tokens(cache: str) -> None:
    slots = CACHES[cache](1, 32, 8192, 8192)
    assert slots.reserve([6000, *[60] * 31])
    assert slots.held <= 8192


@pytest.mark.parametrize("cache", CACHES)
def test_under_need_slots_give_back_what_they_no_longer_hold(cache: str) -> None:
    slots = CACHES[cache](1, 2, 512, 512)
    assert slots.reserve([300, 100])
    filled(slots, [300, 100])
    assert slots.reserve([100, 384])
    assert kept(slots, 0, 100)
    assert kept(slots, 1, 100)
    assert slots.held <= 512
    slots.release()
    assert slots.held == 0


def test_pages_take_memory_when_written_and_read_as_zeros_once_given_back() -> None:
    pages = Pages((4, 1 << 22), torch.float32)
    assert resident(pages.tensor) == 0
    pages.tensor[1] = 1.0
    assert resident(pages.tensor) == 16 << 20
    pages.discard(pages.tensor[1])
    assert resident(pages.tensor) == 0
    assert not pages.tensor[1].any()
    pages.tensor[2] = 1.0
    pages.discard(pages.tensor[2, 5:1000])  # within one page: nothing is given back
    assert pages.tensor[2].all()


def resident(tensor: torch.Tensor) -> int:
    """Bytes of memory that a tensor takes, whatever else this process does."""
    if sys.platform != "linux":
        pytest.skip("only Linux is asked")
    there = (ctypes.c_ubyte * (tensor.nbytes // mmap.PAGESIZE))()
    begin, size = ctypes.c_void_p(tensor.data_ptr()), ctypes.c_size_t(tensor.nbytes)
    assert ctypes.CDLL(None).mincore(begin, size, there) == 0
    return sum(page & 1 for page in there) * mmap.PAGESIZE
