"""Reranking by any sentence-transformers CrossEncoder that gives one score per pair."""

from __future__ import annotations

from typing import Any

import torch
from quintet_common.errors import bad_request
from quintet_common.models_yml import ModelSpec
from quintet_common.worker.host import LoadError, Report

from quintet_embed.backends.forward import guarded
from quintet_embed.backends.loading import Setup, explained, set_up
from quintet_embed.backends.precision import warm_up
from quintet_embed.backends.texts import Reader
from quintet_embed.engine.job import Output, Rows, Tokens
from quintet_embed.protocol import EmbedRequest, Event, Request, RerankRequest, Scores, TokenizeRequest, Work


def load_reranker(spec: ModelSpec, report: Report) -> Reranker:
    """Load and warm up the model of ``spec``. Raises LoadError, also for a classifier of more than one label."""
    setup = set_up(spec)
    from sentence_transformers import CrossEncoder

    report(0.6, "reading the weights")
    with explained(setup.path):
        model = CrossEncoder(**setup.sources)
        if model.num_labels != 1:
            raise LoadError(f"{setup.path}: not a reranker: it gives {model.num_labels} labels, not one score.")
        reranker = Reranker(model.eval(), setup, spec)
    report(0.9, "warming up")
    warm_up(model, lambda: reranker.forward([Tokens(reranker.reader.wrap([1] * 8))] * 4))
    return reranker


class Reranker:
    """A loaded reranking model."""

    def __init__(self, model: Any, setup: Setup, spec: ModelSpec) -> None:
        self.reader = Reader(model, spec)
        self.batch_tokens = setup.batch_tokens
        self.waste_tokens = setup.waste_tokens
        self._model = model
        self._device = setup.device
        self.info = {**setup.prepare(model), "context": self.reader.context}

    def check(self, request: Request) -> None:
        if isinstance(request, EmbedRequest):
            raise bad_request("This model reranks; it does not make embeddings.", "model")

    def tokenise(self, request: Request, start: int, stop: int) -> list[Tokens]:
        if isinstance(request, TokenizeRequest):
            return [Tokens(ids) for ids in self.reader.encode(request.texts[start:stop], request.add_special_tokens)]
        assert isinstance(request, RerankRequest)
        documents = request.documents[start:stop]
        found = self.reader.encode_pairs([request.query] * len(documents), documents, request.truncate)
        for i, tokens in enumerate(found):
            if len(tokens.ids) > self.reader.context:
                raise self.reader.too_long(len(tokens.ids), f"documents[{start + i}]")
        return found

    def forward(self, batch: list[Tokens]) -> Output:
        """Scores, float32, shape [pairs, 1]: between 0 and 1 unless the model names another activation."""
        with guarded(self._device), torch.inference_mode():
            features = self._model(self.reader.collate(batch, self._device))
            scores = self._model.activation_fn(features["scores"].float())
            rows: Rows = scores.reshape(len(batch), 1).cpu().numpy()
        return Output(rows)

    def finish(self, request: Request, output: Output, work: Work) -> Event:
        assert isinstance(request, RerankRequest)
        return Scores([float(score) for score in output.rows[:, 0]], work)
