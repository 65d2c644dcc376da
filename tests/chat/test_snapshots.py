"""Snapshots of states: what a text begins with is exactly what was computed of it, and conversations go on there."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from chat.blocks_kit import CACHES
from chat.engine_kit import Heard, ask, started, submit, tiny_path, tiny_spec, tokenizer
from chat.test_engine_equality import cached, generate, greedy, said
from quintet_chat.engine import snapshots
from quintet_chat.engine.engine import ChatEngine
from quintet_chat.engine.prefix import BLOCK, Room, room_in
from quintet_chat.engine.snapshots import LEAST, StatePrefixCache, prefix_cache
from quintet_common.models_yml import ModelSpec
from quintet_common.worker.host import LoadError

LENGTH = 128
BEGIN = [3 + 7 * number % 250 for number in range(100)]


class Filled:
    """Slots whose keys are their tokens, and whose states are the sum and the last of them."""

    def __init__(self, room: Room, cache: str = "pages") -> None:
        self.slots = CACHES[cache](3, 3, 256, 1 << 14, recurrent={1})
        self.slots.reserve([256] * 3)
        made = prefix_cache(self.slots, room)
        assert isinstance(made, StatePrefixCache)
        self.cache = made

    def fill(self, row: int, text: list[int]) -> None:
        self.slots.plan = self.slots.prefill(row, [0], [len(text)], fresh=False)
        keys = torch.tensor(text, dtype=torch.float32)[None, None, :, None].expand(1, 2, len(text), 4)
        self.slots.layers[0].update(keys, -keys)
        self.slots.layers[2].update(2 * keys, keys)
        state = self.slots.layers[1]
        state.update_conv_state(torch.full((1, 4, 1), float(text[-1])), conv_kernel_size=3)
        state.update_recurrent_state(torch.full((1, 5), float(sum(text))))

    def keep(self, row: int, text: list[int]) -> None:
        self.fill(row, text)
        self.cache.snapshot(row, text)

    def load(self, row: int, text: list[int]) -> int:
        """How much of ``text`` is known; what was loaded is just that."""
        self.fill(row, [1000] * 40)
        known = self.cache.load(row, self.cache.match(text))
        if known:
            begin = torch.tensor(text[:known], dtype=torch.float32)
            for layer, scale in ((0, 1), (2, 2)):
                keys, values = self.slots.layers[layer].read(row, 0, known)
                assert torch.equal(keys[:, 1, 0], scale * begin)
                assert torch.equal(values[:, 0, 3], begin * (-1 if layer == 0 else 1))
            states = self.slots.layers[1].take(row)
            assert states["recurrent", 0][0] == begin.sum()
            assert states["conv", 0][0].tolist() == [0, 0, begin[-1]]
        return known


@pytest.mark.parametrize("cache", CACHES)
def test_a_text_begins_behind_the_longest_snapshot_that_leaves_a_token(cache: str) -> None:
    filled = Filled(Room(64, 8), cache)
    filled.keep(0, BEGIN[:48])
    filled.keep(0, BEGIN[:85])
    assert filled.load(1, BEGIN) == 85
    assert filled.load(1, BEGIN[:85]) == 48
    assert filled.load(2, [*BEGIN[:80], 7, 7, 7, 7, 7, 7]) == 48
    assert filled.load(2, BEGIN[:48]) == 0
    assert filled.load(2, [7, *BEGIN]) == 0


def test_a_snapshot_outlives_the_slots() -> None:
    filled = Filled(Room(64, 8))
    filled.keep(0, BEGIN[:50])
    filled.slots.release()
    filled.slots.reserve([256] * 3)
    beginning = filled.cache.match(BEGIN)
    assert filled.cache.load(2, beginning) == 50
    assert filled.slots.layers[1].take(2)["recurrent", 0][0] == sum(BEGIN[:50])


def test_none_is_taken_that_saves_less_than_a_copy_is_worth() -> None:
    filled = Filled(Room(64, 8))
    filled.keep(0, BEGIN[: LEAST - 1])
    assert filled.load(1, BEGIN) == 0
    filled.keep(0, BEGIN[:LEAST])
    filled.keep(0, BEGIN[: LEAST + 31])
    assert filled.load(1, BEGIN) == LEAST


def test_the_least_lately_used_go_first_and_those_whose_blocks_went() -> None:
    texts = [[200 + number, *BEGIN[:49]] for number in range(4)]
    filled = Filled(Room(64, 2))
    for text in texts[:2]:
        filled.keep(0, text)
    filled.load(1, [*texts[0], 5])
    filled.keep(0, texts[2])
    assert [filled.load(1, [*text, 5]) for text in texts] == [50, 0, 50, 0]
    filled = Filled(Room(6, 3))
    for text in texts[:3]:
        filled.keep(0, text)
    assert [filled.load(1, [*text, 5]) for text in texts] == [0, 50, 50, 0]


@pytest.mark.parametrize("seed", range(4))
def test_whatever_is_kept_and_forgotten_a_text_begins_with_its_own(seed: int) -> None:
    chooser = random.Random(seed)
    filled, hits = Filled(Room(chooser.randrange(8, 40), chooser.randrange(2, 8))), 0
    for _ in range(300):
        text = [*BEGIN[: 30 * chooser.randrange(4)], *[chooser.randrange(2)] * 60][: chooser.randrange(1, LENGTH)]
        if chooser.random() < 0.5:
            filled.keep(chooser.randrange(3), text)
        else:
            hits += filled.load(chooser.randrange(3), [*text, 5]) > 0
    assert hits > 10


def test_a_prefill_stops_where_texts_part_and_before_the_end() -> None:
    filled = Filled(Room(64, 8))
    assert filled.cache.cuts(100, filled.cache.match(BEGIN)) == [80]
    assert filled.cache.cuts(40, filled.cache.match(BEGIN[:40])) == []
    filled.fill(0, BEGIN)
    filled.cache.save(0, BEGIN)
    other = [*BEGIN[:50], *[9] * 78]
    assert filled.cache.cuts(128, filled.cache.match(other)) == [48, 112]
    filled.keep(0, BEGIN[:48])
    assert filled.cache.cuts(128, filled.cache.match(other)) == [112]


def test_few_are_kept_within_prompts_and_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshots, "APART", 32)
    filled = Filled(Room(64, 8))
    for text in ([9, *BEGIN[:59]], [8, *BEGIN[:59]]):
        filled.keep(0, text)
    for first in (BEGIN, [7, *BEGIN], [6, *BEGIN]):
        text = [*first, 1, 2, 3]
        for done in range(10, 101, 10):
            filled.fill(1, text[:done])
            filled.cache.on_the_way(1, text, done - 10, done)
        assert filled.load(2, text[:100]) == 60
    # Two at most: the last has taken the place of the first.
    assert [filled.load(2, text) for text in (BEGIN, [7, *BEGIN])] == [0, 60]
    assert len(filled.cache._snapshots) == 4
    filled = Filled(Room(64, 3))
    filled.fill(1, BEGIN)
    filled.cache.on_the_way(1, BEGIN, 0, 90)
    assert len(filled.cache._snapshots) == 0


def test_memory_is_shared_out_between_states_and_keys() -> None:
    assert room_in(1 << 20, 64, 0) == Room(1024)
    per_row = 100_000
    room = room_in(1 << 20, 64, per_row)
    assert room.snapshots == 7
    assert (room.snapshots * (per_row + BLOCK * 64) + room.blocks * BLOCK * 64) in range((1 << 20) - 1024, 1 << 20)
    assert room_in(100_000, 64, per_row) == Room(0)
    plain = prefix_cache(Filled(Room(9, 1)).slots, Room(0))
    assert plain.match(BEGIN).tokens == 0


# Engines

STATES = ["qwen3_5_text", "granitemoehybrid", "lfm2"]
FIELDS: dict[str, Any] = {"max_batch": 4, "engine_args": {"prefill_chunk": 64}}


def said_by(engine: ChatEngine, tokens: list[int]) -> list[str]:
    return [engine._output._token_text(token)[0] for token in tokens]


@pytest.mark.parametrize("kind", STATES)
def test_requests_with_one_beginning(kind: str) -> None:
    """One after the other the third begins with it; in the queue together all but the first. With n choices, too."""
    inputs = [[*BEGIN[:70], *[100 + number] * 40] for number in range(4)]
    expected = [generate(kind, prompt) for prompt in inputs]
    engine = started(tiny_spec(kind, **FIELDS))
    for prompt, answer, known in zip(inputs, expected, [0, 0, 64, 64], strict=True):
        heard = greedy(engine, prompt)
        assert said(heard) == said_by(engine, answer)
        assert cached(heard) == known
    assert engine.stats()["prefix_cache_hits_total"] == 128
    engine = started(tiny_spec(kind, **FIELDS))
    first = greedy(engine, [5] * 120)  # while it is computed the others come to the queue
    fields = {"temperature": 0, "max_tokens": 20, "ignore_eos": True, "logprobs": 1, "n": 2}
    heards = [submit(engine, prompt, **fields)[1] for prompt in inputs]
    for heard, answer in zip(heards, expected, strict=True):
        assert said(heard) == said(heard, 1) == said_by(engine, answer)
    assert first.wait().error is None
    assert sorted(map(cached, heards)) == [0, 64, 64, 64]


@pytest.mark.parametrize("kind", STATES)
def test_of_two_with_one_document_the_second_goes_on_within_it(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshots, "APART", 128)
    engine = started(tiny_spec(kind, **FIELDS))
    document = [3 + number * number % 250 for number in range(300)]
    for question, known in ((1, 0), (2, 256), (3, 288)):
        prompt = [*document, *[100 + question] * 30]
        heard = greedy(engine, prompt)
        assert said(heard) == said_by(engine, generate(kind, prompt))
        assert cached(heard) == known
    engine.close()


@pytest.mark.parametrize(("kind", "memory"), [("qwen3_5_text", "60KB"), ("nemotron_h", "90KB"), ("falcon_h1", "80KB")])
def test_what_is_evicted_goes_on_where_it_was(kind: str, memory: str) -> None:
    small = {"kv_memory": memory, "prefix_cache": "1MB", "prefill_chunk": 16}
    engine = started(tiny_spec(kind, max_batch=5, engine_args=small))
    inputs = [[40 + number, *BEGIN[: 20 + 6 * number]] for number in range(6)]
    expected = [said_by(engine, generate(kind, prompt, 60)) for prompt in inputs]
    together = [greedy(engine, prompt, 60) for prompt in inputs]
    assert [said(heard) for heard in together] == expected
    assert engine.stats()["preemptions_total"] > 0


THINKS = (
    "{% set roles = messages | map(attribute='role') | list %}{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and 'user' not in roles[loop.index0:] %}"
    "<think>\n{{ m.reasoning_content }}\n</think>\n\n{% endif %}{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)
"""As Qwen3.5's: the answer begins with thoughts, which are gone once the user has said something else."""
ROLES = (
    "{% for m in messages %}<|im_start|>{{ m.role }}<|im_start|>{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant<|im_start|>{% endif %}"
)
"""As Granite 4's: the next turn has all of this one."""


def speaking(folder: Path, kind: str, template: str) -> ChatEngine:
    for file in tiny_path(kind).iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    made = tokenizer()
    made.chat_template = template
    made.save_pretrained(folder)
    return started(ModelSpec(id="tiny", kind="chat", path=str(folder), dtype="float32", device="cpu"))


@pytest.mark.parametrize(("kind", "template"), [("qwen3_5_text", THINKS), ("granitemoehybrid", ROLES)])
def test_each_turn_of_a_conversation_computes_what_is_new(tmp_path: Path, kind: str, template: str) -> None:
    engine, made = speaking(tmp_path, kind, template), tokenizer()
    talk: list[dict[str, Any]] = [{"role": "system", "content": "the cat sat on the mat " * 5}]
    before = 0
    for turn in range(4):
        talk.append({"role": "user", "content": f"{turn} hello world " * 3})
        heard = ask(engine, messages=talk, temperature=0, max_tokens=24, ignore_eos=True)
        length = len(made.apply_chat_template(talk, chat_template=template, add_generation_prompt=True)["input_ids"])
        assert before - 2 * BLOCK < cached(heard) <= length if turn else cached(heard) == 0
        before = length
        talk.append({"role": "assistant", "content": f"the mat {turn} " * 5, "reasoning_content": "hello " * 5})
    # A tool's result comes behind the same thoughts; the answer itself differs from what was generated here.
    talk.append({"role": "tool", "content": "sat"})
    assert cached(ask(engine, messages=talk, temperature=0, max_tokens=2)) > before - 2 * BLOCK
    # An answer that is sent back as it was is not computed again either.
    prompt = [*BEGIN, 3]
    answer = generate(kind, prompt, 40)
    assert said(greedy(engine, prompt, 40)) == said_by(engine, answer)
    following = greedy(engine, [*prompt, *answer, 5, 6])
    assert said(following) == said_by(engine, generate(kind, [*prompt, *answer, 5, 6]))
    assert cached(following) == len(prompt) + 39


def test_too_little_memory_for_one_state_is_told() -> None:
    with pytest.raises(LoadError, match=r"prefix_cache: 0\.\dMB is the least that its states can use"):
        started(tiny_spec("qwen3_5_text", engine_args={"prefix_cache": "20KB"}))
    engine = started(tiny_spec("qwen3_5_text", engine_args={"prefix_cache": "off"}))
    heards: list[Heard] = [greedy(engine, BEGIN).wait() for _ in range(2)]
    assert [cached(heard) for heard in heards] == [0, 0]
    engine.close()
