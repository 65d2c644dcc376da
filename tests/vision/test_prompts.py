"""The cache of encoded prompts: what it saves, what it keeps, and that nobody sees a difference."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from PIL import Image
from quintet_vision.backends.prompts import PromptCache


class Encoder:
    """Encodes like the pipelines do: a row per prompt, padded to the longest, with a mask where ``masked``."""

    def __init__(self, masked: bool = False) -> None:
        self.calls: list[list[str]] = []
        if masked:
            self.encode_prompt = self.encode_masked

    def encode_prompt(self, prompt: Any, negative_prompt: Any = None, image: Any = None) -> Any:  # noqa: ARG002
        self.calls.append(list(prompt))
        prompt[0] += " changed"  # as Z-Image's does
        words = torch.stack([torch.full((4, 2), float(len(text))) for text in negative_prompt or prompt])
        return words, None, torch.zeros(7, 3), list(words)

    def encode_masked(self, prompt: Any, prompt_embeds_mask: Any = None) -> Any:  # noqa: ARG002
        self.calls.append(list(prompt))
        longest = max(map(len, prompt))
        rows = [torch.cat([torch.ones(len(text), 2), torch.zeros(longest - len(text), 2)]) for text in prompt]
        mask = torch.tensor([[1] * len(text) + [0] * (longest - len(text)) for text in prompt])
        return torch.stack(rows), None if mask.all() else mask


def attached(cache: PromptCache, masked: bool = False) -> Encoder:
    pipe = Encoder(masked)
    cache.attach(pipe)
    return pipe


def test_a_prompt_is_encoded_once_and_alone() -> None:
    cache = PromptCache(1 << 20)
    pipe = attached(cache)
    pipe.encode_prompt(["a cat", "a dog"], negative_prompt=["", "blurred"])
    embeds, nothing, positions, rows = pipe.encode_prompt(prompt=["a dog", "a cat"], negative_prompt=["blurred", ""])
    assert pipe.calls == [["a cat"], ["a dog"]]
    assert (cache.hits, cache.misses) == (2, 2)
    assert embeds[:, 0, 0].tolist() == [7, 0]
    assert (nothing, positions.shape, len(rows)) == (None, (7, 3), 2)


def test_everything_that_changes_the_answer_is_part_of_the_key() -> None:
    cache = PromptCache(1 << 20)
    pipe = attached(cache)
    pipe.encode_prompt(["a cat"], negative_prompt=[""])
    pipe.encode_prompt(["a cat"], negative_prompt=["dark"])
    cache.variant = (("ink", 1.0),)
    pipe.encode_prompt(["a cat"], negative_prompt=[""])
    assert cache.misses == 3


def test_the_longest_unused_go_when_the_room_is_full() -> None:
    row = sum(4 * size for size in (8, 21, 8))
    cache = PromptCache(2 * row)
    pipe = attached(cache)
    for prompt in ("a", "b", "a", "c", "a", "b"):
        pipe.encode_prompt([prompt])
    assert [call[0] for call in pipe.calls] == ["a", "b", "c", "b"]
    assert cache.bytes == 2 * row


def test_what_is_larger_than_all_the_room_is_not_kept() -> None:
    cache = PromptCache(10)
    pipe = attached(cache)
    for _ in range(2):
        assert pipe.encode_prompt(["a"])[0].shape == (1, 4, 2)
    assert (cache.bytes, cache.misses) == (0, 2)


def test_prompts_of_different_lengths_are_padded_with_a_mask() -> None:
    pipe = attached(PromptCache(1 << 20), masked=True)
    embeds, mask = pipe.encode_prompt(["abc", "a"])
    assert mask.tolist() == [[1, 1, 1], [1, 0, 0]]
    assert embeds[1, :, 0].tolist() == [1, 0, 0]
    assert pipe.encode_prompt(["abc"])[1] is None


def test_without_a_mask_different_lengths_are_left_to_the_pipeline() -> None:
    class Unmasked:
        calls = 0

        def encode_prompt(self, prompt: list[str]) -> Any:
            self.calls += 1
            longest = max(map(len, prompt))
            return torch.zeros(len(prompt), longest, 2)

    pipe = Unmasked()
    PromptCache(1 << 20).attach(pipe)
    assert pipe.encode_prompt(["abc", "a"]).shape == (2, 3, 2)
    assert pipe.calls == 3


@pytest.mark.parametrize("picture", [Image.new("RGB", (8, 8)), torch.zeros(3)])
def test_prompts_with_pictures_are_not_cached(picture: Any) -> None:
    cache = PromptCache(1 << 20)
    pipe = attached(cache)
    for _ in range(2):
        pipe.encode_prompt(["a"], image=picture)
    assert (len(pipe.calls), cache.misses) == (2, 0)
