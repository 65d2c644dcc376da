"""Embeddings: our engine against sentence-transformers, on a bge-m3 of full size with random weights.

Correctness in float32 (the numbers differ by less than 1e-5) and in the device's usual type (cosine of 0.999); speed as
texts per second: one request of many texts, and many requests of one text, as they come from many clients.
"""

from __future__ import annotations

import itertools
import json
import random
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from check import Setup, Table
from quintet_common.errors import ApiError
from quintet_common.models_yml import ModelSpec
from quintet_embed.engine.engine import EmbedEngine
from quintet_embed.protocol import EmbedRequest, Vectors
from tokenizers import Tokenizer, models, pre_tokenizers, processors

M3 = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
TINY = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
WORDS = [f"w{number}" for number in range(5000)]
BULK, CLIENTS = 1024, (1, 32, 256)


def check(setup: Setup) -> Iterator[Table]:
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    with tempfile.TemporaryDirectory() as folder:
        path = save_model(setup, Path(folder))
        for dtype in dict.fromkeys((torch.float32, setup.dtype)):
            ours, theirs = Ours(setup, path, dtype), bare(setup, path, dtype)
            yield correctness(ours, theirs, dtype)
            if dtype == setup.dtype:
                yield speed(setup, ours, theirs)
            del ours, theirs
            setup.free()


def save_model(setup: Setup, path: Path) -> Path:
    """bge-m3's shape with random weights, its two heads, and a tokenizer of whole words."""
    torch.manual_seed(0)
    shape = TINY if setup.tiny else M3
    ids = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
    vocabulary = 6000 if setup.tiny else 250_002
    config = transformers.XLMRobertaConfig(
        vocab_size=vocabulary, max_position_embeddings=8194, type_vocab_size=1, **shape, **ids
    )
    with setup.device:
        model = transformers.XLMRobertaModel(config, add_pooling_layer=False)
    model.save_pretrained(path)
    width = config.hidden_size
    for name, out in (("sparse", 1), ("colbert", width)):
        torch.save(torch.nn.Linear(width, out).state_dict(), path / f"{name}_linear.pt")
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate([*special, *WORDS])}, "<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)])
    names = {"bos_token": "<s>", "cls_token": "<s>", "eos_token": "</s>", "sep_token": "</s>", "pad_token": "<pad>"}
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, unk_token="<unk>", model_max_length=8192, **names
    ).save_pretrained(path)
    write_modules(path, width)
    return path


def write_modules(path: Path, width: int) -> None:
    parts = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
    modules = [
        {"idx": i, "name": str(i), "path": place, "type": f"sentence_transformers.models.{name}"}
        for i, (place, name) in enumerate(parts)
    ]
    (path / "modules.json").write_text(json.dumps(modules))
    (path / "sentence_bert_config.json").write_text('{"max_seq_length": 8192, "do_lower_case": false}')
    (path / "1_Pooling").mkdir()
    pooling = {"word_embedding_dimension": width, "pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
    (path / "1_Pooling" / "config.json").write_text(json.dumps(pooling))


def texts(count: int) -> list[str]:
    """Of 8 to 256 words: queries and passages."""
    chooser = random.Random(count)
    return [" ".join(chooser.choices(WORDS, k=chooser.choice((8, 16, 64, 256)))) for _ in range(count)]


def bare(setup: Setup, path: Path, dtype: torch.dtype) -> Any:
    """sentence-transformers as it comes, in that type."""
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(
        str(path), device=str(setup.device), local_files_only=True, model_kwargs={"dtype": dtype}
    ).eval()


class Ours:
    """Our engine, in this process, on requests without HTTP."""

    def __init__(self, setup: Setup, path: Path, dtype: torch.dtype) -> None:
        name: Any = str(dtype).removeprefix("torch.")
        spec = ModelSpec(
            id="m", kind="embedding", path=str(path), dtype=name, device=str(setup.device), max_waiting=4096
        )
        self._engine = EmbedEngine(spec)
        self._engine.load(lambda _fraction, _note: None)
        self._ids = itertools.count(1)

    def submit(self, request: EmbedRequest) -> Ended:
        ended = Ended()
        self._engine.submit(next(self._ids), request, ended)  # type: ignore[arg-type]
        return ended

    def encode(self, inputs: list[str]) -> Any:
        event = self.submit(EmbedRequest(texts=inputs)).vectors()
        return np.frombuffer(event.data, "<f4").reshape(-1, event.dimensions)

    def one_by_one(self, inputs: list[str], clients: int) -> None:
        """Each text is a request of its own; so many clients wait for each answer before their next request."""
        shares = [inputs[number::clients] for number in range(clients)]

        def client(share: list[str]) -> None:
            for text in share:
                self.submit(EmbedRequest(texts=[text])).vectors()

        threads = [threading.Thread(target=client, args=(share,)) for share in shares]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


class Ended:
    """Takes the place of the worker's Emit: keeps the one event of a request."""

    def __init__(self) -> None:
        self._event: Vectors | None = None
        self._error: ApiError | None = None
        self._ended = threading.Event()

    def __call__(self, event: Vectors) -> None:
        self._event = event

    def done(self) -> None:
        self._ended.set()

    def fail(self, error: ApiError) -> None:
        self._error = error
        self._ended.set()

    def vectors(self) -> Vectors:
        self._ended.wait()
        if self._error is not None:
            raise self._error
        assert self._event is not None
        return self._event


def least_cosine(these: Any, those: Any) -> float:
    """Of any two rows; sentence-transformers makes vectors of length 1 in the model's type, so they are not quite."""
    lengths = np.linalg.norm(these, axis=1) * np.linalg.norm(those, axis=1)
    return float(((these * those).sum(axis=1) / lengths).min())


def correctness(ours: Ours, theirs: Any, dtype: torch.dtype) -> Table:
    table = Table(f"embeddings, {dtype}: against sentence-transformers", ["what", "found", "limit", ""])
    inputs = texts(96)
    found, expected = ours.encode(inputs), theirs.encode(inputs, show_progress_bar=False)
    cosine = least_cosine(found, expected)
    alone = least_cosine(found[:8], np.concatenate([ours.encode([text]) for text in inputs[:8]]))
    if dtype == torch.float32:
        worst = float(np.abs(found - expected).max())
        table.add("largest difference", f"{worst:.1e}", "1e-5", table.verdict(worst < 1e-5, "vectors differ"))
    limit = 0.9999 if dtype == torch.float32 else 0.999
    table.add("least cosine", f"{cosine:.6f}", limit, table.verdict(cosine >= limit, "vectors point elsewhere"))
    table.add("alone and among others", f"{alone:.6f}", limit, table.verdict(alone >= limit, "neighbours matter"))
    event = ours.submit(EmbedRequest(texts=inputs[:16], sparse=True, colbert=True)).vectors()
    whole = len(event.sparse) == len(event.colbert) == 16 and any(len(each.indices) for each in event.sparse)
    table.add(
        "sparse and ColBERT", f"{event.colbert_dimensions} numbers", "", table.verdict(whole, "heads are missing")
    )
    return table


def speed(setup: Setup, ours: Ours, theirs: Any) -> Table:
    table = Table("embeddings: texts per second", ["what", "ours", "sentence-transformers", "ratio"])
    count = 64 if setup.tiny else BULK
    inputs = texts(count)
    ours.encode(inputs), theirs.encode(inputs, show_progress_bar=False)  # both are warm
    mine, _ = setup.timed(lambda: ours.encode(inputs))
    bulk, _ = setup.timed(lambda: theirs.encode(inputs, show_progress_bar=False))
    table.add(f"{count} texts in one request", f"{count / mine:.0f}", f"{count / bulk:.0f}", f"{bulk / mine:.2f}")
    alone, _ = setup.timed(lambda: [theirs.encode(text, show_progress_bar=False) for text in inputs])
    for clients in CLIENTS:
        ours.one_by_one(inputs, min(clients, count))
        mine, _ = setup.timed(lambda clients=clients: ours.one_by_one(inputs, min(clients, count)))  # type: ignore[misc]
        ratio = f"{alone / mine:.2f}"
        table.add(f"one text per request, {clients} clients", f"{count / mine:.0f}", f"{count / alone:.0f}", ratio)
    return table
