"""POST /rerank, in the shape that Jina and Cohere share."""

from __future__ import annotations

import os
from typing import Any

import orjson
from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, Field
from quintet_common.errors import ApiError, bad_request
from quintet_common.observation import observation_of

from quintet_embed.api.inputs import check_count, check_text
from quintet_embed.api.run import Body, answer, worker_for
from quintet_embed.metrics import SCORES, SERVICE
from quintet_embed.protocol import RerankRequest, Scores

router = APIRouter(tags=["rerank"])


class RerankBody(Body):
    """``truncate`` cuts the longer of query and document where a pair is longer than the model reads (the default, as
    in both APIs); false makes it an error. The last three fields are Cohere's, and refused by name when given."""

    query: str = Field(min_length=1)
    documents: list[Any] = Field(description="Texts, or objects with a text.")
    model: str | None = None
    top_n: int | None = Field(None, ge=1)
    return_documents: bool = False
    truncate: bool = True
    user: str | None = None
    rank_fields: Any = None
    max_chunks_per_doc: Any = None
    max_tokens_per_doc: Any = None


class RerankDocument(BaseModel):
    text: str


class RerankResult(BaseModel):
    index: int = Field(description="The document's place in the request.")
    relevance_score: float
    document: RerankDocument | None = Field(None, description="Only with return_documents.")


class RerankUsage(BaseModel):
    prompt_tokens: int
    total_tokens: int


class RerankResponse(BaseModel):
    id: str
    object: str
    model: str
    results: list[RerankResult] = Field(description="The best first.")
    usage: RerankUsage


@router.post("/rerank", responses={200: {"model": RerankResponse}})
async def rerank(request: Request, body: RerankBody) -> Response:
    """The documents by how well they answer the query, the best first."""
    for name in ("rank_fields", "max_chunks_per_doc", "max_tokens_per_doc"):
        if getattr(body, name) is not None:
            raise bad_request(f"{name} is not supported: documents are scored whole.", name, "unsupported_parameter")
    query = check_text(body.query, "query")
    documents = _texts(body.documents)
    if not any(worker.spec.kind == "rerank" for worker in request.app.state.pool):
        message = "No reranking model is configured here; add one with kind: rerank to models.yml."
        raise ApiError(404, message, param="model", code="model_not_found")
    worker = worker_for(request, body.model, "rerank")
    scores = await answer(request, worker, RerankRequest(query, documents, body.truncate), Scores)
    SCORES.labels(SERVICE, worker.spec.id).inc(len(documents))
    observation_of(request.scope).use("scores", len(documents))
    content = render(scores, body.model or worker.spec.id, body, documents)
    return Response(content, media_type="application/json")


def _texts(documents: list[Any]) -> list[str]:
    if not documents:
        raise bad_request("documents is empty.", "documents", "invalid_value")
    check_count(len(documents), "documents")
    texts = []
    for index, document in enumerate(documents):
        param = f"documents[{index}]"
        if isinstance(document, dict):
            param, document = f"{param}.text", document.get("text")
        texts.append(check_text(document, param))
    return texts


def render(scores: Scores, model: str, body: RerankBody, documents: list[str]) -> bytes:
    """The JSON of the answer: sorted by score, equal scores in the order of the request."""
    order = sorted(range(len(documents)), key=lambda index: -scores.scores[index])
    results: list[dict[str, Any]] = []
    for index in order[: body.top_n]:
        result: dict[str, Any] = {"index": index, "relevance_score": scores.scores[index]}
        if body.return_documents:
            result["document"] = {"text": documents[index]}
        results.append(result)
    tokens = scores.work.prompt_tokens
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    answer_id = "rerank-" + os.urandom(12).hex()
    return orjson.dumps({"id": answer_id, "object": "list", "model": model, "results": results, "usage": usage})
