"""What bge-m3 makes of a text beside its vector: a weight for each token, and a vector for each.

The heads are two linear layers in files of their own beside the model, ``sparse_linear.pt`` and ``colbert_linear.pt``.
Formulas: section 3 of the M3-Embedding paper (arXiv 2402.03216). Which tokens count is as in the reference code: no
special ones for the weights, all but the first for the vectors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from quintet_common.worker.host import LoadError
from torch import Tensor, nn
from transformers.utils.hub import cached_file

from quintet_embed.backends.loading import Setup
from quintet_embed.engine.job import Extra, Tokens

SPARSE_FILE, COLBERT_FILE = "sparse_linear.pt", "colbert_linear.pt"


class Heads:
    """The heads of one model, either of which may be missing. They compute in float32."""

    def __init__(self, sparse: nn.Linear | None, colbert: nn.Linear | None, ignored: Sequence[int]) -> None:
        self.sparse = sparse
        self.colbert = colbert
        self._ignored = np.array(sorted(ignored), np.int32)

    @property
    def names(self) -> list[str]:
        return [name for name, head in (("sparse", self.sparse), ("colbert", self.colbert)) if head is not None]

    def extras(self, hidden: Tensor, starts: Sequence[int], batch: Sequence[Tokens]) -> list[Extra | None]:
        """``hidden``: the last hidden states, [texts, longest, width]; ``starts``: where each text begins in them."""
        hidden = hidden.float()
        weights = None
        if self.sparse is not None and any(tokens.sparse for tokens in batch):
            weights = torch.relu(self.sparse(hidden)).squeeze(-1).cpu().numpy()
        found: list[Extra | None] = []
        for row, (start, tokens) in enumerate(zip(starts, batch, strict=True)):
            place = slice(start, start + len(tokens.ids))
            sparse = colbert = None
            if weights is not None and tokens.sparse:
                sparse = self._heaviest(np.asarray(tokens.ids, np.int32), weights[row, place])
            if self.colbert is not None and tokens.colbert:
                colbert = nn.functional.normalize(self.colbert(hidden[row, place][1:]), dim=-1).cpu().numpy()
            found.append(Extra(sparse, colbert) if sparse is not None or colbert is not None else None)
        return found

    def _heaviest(self, ids: Any, weights: Any) -> tuple[Any, Any]:
        """Each token id once, with the greatest of its weights; without special tokens and weights of 0."""
        counts = (weights > 0) & ~np.isin(ids, self._ignored)
        unique, place = np.unique(ids[counts], return_inverse=True)
        heaviest = np.zeros(len(unique), np.float32)
        np.maximum.at(heaviest, place, weights[counts])
        return unique, heaviest


def load_heads(setup: Setup, width: int, tokenizer: Any) -> Heads:
    """The heads that are beside the model of ``setup``, whose states are ``width`` wide. Raises LoadError."""
    sparse, colbert = _linear(setup, SPARSE_FILE, width), _linear(setup, COLBERT_FILE, width)
    if sparse is not None and sparse.out_features != 1:
        raise LoadError(f"{setup.path}: {SPARSE_FILE} gives {sparse.out_features} numbers per token, not one weight.")
    special = (tokenizer.cls_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.unk_token_id)
    return Heads(sparse, colbert, [token for token in special if token is not None])


def _linear(setup: Setup, name: str, width: int) -> nn.Linear | None:
    """The layer in a file of the model's folder or hub repository; None when there is no such file."""
    file = cached_file(
        setup.path,
        name,
        revision=setup.args.revision,
        local_files_only=setup.local,
        _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    if file is None:
        return None
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
        out, into = state["weight"].shape
        layer = nn.Linear(into, out)
        layer.load_state_dict(state)
    except Exception as error:
        line = (str(error).splitlines() or [type(error).__name__])[0]
        raise LoadError(f"{setup.path}: {name} is not a linear layer: {line}") from None
    if into != width:
        raise LoadError(f"{setup.path}: {name} reads {into} numbers; this model's states have {width}.")
    return layer.float().eval().requires_grad_(False).to(setup.device)
