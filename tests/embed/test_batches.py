"""Cutting a turn into batches."""

from __future__ import annotations

from typing import NamedTuple

from hypothesis import given
from hypothesis import strategies as st
from quintet_embed.engine.batches import cut


class Text(NamedTuple):
    length: int
    group: int = 0


texts = st.lists(st.builds(Text, st.integers(1, 300), st.sampled_from([0, 0, 3])), max_size=80)


@given(texts, st.integers(1, 2000), st.integers(0, 200), st.integers(1, 64))
def test_every_text_is_in_one_batch_and_every_batch_is_within_its_limits(
    items: list[Text], budget: int, waste: int, most: int
) -> None:
    batches = cut(items, budget, waste, most)
    assert sorted(text for batch in batches for text in batch) == sorted(items)
    for batch in batches:
        longest = max(text.length for text in batch)
        assert len(batch) == 1 or longest * len(batch) <= budget
        assert sum(longest - text.length for text in batch) <= waste
        assert len(batch) <= most
        assert len({text.group for text in batch}) == 1


def test_texts_of_one_length_share_a_batch() -> None:
    assert [len(batch) for batch in cut([Text(10)] * 25, 100, 0, 64)] == [10, 10, 5]


def test_a_long_text_does_not_pad_the_short_ones() -> None:
    assert cut([Text(100), Text(5), Text(5)], 1000, 20, 64) == [[Text(5), Text(5)], [Text(100)]]


def test_nothing_gives_no_batch() -> None:
    assert cut([], 10, 10, 10) == []
