"""What ``engine_args`` may hold: each mistake with its line and what was meant, before anything is loaded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from quintet_common import engine_args
from quintet_common.models_yml import ConfigError, ModelSpec, parse_config


@pytest.mark.parametrize(
    ("entry", "args", "message"),
    [
        ("kind: chat\n  path: ./here", "kv_memry: 2GB", "kv_memry: unknown key; did you mean 'kv_memory'?"),
        (
            "kind: chat\n  path: ./here",
            "kv_memory: lots",
            "kv_memory: 'lots' is no amount of memory; write it like 2GB.",
        ),
        (
            "kind: chat\n  path: ./here",
            "prefix_cache: much",
            "prefix_cache: 'much' is no amount of memory; write it like 2GB, or off.",
        ),
        ("kind: chat\n  path: ./here", "prefill_chunk: 0", "prefill_chunk: expected a whole number >= 1."),
        (
            "kind: chat\n  path: ./here",
            "quantization: int5",
            "quantization: 'int5' is not one of int8, int4; did you mean 'int8'?",
        ),
        (
            "kind: multimodal\n  path: ./here",
            "trust_remote_code: 'yes'",
            "trust_remote_code: expected true or false, got text.",
        ),
        ("kind: chat\n  path: ./here", "url: http://a", "url: unknown key; it belongs to engine: vllm."),
        ("kind: chat\n  path: a/b", "kv_memory: lots", "kv_memory: 'lots' is no amount of memory; write it like 2GB."),
        (
            "kind: chat\n  path: a/b\n  engine: transformers",
            "max_num_seqs: 4",
            "max_num_seqs: unknown key; known: kv_m",
        ),
        (
            "kind: chat\n  path: a/b\n  engine: vllm",
            "tool_famly: x",
            "tool_famly: unknown key; did you mean 'tool_family'?",
        ),
        (
            "kind: chat\n  path: a/b\n  engine: vllm",
            "tool_family: x",
            "tool_family: 'x' is not one of none, hermes, glm4",
        ),
        (
            "kind: chat\n  path: a/b\n  engine: vllm",
            "url: host",
            "url: 'host' is not an address like http://host:8000.",
        ),
        ("kind: chat\n  path: a/b\n  engine: vllm", "env: [a]", "env: expected keys with values"),
        (
            "kind: chat\n  path: a/b\n  engine: vllm",
            "prefix_cache: 1GB",
            "prefix_cache: it belongs to engine: transformers",
        ),
        ("kind: multimodal\n  path: embedded:ppocr", "kv_memory: 1GB", "kv_memory: unknown key; it takes none."),
        ("kind: image\n  path: a/b", "step: 4", "step: unknown key; did you mean 'steps'?"),
        ("kind: image\n  path: a/b", "size: big", "size: 'big' is no size; write it like 1024x1024."),
        ("kind: image\n  path: a/b", "steps: 4.5", "steps: expected a whole number, got a number."),
        (
            "kind: image\n  path: a/b",
            "placement: ful",
            "placement: 'ful' is not one of auto, full, int8, offload, layers; did",
        ),
        ("kind: image\n  path: a/b", "vae_tiling: often", "vae_tiling: 'often' is not one of true, false, auto"),
        ("kind: image\n  path: a/b", "prompt_cache: big", "prompt_cache: 'big' is no amount of memory"),
        (
            "kind: image\n  path: embedded:emoji-64",
            "placement: full",
            "placement: unknown key; known: guidance_scale, ",
        ),
        ("kind: embedding\n  path: a/b", "batch_token: 4", "batch_token: unknown key; did you mean 'batch_tokens'?"),
        ("kind: rerank\n  path: a/b", "batch_tokens: 0", "batch_tokens: expected a whole number >= 1."),
        ("kind: tts\n  path: a/b", "first_chunk: 5", "first_chunk: expected a whole number >= 30."),
        ("kind: tts\n  path: a/b\n  engine: piper", "voices: x", "voices: unknown key; it takes none."),
        ("kind: tts\n  path: embedded:hibari", "voices: x", "voices: unknown key; it takes none."),
    ],
)
def test_a_mistake_is_told_with_its_line(entry: str, args: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    lines = entry.split("\n")
    lines[0] = f"  {lines[0]}"
    text = "\n".join(["models:", "- id: a", *lines, "  engine_args:", f"    {args}"])
    with pytest.raises(ConfigError) as caught:
        parse_config(text, tmp_path / "models.yml")
    assert str(caught.value).startswith(f"{tmp_path}/models.yml:{4 + len(lines)}: engine_args: {message}")


@pytest.mark.parametrize(
    ("kind", "path", "engine", "args"),
    [
        ("chat", "a/b", "vllm", {"max_num_seqs": 4, "env": {"A": 1}, "tool_family": "hermes", "quantization": "fp8"}),
        ("chat", "a/b", "auto", {"max_num_seqs": 4}),  # whether it is for vLLM is seen when it has been fetched
        ("chat", "a/b", "auto", {"prefix_cache": False, "kv_memory": 1000, "thinking": "none"}),
        ("image", "a/b", "auto", {"guidance_scale": 0, "vae_tiling": True, "size": "64x64", "strength": 1}),
        ("embedding", "a/b", "auto", {"revision": None, "batch_tokens": 100}),
        ("tts", "a/b", "auto", {"first_chunk": 100, "instruct": True}),
    ],
)
def test_what_may_be(kind: str, path: str, engine: str, args: dict[str, object], tmp_path: Path) -> None:
    entry = {"id": "a", "kind": kind, "path": path, "engine": engine, "engine_args": args}
    (spec,) = parse_config(json.dumps({"models": [entry]}), tmp_path / "models.yml").models
    assert spec.engine_args == args


def test_a_folder_says_which_engine_it_is_for(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"quantization_config": {"quant_method": "gptq"}}')
    text = f"models: [{{id: a, kind: chat, path: {tmp_path}, engine_args: {{max_num_seqs: 4}}}}]"
    assert parse_config(text, tmp_path / "models.yml").models[0].engine_args
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match="max_num_seqs: unknown key"):
        parse_config(text, tmp_path / "models.yml")


def test_an_engine_reads_its_settings_from_the_same_table() -> None:
    spec = ModelSpec(id="m", kind="rerank", path="/m", engine_args={"batch_tokens": 9})
    assert engine_args.read(spec, engine_args.SentenceTransformers).batch_tokens == 9
    with pytest.raises(ValueError, match=r"^m: engine_args: batch_tokens: unknown key; it takes none\.$"):
        engine_args.read(spec, engine_args.Nothing)
