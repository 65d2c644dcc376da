"""Texts to token ids and ids to tensors, for models whose first module is a transformer with a tokeniser."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from quintet_common.errors import ApiError, bad_request
from quintet_common.models_yml import ModelSpec
from quintet_common.worker.host import LoadError

from quintet_embed.engine.job import Tokens
from quintet_embed.protocol import Side

CHARACTERS_PER_TOKEN = 100
"""What one token can stand for: WordPiece reads a longer word as one unknown token, and all of it is lost."""


class Reader:
    """The tokeniser of one model. ``context`` is how many tokens the model reads, special ones included."""

    def __init__(self, model: Any, spec: ModelSpec) -> None:
        first = model[0]
        tokenizer = getattr(first, "tokenizer", None)
        if (
            tokenizer is None
            or "text" not in getattr(first, "modality_config", {})
            or "message" in first.modality_config
        ):
            raise LoadError(
                f"{spec.path}: its first module is {type(first).__name__}; "
                "only transformers that read plain text are supported."
            )
        self.tokenizer = tokenizer
        self.context = _context(model, spec)
        self.vocabulary = int(first.model.get_input_embeddings().num_embeddings)
        self._pad = tokenizer.pad_token_id or 0
        self._left = tokenizer.padding_side == "left"
        self._types = "token_type_ids" in tokenizer.model_input_names
        self._prefix, self._suffix = _special_tokens(tokenizer)
        if self.context <= len(self._prefix) + len(self._suffix):
            raise LoadError(f"context: {self.context} leaves no room beside this model's special tokens.")

    def encode(self, texts: Sequence[str], special: bool = True) -> list[list[int]]:
        """Token ids of texts, of any length."""
        found = self.tokenizer(list(texts), add_special_tokens=special, truncation=False, padding=False, verbose=False)
        ids: list[list[int]] = found["input_ids"]
        return ids

    def encode_pairs(self, queries: list[str], documents: list[str], truncate: bool) -> list[Tokens]:
        """Pairs as the model reads them, the longer side of a pair cut to its context if ``truncate``."""
        limit = {"truncation": "longest_first", "max_length": self.context} if truncate else {"truncation": False}
        found = self.tokenizer(queries, documents, padding=False, verbose=False, **limit)
        types = found.get("token_type_ids") or [None] * len(documents)
        return [Tokens(ids, kinds) for ids, kinds in zip(found["input_ids"], types, strict=True)]

    def wrap(self, ids: list[int]) -> list[int]:
        """Token ids from a client as the model reads them: with its special tokens, unless they are there already."""
        head, tail = len(self._prefix), len(self._suffix)
        if ids[:head] == self._prefix and ids[len(ids) - tail :] == self._suffix and len(ids) >= head + tail:
            return ids
        return [*self._prefix, *ids, *self._suffix]

    def check_ids(self, ids: list[int], param: str) -> None:
        """Raises ApiError 400 for an id that is not in the vocabulary."""
        worst = max(ids)
        if worst >= self.vocabulary:
            raise bad_request(
                f"{param} has the token id {worst}; this model's go from 0 to {self.vocabulary - 1}. Ids of another "
                "model's tokeniser mean nothing to it: send text instead.",
                param,
                "invalid_value",
            )

    def check_readable(self, text: str, ids: list[int], param: str) -> None:
        """Raises ApiError 400 for a text that fits only because the tokeniser could not read it."""
        if len(ids) <= self.context and len(text) > self.context * CHARACTERS_PER_TOKEN:
            message = (
                f"{param} has {len(text)} characters without spaces that this model's tokeniser could read; "
                f"the model reads {self.context} tokens. Send a shorter text, or set truncate to true."
            )
            raise ApiError(400, message, param=param, code="context_length_exceeded", retry=False)

    def fit(self, ids: list[int], param: str, truncate: bool, side: Side) -> list[int]:
        """``ids`` if the model can read as many, or what is left of them. Raises ApiError 400."""
        if len(ids) <= self.context:
            return ids
        if not truncate:
            raise self.too_long(len(ids), param)
        head, tail = len(self._prefix), len(self._suffix)
        body, room = ids[head : len(ids) - tail], self.context - head - tail
        body = body[:room] if side == "right" else body[len(body) - room :]
        return [*self._prefix, *body, *self._suffix]

    def too_long(self, length: int, param: str) -> ApiError:
        message = (
            f"{param} has {length} tokens; this model reads {self.context}. "
            "Send a shorter text, or set truncate to true."
        )
        return ApiError(400, message, param=param, code="context_length_exceeded", retry=False)

    def collate(self, batch: Sequence[Tokens], device: torch.device) -> dict[str, Any]:
        """The batch as padded tensors of shape [texts, longest]: input_ids, attention_mask, and token_type_ids where
        the model has them."""
        longest = max(len(tokens.ids) for tokens in batch)
        ids = np.full((len(batch), longest), self._pad, np.int64)
        mask = np.zeros_like(ids)
        types = np.zeros_like(ids) if self._types else None
        for row, tokens in enumerate(batch):
            length = len(tokens.ids)
            place = slice(longest - length, longest) if self._left else slice(0, length)
            ids[row, place] = tokens.ids
            mask[row, place] = 1
            if types is not None and tokens.types is not None:
                types[row, place] = tokens.types
        arrays = {"input_ids": ids, "attention_mask": mask} | ({} if types is None else {"token_type_ids": types})
        return {name: torch.from_numpy(array).to(device, non_blocking=True) for name, array in arrays.items()}

    def starts(self, batch: Sequence[Tokens]) -> list[int]:
        """Where each text begins in its row of ``collate``'s tensors."""
        longest = max(len(tokens.ids) for tokens in batch)
        return [longest - len(tokens.ids) if self._left else 0 for tokens in batch]


def _context(model: Any, spec: ModelSpec) -> int:
    """Tokens that the model reads. models.yml may lower it, or raise it as far as there are positions."""
    config = model[0].model.config
    positions = int(getattr(config, "max_position_embeddings", 0) or 0)
    if positions and getattr(config, "model_type", "") in ("roberta", "xlm-roberta", "camembert", "mpnet"):
        positions -= int(config.pad_token_id or 0) + 1  # these count positions from behind the padding index
    limit = int(model.max_seq_length or 0) or positions or 512
    if positions:
        limit = min(limit, positions)
    if spec.context is None:
        return limit
    if positions and spec.context > positions:
        raise LoadError(f"context: {spec.context} is more than the {positions} positions of this model.")
    return spec.context


def _special_tokens(tokenizer: Any) -> tuple[list[int], list[int]]:
    """What the tokeniser puts before and behind a text."""
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole = tokenizer("a")["input_ids"]
    for start in range(len(whole) - len(plain) + 1):
        if whole[start : start + len(plain)] == plain:
            return whole[:start], whole[start + len(plain) :]
    return [], []
