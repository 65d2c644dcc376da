"""POST /embeddings, OpenAI's, with the extras of Text Embeddings Inference under its names."""

from __future__ import annotations

from base64 import b64encode
from typing import Literal

import numpy as np
import orjson
from fastapi import APIRouter, Request, Response
from openai.types import CreateEmbeddingResponse
from pydantic import Field
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


@router.post("/embeddings", responses={200: {"model": CreateEmbeddingResponse}})
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
    )
    vectors = await answer(request, worker, message, Vectors)
    count = len(texts) or len(token_ids)
    VECTORS.labels(SERVICE, worker.spec.id).inc(count)
    observation_of(request.scope).use("vectors", count)
    content = render(vectors, body.model or worker.spec.id, body.encoding_format)
    return Response(content, media_type="application/json")


def render(vectors: Vectors, model: str, encoding_format: Literal["float", "base64"]) -> bytes:
    """The JSON of OpenAI's answer. Base64 is of little-endian float32; no vector becomes Python numbers on the way."""
    rows = np.frombuffer(vectors.data, dtype="<f4").reshape(-1, vectors.dimensions)
    data = [
        {
            "object": "embedding",
            "index": index,
            "embedding": b64encode(row.data).decode() if encoding_format == "base64" else row,
        }
        for index, row in enumerate(rows)
    ]
    tokens = vectors.work.prompt_tokens
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return orjson.dumps(
        {"object": "list", "data": data, "model": model, "usage": usage}, option=orjson.OPT_SERIALIZE_NUMPY
    )
