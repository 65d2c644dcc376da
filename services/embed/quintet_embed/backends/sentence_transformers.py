"""Embeddings by any sentence-transformers model: its own modules run, so its pooling is what it was trained with."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from quintet_common.errors import ApiError, bad_request
from quintet_common.models_yml import ModelSpec
from quintet_common.worker.host import Report

from quintet_embed.backends.forward import guarded
from quintet_embed.backends.heads import load_heads
from quintet_embed.backends.loading import Setup, explained, set_up
from quintet_embed.backends.precision import warm_up
from quintet_embed.backends.texts import Reader
from quintet_embed.engine.job import Output, Rows, Tokens
from quintet_embed.engine.queue import SLICE_CHARACTERS, SLICE_TEXTS
from quintet_embed.protocol import (
    EmbedRequest,
    Event,
    Request,
    RerankRequest,
    Sparse,
    TokenizeRequest,
    Vectors,
    Work,
)

COLBERT_TEXTS, COLBERT_SIZE = SLICE_TEXTS, SLICE_CHARACTERS
"""Limits of a request for token vectors, of which each takes 4 kB at 1,024 numbers: what is tokenised in one turn."""


def load_embedder(spec: ModelSpec, report: Report) -> Embedder:
    """Load and warm up the model of ``spec``. Raises LoadError."""
    setup = set_up(spec)
    from sentence_transformers import SentenceTransformer

    report(0.6, "reading the weights")
    with explained(setup.path):
        model = SentenceTransformer(**setup.sources)
        embedder = Embedder(model.eval(), setup, spec)
    report(0.9, "warming up")
    warm_up(model, lambda: embedder.forward([Tokens(embedder.reader.wrap([1] * 8))] * 4))
    return embedder


class Embedder:
    """A loaded embedding model."""

    def __init__(self, model: Any, setup: Setup, spec: ModelSpec) -> None:
        from sentence_transformers.base.modules import Normalize
        from sentence_transformers.sentence_transformer.modules import Pooling

        self.reader = Reader(model, spec)
        self.batch_tokens = setup.batch_tokens
        self.waste_tokens = setup.waste_tokens
        self._device = setup.device
        self._prompts: dict[str, str] = {name: text for name, text in (model.prompts or {}).items() if text}
        self._known_prompts = list(model.prompts or {})
        self._default_prompt = model.default_prompt_name
        self._skip_prompt = any(isinstance(module, Pooling) and not module.include_prompt for module in model)
        modules = list(model)
        self._normalized = isinstance(modules[-1], Normalize)
        # The last step is done here in float32, so that a request can switch it and bf16 vectors are unit length too.
        self._modules = modules[:-1] if self._normalized else modules
        self._dimensions = int(model.get_embedding_dimension())
        self._heads = load_heads(setup, int(model[0].get_embedding_dimension()), self.reader.tokenizer)
        self.info = {
            **setup.prepare(model),
            "dimensions": self._dimensions,
            "context": self.reader.context,
            "normalized": self._normalized,
            "prompts": self._known_prompts,
            "outputs": ["dense", *self._heads.names],
        }

    def check(self, request: Request) -> None:
        if isinstance(request, RerankRequest):
            raise bad_request("This model makes embeddings; it does not rerank.", "model")
        if isinstance(request, TokenizeRequest):
            return
        if request.dimensions is not None and request.dimensions > self._dimensions:
            message = f"dimensions is {request.dimensions}; this model's vectors have {self._dimensions}."
            raise bad_request(message, "dimensions", "invalid_value")
        self._check_heads(request)
        if request.prompt_name is not None and request.prompt_name not in self._known_prompts:
            names = ", ".join(self._known_prompts) or "no prompts"
            raise bad_request(
                f"prompt_name {request.prompt_name!r} is not known; this model has {names}.",
                "prompt_name",
                "invalid_value",
            )

    def _check_heads(self, request: EmbedRequest) -> None:
        for name in ("sparse", "colbert"):
            if getattr(request, name) and name not in self._heads.names:
                message = (
                    f"return_{name} is not possible with this model: it gives {' and '.join(self.info['outputs'])}."
                )
                raise bad_request(message, f"return_{name}", "unsupported_parameter")
        if request.colbert and (
            len(request.texts or request.token_ids) > COLBERT_TEXTS or _size(request) > COLBERT_SIZE
        ):
            raise _too_many_vectors()

    def tokenise(self, request: Request, start: int, stop: int) -> list[Tokens]:
        if isinstance(request, TokenizeRequest):
            return [Tokens(ids) for ids in self.reader.encode(request.texts[start:stop], request.add_special_tokens)]
        assert isinstance(request, EmbedRequest)
        prompt = self._prompts.get(request.prompt_name or self._default_prompt or "", "")
        if request.token_ids:
            encoded = self._given_ids(request, start, stop, prompt)
        else:
            texts = request.texts[start:stop]
            encoded = self.reader.encode([prompt + text for text in texts])
            if not request.truncate:
                for i, (text, ids) in enumerate(zip(texts, encoded, strict=True)):
                    self.reader.check_readable(text, ids, _param(request, start + i))
        group = self._prompt_length(prompt)
        side = request.truncation_side
        fitted = [
            self.reader.fit(ids, _param(request, start + i), request.truncate, side) for i, ids in enumerate(encoded)
        ]
        if request.colbert and sum(map(len, fitted)) > COLBERT_SIZE:
            raise _too_many_vectors()
        return [Tokens(ids, None, group, request.sparse, request.colbert) for ids in fitted]

    def _given_ids(self, request: EmbedRequest, start: int, stop: int, prompt: str) -> list[list[int]]:
        before = self.reader.encode([prompt], special=False)[0] if prompt else []
        found = []
        for i, ids in enumerate(request.token_ids[start:stop]):
            self.reader.check_ids(ids, _param(request, start + i))
            found.append(self.reader.wrap([*before, *ids]))
        return found

    def _prompt_length(self, prompt: str) -> int:
        """Tokens that the pooling leaves out, counted as sentence-transformers does: without the closing one."""
        if not prompt or not self._skip_prompt:
            return 0
        ids = self.reader.encode([prompt])[0]
        return len(ids) - (ids[-1] in self.reader.tokenizer.all_special_ids)

    def forward(self, batch: list[Tokens]) -> Output:
        """Sentence embeddings before normalisation, float32, shape [texts, dimensions], and what the heads make."""
        features = self.reader.collate(batch, self._device)
        if batch[0].group:
            features["prompt_length"] = batch[0].group
        with guarded(self._device), torch.inference_mode():
            for module in self._modules:
                features = module(features)
            rows: Rows = features["sentence_embedding"].float().cpu().numpy()
            if not any(tokens.sparse or tokens.colbert for tokens in batch):
                return Output(rows)
            return Output(rows, self._heads.extras(features["token_embeddings"], self.reader.starts(batch), batch))

    def finish(self, request: Request, output: Output, work: Work) -> Event:
        assert isinstance(request, EmbedRequest)
        rows = output.rows
        shortened = request.dimensions is not None and request.dimensions < rows.shape[1]
        rows = rows[:, : request.dimensions]
        by_default = self._normalized or shortened
        if by_default if request.normalize is None else request.normalize:
            rows = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
        vectors = Vectors(rows.astype("<f4", order="C").tobytes(), rows.shape[1], work)
        extras = [extra for extra in output.extras if extra is not None]
        sparse = [extra.sparse for extra in extras if extra.sparse is not None]
        colbert = [extra.colbert for extra in extras if extra.colbert is not None]
        vectors.sparse = [
            Sparse(ids.astype("<i4").tobytes(), weights.astype("<f4").tobytes()) for ids, weights in sparse
        ]
        vectors.colbert = [each.astype("<f4", order="C").tobytes() for each in colbert]
        vectors.colbert_dimensions = colbert[0].shape[1] if colbert else 0
        return vectors


def _size(request: EmbedRequest) -> int:
    """Characters, or token ids, in all."""
    return sum(map(len, request.texts or request.token_ids))


def _too_many_vectors() -> ApiError:
    message = (
        "return_colbert gives a vector for every token: one request may have "
        f"{COLBERT_TEXTS} texts and {COLBERT_SIZE} characters and tokens. Send fewer texts at a time."
    )
    return bad_request(message, "return_colbert", "invalid_value")


def _param(request: EmbedRequest, index: int) -> str:
    """The request field that text ``index`` came in."""
    return "input" if request.alone else f"input[{index}]"
