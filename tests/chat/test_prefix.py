"""The prefix cache by itself: what is found again, what is forgotten, and what it costs."""

from __future__ import annotations

import pytest
import torch
from quintet_chat.engine.prefix import BLOCK, PrefixCache
from quintet_chat.engine.slots import Prefill, SlotCache

LAYERS, HEADS, SIZE = 2, 2, 4


class Filled:
    """Slots whose keys say which token of which row they are, and a prefix cache over them."""

    def __init__(self, blocks: int) -> None:
        self.slots = SlotCache(LAYERS, 3, 256, 768)
        self.slots.reserve([256] * 3)
        self.cache = PrefixCache(self.slots, blocks)
        for row in range(3):
            self.slots.plan = Prefill(row, [0], [256], None)
            for layer in self.slots.layers:
                new = torch.arange(256.0)[None, None, :, None].expand(1, HEADS, 256, SIZE) + 1000 * row
                layer.update(new, -new)

    def first(self, row: int, count: int) -> torch.Tensor:
        return self.slots.layers[1].stores[1][row, 1, :count, 0]


def text(start: int, length: int = 5 * BLOCK) -> list[int]:
    return list(range(start, start + length))


def test_a_beginning_is_found_and_copied_whole() -> None:
    filled = Filled(20)
    filled.cache.save(0, text(0))
    beginning = filled.cache.match([*text(0, 3 * BLOCK + 5), *text(900)])
    assert len(beginning.places) == 3
    assert filled.cache.load(2, beginning) == 3 * BLOCK
    assert torch.equal(filled.first(2, 3 * BLOCK), -torch.arange(3.0 * BLOCK))
    assert filled.first(2, 256)[3 * BLOCK] == -2000 - 3 * BLOCK


def test_the_last_token_is_always_left_to_compute() -> None:
    filled = Filled(20)
    filled.cache.save(0, text(0, 4 * BLOCK))
    assert filled.cache.match(text(0, 4 * BLOCK)).tokens == 3 * BLOCK
    assert filled.cache.match(text(0, 4 * BLOCK + 1)).tokens == 4 * BLOCK
    assert filled.cache.match(text(0, 1)).places == []


def test_the_same_tokens_behind_another_beginning_are_another_text() -> None:
    filled = Filled(20)
    filled.cache.save(0, text(0))
    assert filled.cache.match([*text(500, BLOCK), *text(0)]).places == []
    assert len(filled.cache.match([*text(0, BLOCK), *text(0)]).places) == 1


def test_what_was_not_used_for_longest_is_forgotten_first_from_its_end() -> None:
    filled = Filled(6)
    filled.cache.save(0, text(0, 3 * BLOCK))
    filled.cache.save(1, text(500, 3 * BLOCK))
    filled.cache.match(text(0, 9 * BLOCK))
    filled.cache.save(2, text(700, 2 * BLOCK))
    assert [len(filled.cache.match(text(start, 9 * BLOCK)).places) for start in (0, 500, 700)] == [3, 1, 2]
    assert (len(filled.cache), filled.cache.usage) == (6, 1.0)


def test_a_text_longer_than_the_cache_leaves_its_beginning() -> None:
    filled = Filled(2)
    filled.cache.save(0, text(300))
    filled.cache.save(0, text(0))
    beginning = filled.cache.match(text(0))
    assert len(beginning.places) == 2
    filled.cache.load(1, beginning)
    assert torch.equal(filled.first(1, 2 * BLOCK), -torch.arange(2.0 * BLOCK))


def test_a_text_that_grows_is_kept_once() -> None:
    filled = Filled(20)
    for length in (20, 40, 80):
        filled.cache.save(0, text(0, length))
    assert len(filled.cache) == 5


@pytest.mark.parametrize("blocks", [0, 4])
def test_a_cache_of_nothing_or_cleared_finds_nothing(blocks: int) -> None:
    filled = Filled(blocks)
    filled.cache.save(0, text(0))
    filled.cache.clear()
    assert filled.cache.match(text(0)).tokens == 0
    assert (len(filled.cache), filled.cache.usage) == (0, 0.0)
