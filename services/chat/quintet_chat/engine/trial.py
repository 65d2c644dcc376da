"""What a device may do with blocks, found out when a model is loaded: each faster way must say what the plain one says.

The plain way gathers blocks for the model's own attention and runs every step anew. FlashAttention over blocks, and
recorded steps, are computed by code that we do not have on every machine; where they fail or say something else they
are not used, and a line in the log says why.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from quintet_chat.engine import flash
from quintet_chat.engine.blocks import BlockCache
from quintet_chat.engine.padded import PaddedDecode
from quintet_chat.engine.runner import FAILURES, Piece

if TYPE_CHECKING:
    from quintet_chat.engine.runner import Runner

log = logging.getLogger("quintet.chat")

WINDOW = 4096
"""The longest attention window that the trial goes beyond."""

_STEPS = 8
"""Tokens that the trial's sequences grow by, or more."""


class _Refused(Exception):
    """It cannot be used; the text says why."""


@torch.inference_mode()
def settle(runner: Runner) -> None:
    """Let ``runner`` read blocks and run decode steps in the fastest ways that work. For slots made of blocks."""
    slots = runner.slots
    if runner.paging is None or not isinstance(slots, BlockCache):
        return
    cells, slots.cells = slots.cells, max(slots.cells, 2 * WINDOW)
    try:
        expected = _say(runner)
    except (_Refused, *FAILURES) as error:
        slots.release()
        log.warning("nothing is tried that would be faster: %s.", _reason(error))
    else:
        if runner.paging.kernel is not None:
            _try("attention does not read blocks by FlashAttention", runner, _use_flash, expected)
        # What only pads a step would change the states of the slots that it stands for.
        if runner.paging.record is not None and slots.resumable:
            _try("decode steps are not recorded", runner, _use_records, expected)
    finally:
        slots.cells = cells


def _try(
    without: str, runner: Runner, use: Callable[[Runner], Callable[[], None]], expected: list[torch.Tensor]
) -> None:
    """Let ``use`` change the runner, and change it back unless it says what was ``expected``."""

    def undo() -> None:
        """Nothing was changed."""

    try:
        undo = use(runner)
        if not _alike(runner, _say(runner), expected):
            raise _Refused("it says something else")
        if runner.padded is not None and not runner.padded.works:
            raise _Refused("a step cannot be recorded")
    except (_Refused, *FAILURES) as error:
        undo()
        runner.slots.release()  # what it left there may be no numbers
        log.warning("%s: %s.", without, _reason(error))


def _reason(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200].removesuffix(".")


def _use_flash(runner: Runner) -> Callable[[], None]:
    slots, config = runner.slots, runner.config
    assert runner.paging is not None
    assert runner.paging.kernel is not None
    assert isinstance(slots, BlockCache)
    if config._attn_implementation != flash.PLAIN:
        raise _Refused(f"the model's attention is {config._attn_implementation!r}")
    if config.sub_configs or runner.mutual or "chunked_attention" in runner.layer_types:
        raise _Refused("the model's attention is not plain causal attention, of all tokens or of a window")
    kinds = [kind for layer in slots.layers for kind in getattr(layer, "kinds", [])]
    if any(kind.size % 8 or kind.size != kinds[0].size for kind in kinds):
        raise _Refused("keys and values are of a size that it does not read")
    slots.flash = flash.Flash(runner.paging.kernel, runner.windows)
    config._attn_implementation = flash.NAME

    def undo() -> None:
        slots.flash = None
        config._attn_implementation = flash.PLAIN

    return undo


def _use_records(runner: Runner) -> Callable[[], None]:
    assert runner.paging is not None
    assert runner.paging.record is not None
    assert isinstance(runner.slots, BlockCache)
    runner.padded = PaddedDecode(runner.step, runner.slots, runner.device, runner.paging.record)

    def undo() -> None:
        runner.padded = None

    return undo


def _alike(runner: Runner, said: list[torch.Tensor], expected: list[torch.Tensor]) -> bool:
    ours, plain = (logits - logits.mean(-1, keepdim=True) for logits in (torch.cat(said), torch.cat(expected)))
    return bool((torch.cosine_similarity(ours, plain) > runner.least_likeness).all())


def _say(runner: Runner) -> list[torch.Tensor]:
    """Logits of passes of every kind: prompts and pieces of them, steps of several slots, over borders of blocks."""
    slots = runner.slots
    assert isinstance(slots, BlockCache)
    block, most = slots.table.block, slots.longest - 2 * _STEPS
    window = max(window if window <= WINDOW else 0 for window in runner.windows)
    lengths = [min(length, most) for length in (max(2 * block + 3, window + 3), block - 1, 5)][: slots.max_rows]
    prompts = [[1 + (row + i * i) % 9 for i in range(length)] for row, length in enumerate(lengths)]
    cuts = [max(length // 2, 1) for length in lengths]
    slots.rest()
    if not slots.reserve([length + _STEPS for length in lengths]):
        raise _Refused("there is no memory for a trial")
    said = [runner.prefill(0, [Piece(0, prompt[:cut]) for prompt, cut in zip(prompts, cuts, strict=True)])]
    said += [runner.prefill(0, [Piece(cut, prompt[cut:]) for prompt, cut in zip(prompts, cuts, strict=True)])]
    positions = list(lengths)

    def step(rows: int) -> None:
        tokens = [1 + (position + row) % 9 for row, position in enumerate(positions[:rows])]
        said.append(runner.decode(tokens, positions[:rows]).clone())
        positions[:rows] = [position + 1 for position in positions[:rows]]

    step(len(lengths))
    step(len(lengths))
    step(1)
    if len(lengths) > 1:
        # The same shape over another table, with blocks that two slots have.
        slots.free(1)
        slots.reserve([positions[0] + 4] * 2)
        slots.copy(0, 1, positions[0])
        positions[1:] = positions[:1]
        step(2)
        step(2)
    slots.rest()
    return said
