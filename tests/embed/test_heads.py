"""bge-m3's other outputs, against a computation of their own on the same weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from embed.embed_doubles import spec_of
from embed.embed_models import write_embedder, write_heads
from embed.test_backends import TEXTS, Model, sentence_transformer
from quintet_common.errors import ApiError
from quintet_common.worker.host import LoadError
from quintet_embed.backends.sentence_transformers import COLBERT_SIZE, COLBERT_TEXTS
from quintet_embed.engine.job import Tokens
from quintet_embed.protocol import EmbedRequest, Vectors


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = write_embedder(tmp_path_factory.mktemp("m3") / "model")
    write_heads(folder)
    return folder


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def model(path: str, request: pytest.FixtureRequest) -> Model:
    return Model(spec_of(path=path, dtype=request.param))


def directly(path: str, text: str) -> tuple[dict[int, float], Any]:
    """Sparse and ColBERT of one text, token by token, from the files."""
    st = sentence_transformer(path)
    features = st[0].preprocess([text])
    with torch.no_grad():
        states = st[0](features)["token_embeddings"][0]
    ids = features["input_ids"][0].tolist()
    sparse, colbert = (torch.load(Path(path) / f"{name}_linear.pt") for name in ("sparse", "colbert"))
    weights: dict[int, float] = {}
    vectors = []
    for position, (token, state) in enumerate(zip(ids, states, strict=True)):
        weight = max(0.0, float(sparse["weight"][0] @ state + sparse["bias"][0]))
        if token > 3 and weight > 0:  # 0 to 3 are <s>, <pad>, </s> and <unk>
            weights[token] = max(weights.get(token, 0.0), weight)
        if position:
            vector = colbert["weight"] @ state + colbert["bias"]
            vectors.append((vector / vector.norm()).numpy())
    return weights, np.array(vectors)


def sparse_of(event: Vectors, index: int) -> dict[int, float]:
    found = event.sparse[index]
    ids, values = np.frombuffer(found.indices, "<i4"), np.frombuffer(found.values, "<f4")
    assert list(ids) == sorted(set(ids))
    return dict(zip(ids.tolist(), values.tolist(), strict=True))


def test_both_are_what_a_direct_computation_gives(path: str, model: Model) -> None:
    event = model.ask(EmbedRequest(texts=TEXTS, sparse=True, colbert=True))
    near = 1e-5 if model.info["dtype"] == "float32" else 3e-2
    assert any(sparse_of(event, index) for index in range(len(TEXTS)))
    for index, text in enumerate(TEXTS):
        weights, vectors = directly(path, text)
        found = sparse_of(event, index)
        for token in weights.keys() | found.keys():
            assert found.get(token, 0.0) == pytest.approx(weights.get(token, 0.0), abs=near)
        rows = np.frombuffer(event.colbert[index], "<f4").reshape(-1, event.colbert_dimensions)
        assert rows.shape == vectors.shape
        assert np.abs(rows - vectors).max() < near
        assert np.abs(np.linalg.norm(rows, axis=1) - 1).max() < 1e-5


def test_the_dense_vector_is_the_same_with_and_without(model: Model) -> None:
    event = model.ask(EmbedRequest(texts=TEXTS, sparse=True, colbert=True))
    rows = np.frombuffer(event.data, "<f4").reshape(len(TEXTS), -1)
    assert np.abs(rows - model.embed(TEXTS)).max() < 1e-6


def test_only_what_was_asked_for_comes(model: Model) -> None:
    for sparse, colbert in ((True, False), (False, True), (False, False)):
        event = model.ask(EmbedRequest(texts=["the cat", "vectors"], sparse=sparse, colbert=colbert))
        assert (len(event.sparse), len(event.colbert)) == (2 * sparse, 2 * colbert)


def test_neighbours_that_ask_for_less_get_less(model: Model) -> None:
    """Requests of all kinds share batches; each gets its own."""
    backend = model.engine._backend
    assert backend is not None
    kinds = [(True, False), (False, False), (False, True), (True, True)]
    extras = backend.forward([Tokens([0, 5, 6, 2], None, 0, *kind) for kind in kinds]).extras
    assert [each and (each.sparse is not None, each.colbert is not None) for each in extras] == [
        kind if any(kind) else None for kind in kinds
    ]


def test_padding_on_the_left_and_token_ids(tmp_path: Path) -> None:
    path = write_embedder(tmp_path / "model", padding_side="left", pooling="mean")
    write_heads(path)
    model = Model(spec_of(path=path, dtype="float32"))
    event = model.ask(EmbedRequest(texts=TEXTS, sparse=True, colbert=True))
    st = sentence_transformer(path)
    ids = [st.tokenizer(text)["input_ids"] for text in TEXTS]
    by_ids = model.ask(EmbedRequest(token_ids=ids, sparse=True, colbert=True))
    for index, text in enumerate(TEXTS):
        weights, vectors = directly(path, text)
        assert sparse_of(event, index) == pytest.approx(weights, abs=1e-5)
        assert sparse_of(by_ids, index) == pytest.approx(weights, abs=1e-5)
        assert np.abs(np.frombuffer(event.colbert[index], "<f4").reshape(vectors.shape) - vectors).max() < 1e-5


def test_a_model_without_heads_refuses_by_name(path: str, tmp_path: Path) -> None:
    plain = Model(spec_of(path=write_embedder(tmp_path / "model")))
    assert plain.info["outputs"] == ["dense"]
    for name in ("sparse", "colbert"):
        with pytest.raises(ApiError, match=f"return_{name} is not possible") as caught:
            plain.ask(EmbedRequest(texts=["a"], **{name: True}))
        assert (caught.value.param, caught.value.code) == (f"return_{name}", "unsupported_parameter")
    half = write_embedder(tmp_path / "half")
    (Path(half) / "sparse_linear.pt").write_bytes((Path(path) / "sparse_linear.pt").read_bytes())
    assert Model(spec_of(path=half)).info["outputs"] == ["dense", "sparse"]


def test_token_vectors_are_bounded(model: Model) -> None:
    for texts in (["a"] * (COLBERT_TEXTS + 1), ["a" * (COLBERT_SIZE // 2), "a" * (COLBERT_SIZE // 2 + 1)]):
        with pytest.raises(ApiError, match="Send fewer texts") as caught:
            model.ask(EmbedRequest(texts=texts, colbert=True, truncate=True))
        assert caught.value.param == "return_colbert"
    assert len(model.ask(EmbedRequest(texts=["a"] * COLBERT_TEXTS, colbert=True)).colbert) == COLBERT_TEXTS


@pytest.mark.parametrize(
    ("layer", "says"),
    [
        (torch.nn.Linear(16, 1).state_dict(), "reads 16 numbers; this model's states have 32"),
        (torch.nn.Linear(32, 3).state_dict(), "gives 3 numbers per token"),
        ({"weight": torch.zeros(1, 32)}, "is not a linear layer"),
        (torch.nn.Linear(32, 1), "is not a linear layer"),  # a whole object would be code to run
    ],
)
def test_a_head_that_does_not_fit_is_said_in_one_line(tmp_path: Path, layer: Any, says: str) -> None:
    path = write_embedder(tmp_path / "model")
    torch.save(layer, Path(path) / "sparse_linear.pt")
    with pytest.raises(LoadError, match=says) as caught:
        Model(spec_of(path=path))
    assert "\n" not in str(caught.value)
