"""Embeddings by any sentence-transformers model: its own modules run, so its pooling is what it was trained with."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from quintet_common.errors import bad_request
from quintet_common.models_yml import ModelSpec
from quintet_common.worker.host import Report

from quintet_embed.backends.forward import guarded
from quintet_embed.backends.loading import Setup, explained, set_up
from quintet_embed.backends.texts import Reader
from quintet_embed.engine.job import Rows, Tokens
from quintet_embed.protocol import EmbedRequest, Event, Request, RerankRequest, TokenizeRequest, Vectors, Work


def load_embedder(spec: ModelSpec, report: Report) -> Embedder:
    """Load and warm up the model of ``spec``. Raises LoadError."""
    setup = set_up(spec)
    from sentence_transformers import SentenceTransformer

    report(0.6, "reading the weights")
    with explained(setup.path):
        model = SentenceTransformer(**setup.sources)
        embedder = Embedder(model.eval(), setup, spec)
    report(0.9, "warming up")
    embedder.forward([Tokens(embedder.reader.wrap([1] * 8))] * 4)
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
        self.info = {
            **setup.prepare(model),
            "dimensions": self._dimensions,
            "context": self.reader.context,
            "normalized": self._normalized,
            "prompts": self._known_prompts,
        }

    def check(self, request: Request) -> None:
        if isinstance(request, RerankRequest):
            raise bad_request("This model makes embeddings; it does not rerank.", "model")
        if isinstance(request, TokenizeRequest):
            return
        if request.dimensions is not None and request.dimensions > self._dimensions:
            message = f"dimensions is {request.dimensions}; this model's vectors have {self._dimensions}."
            raise bad_request(message, "dimensions", "invalid_value")
        if request.prompt_name is not None and request.prompt_name not in self._known_prompts:
            names = ", ".join(self._known_prompts) or "no prompts"
            raise bad_request(
                f"prompt_name {request.prompt_name!r} is not known; this model has {names}.",
                "prompt_name",
                "invalid_value",
            )

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
        return [
            Tokens(
                self.reader.fit(ids, _param(request, start + i), request.truncate, request.truncation_side), None, group
            )
            for i, ids in enumerate(encoded)
        ]

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

    def forward(self, batch: list[Tokens]) -> Rows:
        """Sentence embeddings before normalisation, float32, shape [texts, dimensions]."""
        features = self.reader.collate(batch, self._device)
        if batch[0].group:
            features["prompt_length"] = batch[0].group
        with guarded(self._device), torch.inference_mode():
            for module in self._modules:
                features = module(features)
            rows: Rows = features["sentence_embedding"].float().cpu().numpy()
        return rows

    def finish(self, request: Request, rows: Rows, work: Work) -> Event:
        assert isinstance(request, EmbedRequest)
        shortened = request.dimensions is not None and request.dimensions < rows.shape[1]
        rows = rows[:, : request.dimensions]
        by_default = self._normalized or shortened
        if by_default if request.normalize is None else request.normalize:
            rows = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
        return Vectors(rows.astype("<f4", order="C").tobytes(), rows.shape[1], work)


def _param(request: EmbedRequest, index: int) -> str:
    """The request field that text ``index`` came in."""
    return "input" if request.alone else f"input[{index}]"
