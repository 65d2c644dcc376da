"""Forward passes: prefill of prompts and decode steps over the slots, as logits of each sequence's next token."""

from __future__ import annotations

import inspect
from typing import Any, NamedTuple

import torch

from quintet_chat.engine.padded import PaddedDecode
from quintet_chat.engine.pictures import Picture, Pictures
from quintet_chat.engine.slots import Decode, Prefill, SlotCache, whole

LIKENESS, LIKENESS_FLOAT32 = 0.98, 0.9999
"""Least cosine between two logit vectors that are the same but for rounding; in bfloat16 it is about 0.999."""

_FAILURES = (RuntimeError, ValueError, TypeError, AttributeError, LookupError)

Mask = torch.Tensor | dict[str, torch.Tensor] | None


class UnsupportedModel(Exception):
    """The architecture cannot be run by this engine; the text says why."""


class Piece(NamedTuple):
    """What a prefill computes of one sequence: ``tokens`` behind the ``start`` tokens that its slot holds."""

    start: int
    tokens: list[int]
    pictures: Pictures | None = None
    """Of the prompt; those in this piece were looked at."""


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
        self._compare(tokens, None, {"input_ids": torch.tensor([tokens])})

    @torch.inference_mode()
    def check_pictures(self, prompt: list[int], pictures: Pictures, inputs: dict[str, torch.Tensor]) -> None:
        """The same for a prompt with pictures, which are ``inputs`` to the model alone."""
        if "token_type_ids" in inputs or getattr(self._config, "use_bidirectional_attention", None):
            raise UnsupportedModel("a picture's tokens see each other in both directions")
        self._compare(prompt, pictures, inputs)

    def _compare(self, prompt: list[int], pictures: Pictures | None, inputs: dict[str, torch.Tensor]) -> None:
        cut, last = len(prompt) // 2, len(prompt) - 1
        if not self.slots.reserve([len(prompt)]):
            raise UnsupportedModel(f"a picture comes to {len(prompt)} tokens, more than its context")
        try:
            for picture in pictures.each if pictures else []:
                self.look(picture)
            self.prefill(0, [Piece(0, prompt[:cut], pictures)])
            extended = self.prefill(0, [Piece(cut, prompt[cut:last], pictures)])
            decoded = self.decode(prompt[last:], [last], [pictures.shift if pictures else 0])
            given = {name: value.to(self.device) for name, value in inputs.items()}
            alone = self._model(**given, use_cache=False).logits[0, -2:]
        except _FAILURES as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise UnsupportedModel(f"it does not run over slots of keys and values ({reason})") from error
        ours = torch.cat([extended, decoded])
        likeness = torch.cosine_similarity(ours - ours.mean(), alone.float() - alone.float().mean())
        least = LIKENESS_FLOAT32 if self._dtype == torch.float32 else LIKENESS
        if not bool((likeness > least).all()):
            raise UnsupportedModel("over slots of keys and values it does not say what it says alone")

    @torch.inference_mode()
    def look(self, picture: Picture) -> None:
        """Run the vision tower over a picture. Raises RuntimeError, above all where its memory does not suffice."""
        features = {name: value.to(self.device) for name, value in picture.features.items()}
        found = self._model.get_image_features(**features, return_dict=True)
        if getattr(found, "deepstack_features", None) is not None:
            raise UnsupportedModel("it shows them to its inner layers, too")
        seen = torch.cat([each.flatten(0, -2) for each in found.pooler_output])
        if len(seen) != len(picture.where):
            raise RuntimeError(f"{len(seen)} features of a picture stand for {len(picture.where)} tokens")
        picture.seen = seen.to(self.device, self._dtype)

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
        if not any(piece.pictures for piece in pieces):
            return self._forward({"input_ids": ids}, positions, mask, last.to(self.device))
        return self._forward(self._shown(ids, pieces), _places(positions, pieces), mask, last.to(self.device))

    def _shown(self, ids: torch.Tensor, pieces: list[Piece]) -> dict[str, torch.Tensor]:
        """The model's input for ``ids`` [pieces, tokens] with pictures among them: what it is shown at each token."""
        shown = [
            (row, where, seen)
            for row, piece in enumerate(pieces)
            if piece.pictures is not None
            for where, seen in piece.pictures.parts(piece.start, piece.start + len(piece.tokens))
        ]
        for row, where, _ in shown:
            ids[row, where] = 0  # some models have no embedding for the token of a picture
        embedded = self._model.get_input_embeddings()(ids.to(self.device))
        for row, where, seen in shown:
            embedded[row, where.to(self.device)] = seen
        return {"inputs_embeds": embedded}

    @torch.inference_mode()
    def decode(self, tokens: list[int], positions: list[int], shifts: list[int] | None = None) -> torch.Tensor:
        """One token each for the slots 0..n-1; float32 logits [n, vocabulary].

        ``positions`` are where they lie in their slots; the model takes them to be ``shifts`` further.
        """
        if self.padded is not None and (logits := self.padded(tokens, positions, shifts)) is not None:
            return logits
        where = torch.tensor(positions, device=self.device)
        length = whole(max(positions) + 1, self.slots.capacity)
        self.slots.plan = Decode(where, length)
        places = where if shifts is None else where + torch.tensor(shifts, device=self.device)
        return self._step(torch.tensor(tokens)[:, None], where[:, None], length, places[:, None])

    def _step(self, ids: torch.Tensor, positions: torch.Tensor, length: int, places: torch.Tensor) -> torch.Tensor:
        """A decode step behind the plan that is set, attending to ``length`` keys."""
        return self._forward({"input_ids": ids}, places, self._mask(positions, length), 1)

    def _forward(
        self, shown: dict[str, torch.Tensor], places: torch.Tensor, mask: Mask, keep: int | torch.Tensor
    ) -> torch.Tensor:
        output = self._model(
            **{name: value.to(self.device) for name, value in shown.items()},
            position_ids=places.to(self.device),
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


def _places(positions: torch.Tensor, pieces: list[Piece]) -> torch.Tensor:
    """What the model takes ``positions`` [pieces, tokens] to be: the same shape, or [3, pieces, tokens]."""
    rows = [positions[row] for row in range(len(pieces))]
    for row, piece in enumerate(pieces):
        if piece.pictures is not None:
            rows[row] = piece.pictures.places(piece.start, positions.shape[1])
    if any(row.ndim > 1 for row in rows):
        rows = [row.expand(3, -1) for row in rows]
    return torch.stack(rows, dim=-2)


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
