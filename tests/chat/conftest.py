"""One server per kind of test, shared by all of them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from chat.serving import serving
from openai import OpenAI
from quintet_chat.app import create_app
from quintet_common.models_yml import ModelSpec, SamplingDefaults

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def scripted_url() -> Iterator[str]:
    """Models that say what the request tells them: with tools, eager, with a template for tools, without tools."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(HERE), *([before] if before else [])])

    def spec(name: str, **fields: object) -> ModelSpec:
        return ModelSpec(id=name, kind="chat", path="embedded:scripted", **fields)  # type: ignore[arg-type]

    hermes = {"info": {"tool_family": "hermes", "sampling": {"temperature": 0.3, "unknown": 1}}}
    thinking = {"info": {"tool_family": "hermes", "thinking": "think"}}
    native = {"info": {"tool_family": "hermes", "template_tools": True}}
    specs = [
        spec("org/scripted", aliases=["short"], default=True, engine_args=hermes),
        spec("eager", auto_tools="eager", engine_args=hermes),
        spec("native", engine_args=native),
        spec("toolless"),
        spec("seeing", engine_args={"info": {"modalities": ["text", "image"]}}),
        spec("thinker", engine_args=thinking),
        spec("wrapper", engine_args={"info": {"thinking": "hunyuan"}}),
        spec("coder", engine_args={"info": {"tool_family": "qwen3_coder"}}),
        spec("oss", engine_args={"info": {"tool_family": "harmony", "thinking": "harmony"}}),
    ]
    with serving(create_app("chat", specs, "scripted_engine:create_engine")) as url:
        yield url
    os.environ.pop("PYTHONPATH")
    if before is not None:
        os.environ["PYTHONPATH"] = before


@pytest.fixture(scope="session")
def smollm2_url() -> Iterator[str]:
    """The embedded chat model, served as models.yml has it."""
    spec = ModelSpec(
        id="smollm2-135m-instruct",
        aliases=["smollm2"],
        kind="chat",
        path="embedded:smollm2-135m-instruct",
        auto_tools="eager",
        sampling=SamplingDefaults(max_tokens=200),
    )
    with serving(create_app("chat", [spec])) as url:
        yield url


@pytest.fixture
def client(scripted_url: str) -> OpenAI:
    return OpenAI(base_url=f"{scripted_url}/v1", api_key="none", max_retries=0)


@pytest.fixture
def zlai_client(scripted_url: str) -> OpenAI:
    return OpenAI(base_url=scripted_url, api_key="none", max_retries=0)
