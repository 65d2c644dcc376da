"""Forward passes: prefill of prompts and decode steps over the slots, as logits of each sequence's next token."""

from __future__ import annotations

import inspect
from typing import Any, NamedTuple

import torch

from quintet_chat.engine import flash
from quintet_chat.engine.blocks import BlockCache, BlockPlan
from quintet_chat.engine.padded import PaddedDecode
from quintet_chat.engine.paging import Paging
from quintet_chat.engine.picture_input import PictureInput, Shown
from quintet_chat.engine.pictures import Picture, Pictures, mutual_layers
from quintet_chat.engine.slots import QUERIES, DecodePlan, SlotCache
from quintet_chat.engine.temperature import scale_by_own_places

LIKENESS, LIKENESS_FLOAT32 = 0.98, 0.9999
"""Least cosine between two logit vectors that are the same but for rounding; in bfloat16 it is about 0.999."""

FAILURES = (RuntimeError, ValueError, TypeError, AttributeError, LookupError)

INDEXED = "indexed_attention"
ATTENTION = {"full_attention", "sliding_attention", "chunked_attention", INDEXED}
RECURRENT = {"linear_attention", "conv"}
FORGETFUL = {"mlp", "moe"}
HYBRID = {"hybrid": ["full_attention", "linear_attention"]}
"""Kinds of layers: those that read keys and values, those that keep a state, those that keep nothing, and those that
are of two kinds."""

Mask = torch.Tensor | dict[str, torch.Tensor | None] | None


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

    ``longest`` limits the tokens of a slot, ``cells`` those of all. Slots are made of blocks if there is ``paging``,
    which is chosen by the device unless it is given.
    """

    def __init__(self, model: Any, max_rows: int, longest: int, cells: int, paging: Paging | None = None) -> None:
        self._model = model
        self.config = model.config.get_text_config()
        embeddings: torch.device = model.get_input_embeddings().weight.device
        first = getattr(getattr(model, "_hf_hook", None), "execution_device", None)
        self._first_device = embeddings if first is None else torch.device(first)
        """Where the model's own code begins. A vision tower may be elsewhere than the embeddings."""
        # What is offloaded is fetched to the first device.
        self.device = self._first_device if embeddings.type == "meta" else embeddings
        self._spread = len({parameter.device for parameter in model.parameters()}) > 1
        """Whether it is on several devices: accelerate hands what it is called with to the first of them."""
        self._dtype = model.dtype
        self.layer_types = _layer_types(self.config)
        self._window: int = getattr(self.config, "sliding_window", None) or 0
        self._attention_chunk: int = getattr(self.config, "attention_chunk_size", None) or 0
        self._additive = self.config._attn_implementation == "eager"
        self.mutual = mutual_layers(model)
        _check(model)
        scale_by_own_places(model)
        self._picture_input = PictureInput(model, self.device)
        self.paging = paging or Paging.of(model, self.device)
        self.slots = self._new_slots(max_rows, longest, cells)
        self.padded: PaddedDecode | None = None
        """Decode steps as CUDA graphs, once it was seen that they work."""

    def _new_slots(self, max_rows: int, longest: int, cells: int) -> SlotCache:
        types = getattr(self.config, "layer_types", None) or []
        recurrent = {layer for layer, kind in enumerate(types) if kind in RECURRENT}
        hybrid = {layer for layer, kind in enumerate(types) if kind in HYBRID}
        layers = self.config.num_hidden_layers
        if self.paging is None:
            return SlotCache(layers, max_rows, longest, cells, recurrent=recurrent, hybrid=hybrid)
        block = self.paging.block
        return BlockCache(layers, max_rows, longest, cells, block=block, recurrent=recurrent, hybrid=hybrid)

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
        self._compare(prompt, pictures, inputs)

    def _compare(self, prompt: list[int], pictures: Pictures | None, inputs: dict[str, torch.Tensor]) -> None:
        cut, last = len(prompt) // 2, len(prompt) - 1
        if pictures is not None:
            cut = pictures.end_of_piece(0, cut)
        if not self.slots.reserve([len(prompt)]):
            raise UnsupportedModel(f"a picture comes to {len(prompt)} tokens, more than its context")
        try:
            for picture in pictures.each if pictures else []:
                self.look(picture)
            self.prefill(0, [Piece(0, prompt[:cut], pictures)])
            extended = self.prefill(0, [Piece(cut, prompt[cut:last], pictures)])
            decoded = self.decode(prompt[last:], [last], [pictures.shift if pictures else 0])
            given = {name: value.to(self.device) for name, value in inputs.items()}
            with flash.plainly(self.config):
                alone = self._model(**given, use_cache=False).logits[0, -2:]
        except FAILURES as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise UnsupportedModel(f"it does not run over slots of keys and values ({reason})") from error
        if self._alike(torch.cat([extended, decoded]), alone):
            return
        if (
            pictures is None
            and not self._quantised
            and self._alike(self.prefill(0, [Piece(0, prompt[:last])]), alone[:1])
        ):
            raise UnsupportedModel("of a prompt in pieces it forgets what was before each")
        raise UnsupportedModel("over slots of keys and values it does not say what it says alone")

    def _alike(self, ours: torch.Tensor, alone: torch.Tensor) -> bool:
        likeness = torch.cosine_similarity(ours - ours.mean(), alone.float() - alone.float().mean())
        return bool((likeness > self.least_likeness).all())

    @property
    def least_likeness(self) -> float:
        """The least cosine between two of its logit vectors that are the same but for rounding."""
        # Layers that are quantised may take a token otherwise among others: int8 does with outliers.
        rounds = self._dtype != torch.float32 or self._quantised
        return LIKENESS if rounds else LIKENESS_FLOAT32

    @property
    def _quantised(self) -> bool:
        return getattr(self._model, "hf_quantizer", None) is not None

    @property
    def windows(self) -> list[int]:
        """Of each layer the keys that a token sees, with its own; 0 for all before it."""
        layers = self.config.num_hidden_layers
        kinds = getattr(self.config, "layer_types", None) or self.layer_types * layers
        return [self._window if kind == "sliding_attention" else 0 for kind in kinds[:layers]]

    @property
    def reading(self) -> str:
        """What attention is computed by: ``flash over blocks``, or what transformers calls it."""
        flashes = isinstance(self.slots, BlockCache) and self.slots.flash is not None
        return "flash over blocks" if flashes else str(self.config._attn_implementation)

    @torch.inference_mode()
    def look(self, picture: Picture) -> None:
        """Run the vision tower over a picture. Raises RuntimeError, above all where its memory does not suffice."""
        features = {name: value.to(self._first_device) for name, value in picture.features.items()}
        alone = len(picture.where) == 1
        if alone:  # transformers takes Mistral 3's one row for a batch of one, so it sees the picture twice
            features = {name: torch.cat([value, value]) for name, value in features.items()}
        found = self._model.get_image_features(**features, return_dict=True)
        layers = [found.pooler_output, *(getattr(found, "deepstack_features", None) or [])]
        seen = torch.stack([torch.cat([each.flatten(0, -2) for each in layer]).to(self.device) for layer in layers])
        seen = seen[:, : seen.shape[1] // 2] if alone else seen
        if seen.shape[1] != len(picture.where):
            raise RuntimeError(f"{seen.shape[1]} features of a picture stand for {len(picture.where)} tokens")
        picture.seen = seen.to(self._dtype)

    @torch.inference_mode()
    def prefill(self, row: int, pieces: list[Piece]) -> torch.Tensor:
        """Compute pieces of prompts into the slots from ``row`` on, which must be reserved.

        Returns float32 logits [len(pieces), vocabulary] of the token after each piece.
        """
        if len(pieces) > 1 and not self._together(pieces):
            return torch.cat([self.prefill(row + index, [piece]) for index, piece in enumerate(pieces)])
        starts, counts = [piece.start for piece in pieces], [len(piece.tokens) for piece in pieces]
        widest = max(counts)
        if self.slots.paged and self.slots.resumable:
            widest = -(-widest // QUERIES) * QUERIES
        ids = torch.tensor([piece.tokens + [0] * (widest - len(piece.tokens)) for piece in pieces])
        # Places would have to be where the last layer is.
        keep = 1 if self._spread else torch.tensor([[count - 1] for count in counts]).to(self.device)
        # What pads a piece may lie behind the context, where some models know no position.
        positions = (torch.tensor(starts)[:, None] + torch.arange(widest)).clamp(max=self.slots.longest - 1)
        # Whole prompts need no mask, which is faster on a GPU. On a CPU prompts are always computed with one: then the
        # same prompt gives the same bits whole, in pieces, and behind a beginning that was known. Indexers want one.
        with_pictures = any(piece.pictures for piece in pieces)
        reach = _reach(positions, pieces) if with_pictures and self.mutual else None
        fresh = not max(starts) and not self.slots.paged and reach is None and INDEXED not in self.layer_types
        self.slots.plan = plan = self.slots.prefill(row, starts, counts, fresh=fresh)
        mask = None if fresh else self._mask(positions, plan.length, reach)
        if not with_pictures:
            return self._forward({"input_ids": ids.to(self.device)}, positions, mask, keep)
        return self._forward(self._picture_input(ids, _shown(pieces)), _places(positions, pieces), mask, keep)

    def _together(self, pieces: list[Piece]) -> bool:
        """Whether pieces can be computed in one pass."""
        if self._spread:
            return False  # the last token of each is wanted, which is the last of all only where nothing is padded
        if not self.slots.resumable:
            return False  # what pads a shorter piece would enter its state
        longest = max(piece.start + len(piece.tokens) for piece in pieces)
        known = any(piece.start for piece in pieces)
        return not (known and isinstance(self.slots, BlockCache)) or self.slots.at_once(len(pieces), longest)

    @torch.inference_mode()
    def decode(self, tokens: list[int], positions: list[int], shifts: list[int] | None = None) -> torch.Tensor:
        """One token each for the slots 0..n-1; float32 logits [n, vocabulary].

        ``positions`` are where they lie in their slots; the model takes them to be ``shifts`` further.
        """
        if self.padded is not None and (logits := self.padded(tokens, positions, shifts)) is not None:
            return logits
        if isinstance(self.slots, BlockCache) and not self.slots.at_once(len(positions), max(positions) + 1):
            return self._decode_apart(self.slots, tokens, positions, shifts or [0] * len(positions))
        plan = self.slots.decode(positions)
        places = plan.positions if shifts is None else plan.positions + torch.tensor(shifts)
        return self.step(torch.tensor(tokens)[:, None], plan, places[:, None])

    def _decode_apart(
        self, slots: BlockCache, tokens: list[int], positions: list[int], shifts: list[int]
    ) -> torch.Tensor:
        """The same in several passes."""
        groups = slots.apart(positions)
        said = []
        for rows in groups:
            plan = slots.decode([positions[row] for row in rows], rows)
            ids, shift = (torch.tensor([each[row] for row in rows]) for each in (tokens, shifts))
            said.append(self.step(ids[:, None], plan, (plan.positions + shift)[:, None]))
        order = torch.tensor([row for rows in groups for row in rows], device=self.device)
        return torch.cat(said)[order.argsort()]

    def step(self, ids: torch.Tensor, plan: DecodePlan, places: torch.Tensor) -> torch.Tensor:
        """A decode step of ``ids`` [rows, 1], which the model takes to be at ``places`` [rows, 1]."""
        self.slots.plan = plan
        positions = plan.positions[:, None].to(self.device)
        return self._forward({"input_ids": ids.to(self.device)}, places, self._mask(positions, plan.length), 1)

    def _forward(
        self, shown: dict[str, torch.Tensor], places: torch.Tensor, mask: Mask, keep: int | torch.Tensor
    ) -> torch.Tensor:
        if isinstance(self.slots.plan, BlockPlan):
            flash.running.plan = self.slots.plan
        output = self._model(
            **shown,
            position_ids=places.to(self.device),
            past_key_values=self.slots.cache,
            attention_mask=mask,
            use_cache=True,
            logits_to_keep=keep,
        )
        logits: torch.Tensor = output.logits[:, -1].float()
        return logits

    def _mask(self, positions: torch.Tensor, length: int, reach: torch.Tensor | None = None) -> Mask:
        """What each query at ``positions`` [batch, queries] sees of ``length`` keys: [batch, 1, queries, length].

        ``reach`` is the last key that a query sees in layers where pictures are seen in both directions. None where
        attention finds that out for itself.
        """
        if isinstance(self.slots, BlockCache) and self.slots.flash is not None:
            return None
        keys = torch.arange(length, device=positions.device)
        masks: dict[str, torch.Tensor | None] = {}
        for kind in self.layer_types:
            if kind in RECURRENT | FORGETFUL:
                masks[kind] = None  # without padding there is nothing to hide
                continue
            last = positions if reach is None or kind not in self.mutual else reach
            seen = keys <= last[:, :, None]
            if kind == "sliding_attention":
                seen &= keys > positions[:, :, None] - self._window
            elif kind == "chunked_attention" and self._attention_chunk:
                seen &= keys // self._attention_chunk == positions[:, :, None] // self._attention_chunk
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


def _shown(pieces: list[Piece]) -> list[Shown]:
    """What the pieces' pictures show, and where, counted from the beginning of each piece."""
    return [
        Shown(row, where, seen)
        for row, piece in enumerate(pieces)
        if piece.pictures is not None
        for where, seen in piece.pictures.parts(piece.start, piece.start + len(piece.tokens))
    ]


def _reach(positions: torch.Tensor, pieces: list[Piece]) -> torch.Tensor:
    """The last key that queries at ``positions`` [pieces, tokens] see, pictures being seen as a whole."""
    rows = [
        positions[row] if piece.pictures is None else piece.pictures.reach(piece.start, positions.shape[1])
        for row, piece in enumerate(pieces)
    ]
    return torch.stack(rows)


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
    """Raise UnsupportedModel for a model that cannot be told where the tokens of each sequence are."""
    missing = {"position_ids", "past_key_values", "logits_to_keep"} - inspect.signature(model.forward).parameters.keys()
    if missing:
        raise UnsupportedModel(f"its forward pass takes no {', '.join(sorted(missing))}")


def _layer_types(config: Any) -> list[str]:
    """The kinds of layers that the model has, each once. Raises UnsupportedModel for what is none that we know."""
    types = getattr(config, "layer_types", None)
    if types is None:
        sliding = getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True)
        types = ["sliding_attention" if sliding else "full_attention"]
    kinds = sorted({part for kind in types for part in HYBRID.get(kind, [kind])})
    other = [kind for kind in kinds if kind not in ATTENTION | RECURRENT | FORGETFUL]
    if other:
        raise UnsupportedModel(f"it has layers of the kind {other[0]!r}")
    if not ATTENTION.intersection(kinds):
        raise UnsupportedModel(f"all of its layers are of the kind {kinds[0]!r}, without keys and values per token")
    return kinds
