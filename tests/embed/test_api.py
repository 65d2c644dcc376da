"""The service as clients see it: the OpenAI SDK, both dialects, every mistake."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import subprocess
import sys
import time
import typing
from typing import Any

import httpx2
import numpy as np
import openai
import pytest
from embed.conftest import Service
from openai.types import CreateEmbeddingResponse, EmbeddingCreateParams
from quintet_embed.api.embeddings import EmbeddingsBody

TEXTS = ["hello world", "你好", "the cat sat on the mat", "naïve café 🍎"]


@pytest.fixture(params=["/v1", ""], ids=["openai", "zlai"])
def client(service: Service, request: pytest.FixtureRequest) -> openai.OpenAI:
    return openai.OpenAI(base_url=service.url + request.param, api_key="none", max_retries=0)


def post(service: Service, path: str, body: Any) -> tuple[int, Any]:
    answer = httpx2.post(service.url + path, json=body, timeout=60)
    return answer.status_code, answer.json()


def metric(service: Service, line: str) -> float:
    text = httpx2.get(service.url + "/metrics").text
    return sum(float(each.rsplit(" ", 1)[1]) for each in text.splitlines() if each.startswith(line))


def vectors(answer: CreateEmbeddingResponse) -> Any:
    return np.array([each.embedding for each in answer.data])


def test_base64_by_default_and_floats_are_the_same_vectors(client: openai.OpenAI) -> None:
    by_base64 = client.embeddings.create(model="minilm", input=TEXTS)
    by_float = client.embeddings.create(model="minilm", input=TEXTS, encoding_format="float")
    assert np.abs(vectors(by_base64) - vectors(by_float)).max() < 1e-7
    assert np.abs(np.linalg.norm(vectors(by_float), axis=1) - 1).max() < 1e-5
    assert [each.index for each in by_float.data] == [0, 1, 2, 3]
    assert {each.object for each in by_float.data} == {"embedding"}
    assert (by_float.object, by_float.model) == ("list", "minilm")
    assert by_float.usage.prompt_tokens == by_float.usage.total_tokens == 4 + 4 + 8 + 5


def test_the_answer_has_the_fields_of_openai_and_no_others(service: Service) -> None:
    for encoding in ("float", "base64"):
        _, answer = post(service, "/v1/embeddings", {"input": "a", "model": "minilm", "encoding_format": encoding})
        assert set(answer) == set(CreateEmbeddingResponse.model_fields)
        assert set(answer["data"][0]) == {"object", "index", "embedding"}
        assert set(answer["usage"]) == {"prompt_tokens", "total_tokens"}
        if encoding == "base64":
            assert len(base64.b64decode(answer["data"][0]["embedding"])) == 384 * 4
        else:
            CreateEmbeddingResponse.model_validate(answer, strict=True)


def test_every_parameter_of_the_sdk_is_known() -> None:
    asked = set(typing.get_type_hints(EmbeddingCreateParams))
    assert asked <= set(EmbeddingsBody.model_fields)


def test_a_page_of_zlai_s_document_runs_as_it_is(service: Service) -> None:
    client = openai.OpenAI(api_key="EMPTY", base_url=service.url)
    response = client.embeddings.create(input=["你好"], model="bge-m3")
    assert len(response.data[0].embedding) == 384
    assert response.usage.prompt_tokens == 4


def test_sparse_and_colbert_beside_the_dense_vector(client: openai.OpenAI) -> None:
    wanted = {"return_sparse": True, "return_colbert": True}
    by_float, by_base64 = (
        client.embeddings.create(model="tiny-m3", input=TEXTS, extra_body=wanted, encoding_format=encoding).data
        for encoding in ("float", "base64")
    )
    for one, other in zip(by_float, by_base64, strict=True):
        sparse, colbert = (getattr(one, f"{name}_embedding") for name in ("sparse", "colbert"))
        assert len(sparse["indices"]) == len(sparse["values"])
        assert sparse["indices"] == sorted(set(sparse["indices"]))
        assert all(value > 0 for value in sparse["values"])
        assert other.sparse_embedding == sparse  # type: ignore[attr-defined]
        decoded = [np.frombuffer(base64.b64decode(row), "<f4") for row in other.colbert_embedding]  # type: ignore[attr-defined]
        assert np.abs(np.array(decoded) - np.array(colbert)).max() < 1e-6
        assert np.array(colbert).shape[1] == len(one.embedding) == 32
    assert any(each.sparse_embedding["indices"] for each in by_float)  # type: ignore[attr-defined]


def test_a_model_without_heads_refuses_by_name(client: openai.OpenAI) -> None:
    for name in ("return_sparse", "return_colbert"):
        with pytest.raises(openai.BadRequestError, match="it gives dense") as caught:
            client.embeddings.create(model="minilm", input="a", extra_body={name: True})
        assert caught.value.param == name


def test_similar_texts_are_near_and_others_far(client: openai.OpenAI) -> None:
    texts = ["A cat sleeps on the sofa.", "A kitten naps on the couch.", "The stock market fell sharply today."]
    cat, kitten, market = vectors(client.embeddings.create(model="minilm", input=texts))
    assert cat @ kitten > 0.5
    assert cat @ market < 0.2


def test_dimensions(client: openai.OpenAI) -> None:
    whole = vectors(client.embeddings.create(model="minilm", input=TEXTS))
    short = vectors(client.embeddings.create(model="minilm", input=TEXTS, dimensions=100))
    assert short.shape == (4, 100)
    cut = whole[:, :100]
    assert np.abs(short - cut / np.linalg.norm(cut, axis=1, keepdims=True)).max() < 1e-5


def test_token_ids_one_list_and_several(client: openai.OpenAI, service: Service) -> None:
    _, found = post(service, "/v1/tokenize", {"model": "minilm", "input": TEXTS})
    ids = [each["tokens"] for each in found["data"]]
    by_text = vectors(client.embeddings.create(model="minilm", input=TEXTS))
    answer = client.embeddings.create(model="minilm", input=ids)
    assert np.abs(vectors(answer) - by_text).max() < 1e-3  # other batches, bf16
    assert answer.usage.prompt_tokens == sum(each["count"] for each in found["data"])
    assert vectors(client.embeddings.create(model="minilm", input=ids[0])).shape == (1, 384)


def test_the_most_items_keep_their_order(service: Service) -> None:
    client = openai.OpenAI(base_url=service.url + "/v1", api_key="none")
    texts = [f"number {i} " + "and more " * (i % 7) for i in range(2048)]
    answer = client.embeddings.create(model="minilm", input=texts, dimensions=32)
    assert [each.index for each in answer.data] == list(range(2048))
    alone = vectors(client.embeddings.create(model="minilm", input=texts[1234:1236], dimensions=32))
    assert (vectors(answer)[1234:1236] * alone).sum(axis=1).min() > 0.999


def test_without_a_model_the_default_answers(service: Service) -> None:
    status, answer = post(service, "/v1/embeddings", {"input": "a"})
    assert (status, answer["model"]) == (200, "minilm")


def test_an_alias_is_echoed_as_it_was_asked(service: Service) -> None:
    status, answer = post(service, "/v1/embeddings", {"input": "a", "model": "org/mini lm"})
    assert (status, answer["model"]) == (200, "org/mini lm")


def test_null_is_absent_and_unknown_fields_are_ignored(service: Service) -> None:
    fields = {"dimensions": None, "encoding_format": None, "user": None, "colour": "red", "input_type": "query"}
    assert post(service, "/v1/embeddings", {"input": "a", "model": None, **fields})[0] == 200


def test_extras_of_text_embeddings_inference(client: openai.OpenAI) -> None:
    long = "word " * 25_000
    for extra in ({"truncate": True}, {"truncate": True, "truncation_side": "left"}):
        answer = client.embeddings.create(model="minilm", input=long, extra_body=extra)
        assert answer.usage.prompt_tokens == 256
    query = client.embeddings.create(model="minilm", input="a", extra_body={"prompt_name": "query"})
    assert vectors(query).shape == (1, 384)
    raw = vectors(client.embeddings.create(model="minilm", input="a", extra_body={"normalize": False}))
    assert abs(np.linalg.norm(raw) - 1) > 0.01


BAD: list[tuple[dict[str, Any], int, str | None, str | None, str]] = [
    ({}, 400, "input", "missing_required_parameter", "input"),
    ({"input": ""}, 400, "input", "invalid_value", "empty"),
    ({"input": []}, 400, "input", "invalid_value", "empty"),
    ({"input": ["a", ""]}, 400, "input[1]", "invalid_value", "empty"),
    ({"input": [["a"]]}, 400, "input[0][0]", "invalid_type", "token id"),
    ({"input": [[1], [99999]]}, 400, "input[1]", "invalid_value", "99999"),
    ({"input": ["a"] * 2049}, 400, "input", "array_above_max_length", "2049"),
    ({"input": "word " * 20_000}, 400, "input", "context_length_exceeded", "20002 tokens; this model reads 256"),
    ({"input": "x" * 100_000}, 400, "input", "context_length_exceeded", "100000 characters"),
    ({"input": ["a", "word " * 300]}, 400, "input[1]", "context_length_exceeded", "302 tokens"),
    ({"input": "a", "dimensions": 385}, 400, "dimensions", "invalid_value", "384"),
    ({"input": "a", "dimensions": 10**40}, 400, "dimensions", "invalid_value", "less"),
    ({"input": "a", "dimensions": 0}, 400, "dimensions", "invalid_value", "greater"),
    ({"input": "a", "dimensions": "8"}, 400, "dimensions", "invalid_value", "integer"),
    ({"input": "a", "encoding_format": "int8"}, 400, "encoding_format", "invalid_value", "float"),
    ({"input": "a", "prompt_name": "poem"}, 400, "prompt_name", "invalid_value", "query, document"),
    ({"input": "a", "truncation_side": "up"}, 400, "truncation_side", "invalid_value", "left"),
    ({"input": "a", "truncate": "yes"}, 400, "truncate", "invalid_value", "boolean"),
    ({"input": "a", "model": 3}, 400, "model", "invalid_value", "string"),
    ({"input": "a", "model": "nope"}, 404, "model", "model_not_found", "nope"),
    ({"input": "a", "model": "tiny-reranker"}, 404, "model", "model_not_found", "rerank"),
    ({"input": "a", "model": "other-minilm"}, 503, None, "model_failed", "does not exist"),
]


@pytest.mark.parametrize("path", ["/v1/embeddings", "/embeddings"])
@pytest.mark.parametrize(("body", "status", "param", "code", "says"), BAD)
def test_mistakes(
    service: Service, path: str, body: dict[str, Any], status: int, param: str | None, code: str | None, says: str
) -> None:
    found, answer = post(service, path, body)
    error = answer["error"]
    assert (found, error["param"], error["code"]) == (status, param, code)
    assert says in error["message"]
    assert set(error) == {"message", "type", "param", "code"}


@pytest.mark.parametrize("content", [b"[1]", b'"a"', b"{", b"", b"\xff\xfe", b'{"input": "\\ud800"}'])
def test_bodies_that_are_no_request(service: Service, content: bytes) -> None:
    headers = {"content-type": "application/json"}
    answer = httpx2.post(service.url + "/v1/embeddings", content=content, headers=headers)
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"


def test_the_sdk_raises_its_own_errors(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.embeddings.create(model="minilm", input="a " * 500)
    assert caught.value.code == "context_length_exceeded"
    assert caught.value.response.headers["x-should-retry"] == "false"
    with pytest.raises(openai.NotFoundError):
        client.embeddings.create(model="nope", input="a")


def test_metrics_count_tokens_vectors_and_batches(service: Service) -> None:
    lines = [
        'quintet_prompt_tokens_total{model="minilm"',
        'quintet_vectors_total{model="minilm"',
        'quintet_batch_size_sum{model="minilm"',
        'quintet_request_queue_time_seconds_count{model="minilm"',
        'quintet_requests_total{code="200",endpoint="/embeddings",model="minilm"',
    ]
    before = [metric(service, line) for line in lines]
    post(service, "/v1/embeddings", {"input": ["hello world", "hello"], "model": "bge-m3"})
    after = [metric(service, line) for line in lines]
    assert [b - a for a, b in zip(before, after, strict=True)] == [7, 2, 2, 1, 1]


def test_models_tell_what_they_are(service: Service) -> None:
    cards = {card["id"]: card for card in httpx2.get(service.url + "/v1/models").json()["data"]}
    assert cards["minilm"]["engine"] == "sentence-transformers"
    assert (cards["minilm"]["dimensions"], cards["minilm"]["context"]) == (384, 256)
    assert cards["tiny-reranker"]["kind"] == "rerank"
    assert cards["other-minilm"]["state"] == "failed"


async def test_many_clients_share_batches_and_get_their_own(service: Service) -> None:
    sizes, count = ('quintet_batch_size_sum{model="minilm"', 'quintet_batch_size_count{model="minilm"')
    before = metric(service, sizes), metric(service, count)
    client = openai.AsyncOpenAI(base_url=service.url + "/v1", api_key="none", max_retries=0)
    texts = [f"client {i} says {i * i}" for i in range(64)]
    answers = await asyncio.gather(*(client.embeddings.create(model="minilm", input=text) for text in texts))
    together = vectors(await client.embeddings.create(model="minilm", input=texts))
    found = np.concatenate([vectors(answer) for answer in answers])
    assert ((found @ together.T).argmax(axis=1) == np.arange(64)).all()
    batches = metric(service, count) - before[1]
    assert metric(service, sizes) - before[0] == 128
    assert batches <= 32


async def until_idle(service: Service) -> None:
    """The worker tells its gauges once a second, when they have changed: what it told before counts for nothing."""
    await asyncio.sleep(1.2)
    async with asyncio.timeout(60):
        while metric(service, 'quintet_num_requests_running{model="minilm"'):  # noqa: ASYNC110  # it happens in another process
            await asyncio.sleep(0.1)


async def test_a_client_that_leaves_frees_the_model(service: Service) -> None:
    body = {"model": "minilm", "input": ["a long text to be read " * 40] * 2048}
    vectors_before = metric(service, 'quintet_vectors_total{model="minilm"')
    async with httpx2.AsyncClient() as client:
        with pytest.raises(httpx2.ReadTimeout):
            await client.post(service.url + "/v1/embeddings", json=body, timeout=httpx2.Timeout(30, read=0.5))
        answer = await client.post(service.url + "/v1/embeddings", json={"input": "a"}, timeout=60)
        assert answer.status_code == 200
    await until_idle(service)
    assert metric(service, 'quintet_vectors_total{model="minilm"') == vectors_before + 1
    assert metric(service, 'quintet_requests_total{code="499",endpoint="/embeddings",model="minilm"') >= 1


async def test_sixty_four_clients_of_whom_a_third_leaves(service: Service) -> None:
    async with httpx2.AsyncClient(timeout=60, limits=httpx2.Limits(max_connections=64)) as client:

        async def ask(number: int) -> list[float] | None:
            if number % 3:
                body = {"model": "minilm", "input": f"number {number}", "encoding_format": "float"}
                answer = (await client.post(service.url + "/v1/embeddings", json=body)).json()
                found: list[float] = answer["data"][0]["embedding"]
                return found
            body = {"model": "minilm", "input": ["a long text to be read " * 40] * 100}
            with contextlib.suppress(httpx2.ReadTimeout):
                await client.post(service.url + "/v1/embeddings", json=body, timeout=httpx2.Timeout(30, read=0.1))
            return None

        found = await asyncio.gather(*(ask(number) for number in range(64)))
        alone = await ask(1)
    await until_idle(service)
    assert sum(vector is not None for vector in found) == 42
    assert np.array(found[1]) @ np.array(alone) > 0.999


# Reranking

DOCUMENTS = ["the cat sat on the mat", "你好 世界", "hello world", "serving models on GPUs"]


@pytest.mark.parametrize("path", ["/v1/rerank", "/rerank"])
def test_rerank_sorts_by_the_scores_of_the_cross_encoder(service: Service, path: str) -> None:
    from sentence_transformers import CrossEncoder

    query = "which query finds the cat"
    model = CrossEncoder(service.reranker, device="cpu", local_files_only=True)
    expected = model.predict([(query, document) for document in DOCUMENTS])
    status, answer = post(service, path, {"model": "tiny-reranker", "query": query, "documents": DOCUMENTS})
    assert status == 200
    scores = {result["index"]: result["relevance_score"] for result in answer["results"]}
    assert np.abs(np.array([scores[i] for i in range(4)]) - expected).max() < 1e-5
    assert [result["index"] for result in answer["results"]] == np.argsort(-expected).tolist()
    assert answer["usage"]["total_tokens"] == answer["usage"]["prompt_tokens"] > 20
    assert (answer["object"], answer["model"]) == ("list", "tiny-reranker")
    assert all("document" not in result for result in answer["results"])


def test_rerank_top_n_and_documents(service: Service) -> None:
    documents = [{"text": DOCUMENTS[0], "title": "ignored"}, *DOCUMENTS[1:]]
    status, answer = post(
        service, "/v1/rerank", {"query": "hello", "documents": documents, "top_n": 2, "return_documents": True}
    )
    assert status == 200
    assert len(answer["results"]) == 2
    for result in answer["results"]:
        assert result["document"] == {"text": DOCUMENTS[result["index"]]}
    assert len(post(service, "/v1/rerank", {"query": "a", "documents": documents, "top_n": 9})[1]["results"]) == 4


@pytest.mark.parametrize(
    ("change", "status", "param"),
    [
        ({"query": ""}, 400, "query"),
        ({"query": None}, 400, "query"),
        ({"documents": []}, 400, "documents"),
        ({"documents": "a"}, 400, "documents"),
        ({"documents": ["a", 3]}, 400, "documents[1]"),
        ({"documents": ["a", {"title": "b"}]}, 400, "documents[1].text"),
        ({"documents": ["a"] * 2049}, 400, "documents"),
        ({"documents": ["a", "the cat " * 300], "truncate": False}, 400, "documents[1]"),
        ({"top_n": 0}, 400, "top_n"),
        ({"rank_fields": ["a"]}, 400, "rank_fields"),
        ({"max_tokens_per_doc": 10}, 400, "max_tokens_per_doc"),
        ({"model": "minilm"}, 404, "model"),
        ({"model": "nope"}, 404, "model"),
    ],
)
def test_rerank_mistakes(service: Service, change: dict[str, Any], status: int, param: str) -> None:
    found, answer = post(service, "/v1/rerank", {"query": "a", "documents": ["b"], **change})
    assert (found, answer["error"]["param"]) == (status, param)


async def test_without_a_reranker_the_answer_says_so() -> None:
    from quintet_embed.app import create_app

    transport = httpx2.ASGITransport(app=create_app([]))
    async with httpx2.AsyncClient(transport=transport, base_url="http://test") as client:
        answer = await client.post("/v1/rerank", json={"model": "bge-reranker", "query": "a", "documents": ["b"]})
        assert answer.status_code == 404
        assert answer.json()["error"]["code"] == "model_not_found"
        assert "No reranking model is configured" in answer.json()["error"]["message"]


# Tokenising


def test_tokenize(service: Service) -> None:
    status, answer = post(service, "/tokenize", {"input": "hello world"})
    assert status == 200
    assert answer["data"] == [{"index": 0, "tokens": [101, 7592, 2088, 102], "count": 4}]
    assert answer["max_model_len"] == 256
    bare = {"input": ["hello world", "hello"], "model": "minilm", "add_special_tokens": False}
    assert [each["tokens"] for each in post(service, "/v1/tokenize", bare)[1]["data"]] == [[7592, 2088], [7592]]
    assert post(service, "/tokenize", {"input": "hello", "model": "tiny-reranker"})[1]["max_model_len"] == 128
    assert post(service, "/tokenize", {"input": [1]})[1]["error"]["param"] == "input[0]"
    assert post(service, "/tokenize", {"input": "a", "model": "other-minilm"})[0] == 503


# The house


def test_the_document_describes_every_form_of_input(service: Service) -> None:
    document = httpx2.get(service.url + "/openapi.json").json()
    assert {"/v1/embeddings", "/v1/rerank", "/v1/tokenize"} <= set(document["paths"])
    forms = document["components"]["schemas"]["EmbeddingsBody"]["properties"]["input"]["oneOf"]
    assert [form["type"] for form in forms] == ["string", "array", "array", "array"]


def test_the_document_says_that_a_vector_may_be_base64(service: Service) -> None:
    document = httpx2.get(service.url + "/openapi.json").json()
    entry = document["components"]["schemas"]["ExtendedEmbedding"]["properties"]
    assert [form["type"] for form in entry["embedding"]["anyOf"]] == ["array", "string"]
    for form, kind in (("base64", str), ("float", list)):
        body = {"input": "hello", "model": "minilm", "encoding_format": form}
        assert isinstance(post(service, "/v1/embeddings", body)[1]["data"][0]["embedding"], kind)


def test_the_api_side_never_imports_torch() -> None:
    code = (
        "import quintet_embed.app, sys;"
        "sys.exit(', '.join(m for m in ('torch', 'transformers', 'sentence_transformers') if m in sys.modules) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_worker_stays_within_its_memory(service: Service) -> None:
    for _ in range(20):  # what the other tests' texts took is given back once the model is idle
        resident = metric(service, 'quintet_worker_memory_bytes{model="minilm"')
        if resident < 800e6:
            break
        time.sleep(0.5)
    assert 100e6 < resident < 800e6
