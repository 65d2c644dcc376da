"""States of layers with a recurrence: one per slot, counted as memory, gone on with by their own sequence."""

from __future__ import annotations

import pytest
import torch
from chat.blocks_kit import CACHES
from chat.engine_kit import Heard, started, submit, tiny_spec
from quintet_chat.engine.slots import Decode, Prefill, SlotCache
from quintet_chat.engine.states import StateLayer

CHANNELS, KERNEL = 4, 3


def slots_with_state(cells: int, cache: str = "pages") -> SlotCache:
    """A layer with keys and values, 64 bytes a token, and one with a state of 6,448 bytes: as much as 101 tokens."""
    slots = CACHES[cache](2, 4, 1024, cells, recurrent={0})
    assert slots.reserve([1])
    fill(slots, 0)
    return slots


def fill(slots: SlotCache, row: int) -> None:
    """One token of a new sequence."""
    slots.plan = Prefill(row, [0], [1], None)
    state, keys = slots.layers
    state.update_conv_state(torch.full((1, CHANNELS, 1), row + 1.0), conv_kernel_size=KERNEL)
    state.update_recurrent_state(torch.full((1, 40, 40), row + 1.0))
    keys.update(torch.ones((1, 1, 1, 8)), torch.ones((1, 1, 1, 8)))


@pytest.mark.parametrize("cache", CACHES)
def test_a_state_counts_as_the_tokens_whose_memory_it_takes(cache: str) -> None:
    slots = slots_with_state(1024, cache)
    assert (slots.bytes_per_token, slots.bytes_per_row, slots.cells_per_row) == (64, 6448, 101)
    assert slots.reserve([100] * 2)
    assert not slots.reserve([200] * 4)
    slots.cells += 4 * 101
    assert slots.reserve([200] * 4)


@pytest.mark.parametrize("cache", CACHES)
def test_states_are_kept_when_slots_grow_and_go_with_a_copy(cache: str) -> None:
    slots = slots_with_state(4096, cache)
    layer = slots.layers[0]
    assert slots.reserve([1, 1])
    fill(slots, 1)
    assert slots.reserve([300, 300, 300])
    slots.copy(1, 2, 1)
    slots.plan = Decode(torch.tensor([1, 1, 1]), 16)
    assert layer.recurrent_states[0][:, 0, 0].tolist() == [1, 2, 2]
    assert layer.conv_states[0][:, 0].tolist() == [[0, 0, 1], [0, 0, 2], [0, 0, 2]]
    slots.release()
    assert slots.held == 0


def test_the_last_inputs_of_a_convolution_are_kept() -> None:
    slots = slots_with_state(1024)
    layer = slots.layers[0]
    assert isinstance(layer, StateLayer)
    piece = torch.arange(CHANNELS * 2.0).view(1, CHANNELS, 2)
    slots.plan = Prefill(0, [1], [2], 64)
    assert layer.has_previous_state[0]
    whole = layer.update_conv_state(piece)
    assert whole[0, 0].tolist() == [0, 0, 1, 0, 1]
    assert layer.conv_states[0][0, 0].tolist() == [1, 0, 1]
    slots.plan = Prefill(0, [0], [2], 64)
    assert not layer.has_previous_state[0]
    assert layer.update_conv_state(piece)[0, 0].tolist() == [0, 0, 1]


@pytest.mark.parametrize("kind", ["qwen3_5_text", "nemotron_h"])
def test_choices_share_the_prompt_and_go_on_by_themselves(kind: str) -> None:
    engine = started(tiny_spec(kind, max_batch=4, engine_args={"prefill_chunk": 16}))
    prompt = [3 + 7 * number % 250 for number in range(40)]

    def ask(choices: int) -> Heard:
        return submit(engine, prompt, n=choices, temperature=1, seed=5, max_tokens=12, ignore_eos=True)[1]

    alone = ask(1).wait().text()
    together = ask(3).wait()
    assert together.text(0) == alone
    assert len({together.text(index) for index in range(3)}) == 3
    engine.close()


def test_a_model_whose_state_leaves_little_room_says_the_context_that_it_has() -> None:
    """What one sequence may come to fits beside its state: else it would wait forever."""
    engine = started(tiny_spec("qwen3_5_text", max_batch=2, engine_args={"kv_memory": "80KB"}))
    runner = engine._scheduler._runner
    context = engine.info["context"]  # type: ignore[attr-defined]
    assert context < 512
    heard = submit(engine, [5] * (context - 2), max_tokens=2, ignore_eos=True, temperature=0)[1].wait()
    assert heard.tokens() == 2
    assert runner.slots.reserve([context])
    engine.close()
