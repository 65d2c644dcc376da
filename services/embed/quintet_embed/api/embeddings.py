"""POST /embeddings, OpenAI's, with the extras of Text Embeddings Inference under its names."""

from __future__ import annotations

from base64 import b64encode
from typing import Any, Literal

import numpy as np
import orjson
from fastapi import APIRouter, Request, Response
from numpy.typing import NDArray
from openai.types import CreateEmbeddingResponse, Embedding
from pydantic import BaseModel, Field
from quintet_common.observation import observation_of

from quintet_embed.api.inputs import Input, parse_input
from quintet_embed.api.run import Body, answer, worker_for
from quintet_embed.metrics import SERVICE, VECTORS
from quintet_embed.protocol import EmbedRequest, Side, Vectors

router = APIRouter(tags=["embeddings"])


class EmbeddingsBody(Body):
    """``truncate`` cuts what is longer than the model reads, at ``truncation_side``; without it that is an error.

    ``prompt_name`` puts one of the model's own prompts (``query``, ``document``) before every text. ``normalize``
    forces unit length on or off; absent, the model's own modules decide. ``dimensions`` keeps the first so many numbers
    and makes them unit length again: only models that were trained for it (Matryoshka) stay good under that.
    ``return_sparse`` adds a weight for each token id in the text, ``return_colbert`` a unit vector for each token, for
    models with these heads (bge-m3).
    """

    input: Input
    model: str | None = None
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = Field(None, ge=1, lt=1 << 31)
    user: str | None = None
    truncate: bool = False
    truncation_side: Side = "right"
    prompt_name: str | None = None
    normalize: bool | None = None
    return_sparse: bool = False
    return_colbert: bool = False


class SparseEmbedding(BaseModel):
    indices: list[int] = Field(description="Token ids, ascending.")
    values: list[float] = Field(description="What each weighs, all above 0.")


class ExtendedEmbedding(Embedding):
    embedding: list[float] | str = Field(  # type: ignore[assignment]  # OpenAI's own has the floats alone
        description="With encoding_format base64, that of the little-endian float32 numbers."
    )
    sparse_embedding: SparseEmbedding | None = Field(None, description="Only with return_sparse.")
    colbert_embedding: list[list[float]] | list[str] | None = Field(
        None, description="Only with return_colbert: a vector per token, in base64 like the embedding if that is."
    )


class EmbeddingsResponse(CreateEmbeddingResponse):
    data: list[ExtendedEmbedding]  # type: ignore[assignment]  # OpenAI's own, with more in it


@router.post("/embeddings", responses={200: {"model": EmbeddingsResponse}})
async def create_embeddings(request: Request, body: EmbeddingsBody) -> Response:
    """One vector per input, in the order of the inputs."""
    texts, token_ids = parse_input(body.input)
    worker = worker_for(request, body.model, "embedding")
    message = EmbedRequest(
        texts=texts,
        token_ids=token_ids,
        alone=isinstance(body.input, str) or isinstance(body.input[0], int),
        dimensions=body.dimensions,
        truncate=body.truncate,
        truncation_side=body.truncation_side,
        prompt_name=body.prompt_name,
        normalize=body.normalize,
        sparse=body.return_sparse,
        colbert=body.return_colbert,
    )
    vectors = await answer(request, worker, message, Vectors)
    count = len(texts) or len(token_ids)
    VECTORS.labels(SERVICE, worker.spec.id).inc(count)
    observation_of(request.scope).use("vectors", count)
    content = render(vectors, body.model or worker.spec.id, body.encoding_format)
    return Response(content, media_type="application/json")


def _base64(row: NDArray[np.float32]) -> str:
    return b64encode(row.data).decode()


def _as_it_is(row: NDArray[np.float32]) -> NDArray[np.float32]:
    return row


def render(vectors: Vectors, model: str, encoding_format: Literal["float", "base64"]) -> bytes:
    """The JSON of OpenAI's answer. Base64 is of little-endian float32; no vector becomes Python numbers on the way."""
    rows = np.frombuffer(vectors.data, dtype="<f4").reshape(-1, vectors.dimensions)
    written = _base64 if encoding_format == "base64" else _as_it_is
    data: list[dict[str, Any]] = [
        {"object": "embedding", "index": index, "embedding": written(row)} for index, row in enumerate(rows)
    ]
    for entry, sparse in zip(data, vectors.sparse, strict=False):  # there are none unless they were asked for
        indices, values = np.frombuffer(sparse.indices, "<i4"), np.frombuffer(sparse.values, "<f4")
        entry["sparse_embedding"] = {"indices": indices, "values": values}
    for entry, colbert in zip(data, vectors.colbert, strict=False):
        per_token = np.frombuffer(colbert, "<f4").reshape(-1, vectors.colbert_dimensions)
        entry["colbert_embedding"] = [written(row) for row in per_token]
    tokens = vectors.work.prompt_tokens
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return orjson.dumps(
        {"object": "list", "data": data, "model": model, "usage": usage}, option=orjson.OPT_SERIALIZE_NUMPY
    )
