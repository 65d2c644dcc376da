"""Forward passes: prefill of prompts and decode steps over the slots, as logits of each sequence's next token."""

from __future__ import annotations

import inspect
from typing import Any, NamedTuple

import torch

from quintet_chat.engine.padded import PaddedDecode
from quintet_chat.engine.slots import Decode, Prefill, SlotCache, whole

LIKENESS = 0.98
"""Least cosine between two logit vectors that are the same but for rounding; in bfloat16 it is about 0.999."""

_FAILURES = (RuntimeError, ValueError, TypeError, AttributeError, LookupError)

Mask = torch.Tensor | dict[str, torch.Tensor] | None


class UnsupportedModel(Exception):
    """The architecture cannot be run by this engine; the text says why."""


class Piece(NamedTuple):
    """What a prefill computes of one sequence: ``tokens`` behind the ``start`` tokens that its slot holds.

    Whatever else a model is told of a prompt (pictures, positions of several dimensions) enters here.
    """

    start: int
    tokens: list[int]


class Runner:
    """A model, its slots and its masks. All methods are for one thread.

    ``longest`` limits the tokens of a slot, ``cells`` those of all.
    """

    def __init__(self, model: Any, max_rows: int, longest: int, cells: int) -> None:
        self._model = model
        self._config = model.config.get_text_config()
        self.device: torch.device = model.get_input_embeddings().weight.device
        self._dtype = model.dtype
        self._layer_types = _layer_types(self._config)
        self._window: int = getattr(self._config, "sliding_window", None) or 0
        self._additive = self._config._attn_implementation == "eager"
        _check(model)
        paged = self.device.type == "cpu"
        self.slots = SlotCache(self._config.num_hidden_layers, max_rows, longest, cells, paged=paged)
        self.padded: PaddedDecode | None = None
        """Decode steps as CUDA graphs, where the whole model is on one GPU."""
        if self.device.type == "cuda" and len({parameter.device for parameter in model.parameters()}) == 1:
            self.padded = PaddedDecode(self._step, self.slots, self.device)

    @torch.inference_mode()
    def check(self) -> None:
        """Compute nine tokens in the three ways of this engine and by the model alone.

        Raises UnsupportedModel when it fails or says something else: a model with a memory of its own, for example.
        """
        tokens = list(range(1, 10))
        self.slots.reserve([16])
        try:
            self.prefill(0, [Piece(0, tokens[:5])])
            extended = self.prefill(0, [Piece(5, tokens[5:8])])
            decoded = self.decode(tokens[8:], [8])
            alone = self._model(input_ids=torch.tensor([tokens], device=self.device), use_cache=False).logits[0, -2:]
        except _FAILURES as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise UnsupportedModel(f"it does not run over slots of keys and values ({reason})") from error
        ours = torch.cat([extended, decoded])
        likeness = torch.cosine_similarity(ours - ours.mean(), alone.float() - alone.float().mean())
        if not bool((likeness > LIKENESS).all()):
            raise UnsupportedModel("over slots of keys and values it does not say what it says alone")

    @torch.inference_mode()
    def prefill(self, row: int, pieces: list[Piece]) -> torch.Tensor:
        """Compute pieces of prompts into the slots from ``row`` on, which must be reserved.

        Returns float32 logits [len(pieces), vocabulary] of the token after each piece.
        """
        starts, counts = [piece.start for piece in pieces], [len(piece.tokens) for piece in pieces]
        widest = max(counts)
        ids = torch.tensor([piece.tokens + [0] * (widest - len(piece.tokens)) for piece in pieces])
        last = torch.tensor([[count - 1] for count in counts])
        positions = torch.tensor(starts)[:, None] + torch.arange(widest)
        # Whole prompts need no mask, which is faster on a GPU. On a CPU prompts are always computed with one: then the
        # same prompt gives the same bits whole, in pieces, and behind a beginning that was known.
        fresh = not max(starts) and self.device.type != "cpu"
        self.slots.plan = plan = Prefill(row, starts, counts, None if fresh else self.slots.capacity)
        mask = None if fresh else self._mask(positions, plan.length)
        return self._forward(ids, positions, mask, last.to(self.device))

    @torch.inference_mode()
    def decode(self, tokens: list[int], positions: list[int]) -> torch.Tensor:
        """One token each for the slots 0..n-1; float32 logits [n, vocabulary]."""
        if self.padded is not None and (logits := self.padded(tokens, positions)) is not None:
            return logits
        where = torch.tensor(positions, device=self.device)
        length = whole(max(positions) + 1, self.slots.capacity)
        self.slots.plan = Decode(where, length)
        return self._step(torch.tensor(tokens)[:, None], where[:, None], length)

    def _step(self, ids: torch.Tensor, positions: torch.Tensor, length: int) -> torch.Tensor:
        """A decode step behind the plan that is set, attending to ``length`` keys."""
        return self._forward(ids, positions, self._mask(positions, length), 1)

    def _forward(
        self, ids: torch.Tensor, positions: torch.Tensor, mask: Mask, keep: int | torch.Tensor
    ) -> torch.Tensor:
        output = self._model(
            input_ids=ids.to(self.device),
            position_ids=positions.to(self.device),
            past_key_values=self.slots.cache,
            attention_mask=mask,
            use_cache=True,
            logits_to_keep=keep,
        )
        logits: torch.Tensor = output.logits[:, -1].float()
        return logits

    def _mask(self, positions: torch.Tensor, length: int) -> Mask:
        """What each query at ``positions`` [batch, queries] sees of ``length`` keys: [batch, 1, queries, length]."""
        keys = torch.arange(length, device=positions.device)
        causal = keys <= positions[:, :, None]
        masks = {}
        for kind in self._layer_types:
            seen = causal if kind == "full_attention" else causal & (keys > positions[:, :, None] - self._window)
            masks[kind] = self._finished(seen[:, None])
        return next(iter(masks.values())) if len(masks) == 1 else masks

    def _finished(self, seen: torch.Tensor) -> torch.Tensor:
        """A mask in the form the attention implementation takes: booleans, or numbers to add."""
        if not self._additive:
            return seen.to(self.device)
        hidden = torch.zeros(seen.shape, dtype=self._dtype, device=seen.device).masked_fill(
            ~seen, torch.finfo(self._dtype).min
        )
        return hidden.to(self.device)


def _check(model: Any) -> None:
    """Raise UnsupportedModel for a model whose state is more than keys and values per token."""
    if getattr(model, "_is_stateful", False):
        raise UnsupportedModel("it keeps a recurrent state, not keys and values per token")
    missing = {"position_ids", "past_key_values", "logits_to_keep"} - inspect.signature(model.forward).parameters.keys()
    if missing:
        raise UnsupportedModel(f"its forward pass takes no {', '.join(sorted(missing))}")


def _layer_types(config: Any) -> list[str]:
    """The kinds of attention that the model's layers have, each once. Raises UnsupportedModel for what is none."""
    types = getattr(config, "layer_types", None)
    if types is None:
        sliding = getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True)
        types = ["sliding_attention" if sliding else "full_attention"]
    kinds = sorted(set(types))
    other = [kind for kind in kinds if kind not in ("full_attention", "sliding_attention")]
    if other:
        raise UnsupportedModel(f"it has layers of the kind {other[0]!r}, which keep no keys and values per token")
    return kinds
