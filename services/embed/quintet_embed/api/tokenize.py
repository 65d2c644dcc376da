"""POST /tokenize: the token ids of texts, to count before sending or to send as ``input``."""

from __future__ import annotations

import orjson
from fastapi import APIRouter, Request, Response
from pydantic import BaseModel

from quintet_embed.api.inputs import Input, parse_texts
from quintet_embed.api.run import Body, answer, worker_for
from quintet_embed.protocol import TokenizeRequest, TokenLists

router = APIRouter(tags=["embeddings"])


class TokenizeBody(Body):
    input: Input
    model: str | None = None
    add_special_tokens: bool = True


class Tokenized(BaseModel):
    index: int
    tokens: list[int]
    count: int


class TokenizeResponse(BaseModel):
    object: str
    model: str
    data: list[Tokenized]
    max_model_len: int


@router.post("/tokenize", responses={200: {"model": TokenizeResponse}})
async def tokenize(request: Request, body: TokenizeBody) -> Response:
    """What the model reads instead of each text. ``max_model_len`` is how many tokens of it the model can read."""
    texts = parse_texts(body.input, "input")
    worker = worker_for(request, body.model, None if body.model else "embedding")
    found = await answer(request, worker, TokenizeRequest(texts, body.add_special_tokens), TokenLists)
    data = [{"index": i, "tokens": ids, "count": len(ids)} for i, ids in enumerate(found.token_ids)]
    content = {
        "object": "list",
        "model": body.model or worker.spec.id,
        "data": data,
        "max_model_len": worker.info["context"],
    }
    return Response(orjson.dumps(content), media_type="application/json")
