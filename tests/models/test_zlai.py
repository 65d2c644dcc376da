"""ZLAI's ``models_config.yml`` with every model of its page: each goes to its service, which loads it and answers."""

from __future__ import annotations

import base64
import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("diffusers")
pytest.importorskip("tiktoken")

from chat.serving import serving
from models.zlai_models import ENTRIES, write
from openai import OpenAI
from PIL import Image
from quintet.main import main
from quintet_chat.worker import create_engine
from quintet_common import vllm_program
from quintet_common.models_yml import ModelSpec, load_config

QUESTION: Any = [{"role": "user", "content": "the cat"}]


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("zlai"))


@pytest.fixture(scope="module")
def specs(file: Path) -> dict[str, ModelSpec]:
    return {spec.id: spec for spec in load_config(file).models}


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUINTET_THREADS", "1")
    # The check looks whether there is a vLLM for the models that need it, and not whether it works.
    monkeypatch.setenv(vllm_program.PYTHON, sys.executable)


@contextmanager
def client_of(app: Any) -> Iterator[OpenAI]:
    with serving(app) as url:
        yield OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=300)


def checked(file: Path) -> int | str | None:
    """The status with which ``quintet check`` ends."""
    with pytest.raises(SystemExit) as ended:
        main(["check", str(file)])
    return ended.value.code


def test_the_file_is_right_and_every_model_has_its_service(
    file: Path, specs: dict[str, ModelSpec], capsys: pytest.CaptureFixture[str]
) -> None:
    assert checked(file) == 0
    told = capsys.readouterr().out
    for entry in ENTRIES:
        assert specs[entry.name].kind == entry.kind
        assert entry.name in told


def test_what_cannot_fit_is_refused_with_what_it_needs(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = tmp_path / "models_config.yml"
    small.write_text(file.read_text().replace('"2GB"', '"10KB"'))
    assert checked(small) == 1
    refused = capsys.readouterr().err.splitlines()
    assert len([line for line in refused if "max_memory grants 10 kB" in line and "need" in line]) == len(ENTRIES)


def test_what_transformers_lacks_goes_to_vllm(specs: dict[str, ModelSpec]) -> None:
    through = {name for name, spec in specs.items() if spec.kind in ("chat", "multimodal")
               if type(create_engine(spec)).__name__ == "VllmEngine"}  # fmt: skip
    assert through == {"Qwen2-57B-A14B-Instruct-GPTQ-Int4", "MiniCPM-V-2_6"}


def test_chat(specs: dict[str, ModelSpec]) -> None:
    from quintet_chat.app import create_app

    chosen = specs["glm-4-9b-chat-1m"]  # that transformers does not know by itself
    with client_of(create_app("chat", [chosen])) as client:
        answer = client.chat.completions.create(model=chosen.id, messages=QUESTION, max_tokens=5)
        assert answer.usage is not None
        assert 1 <= answer.usage.completion_tokens <= 5
        assert client.models.retrieve(chosen.id).owned_by == "Open Source"


def test_images(specs: dict[str, ModelSpec]) -> None:
    from quintet_vision.app import create

    chosen = specs["Kolors-image2image"]
    with client_of(create([chosen])) as client:
        wanted: Any = {"model": chosen.id, "prompt": "a cat", "size": "64x64", "response_format": "b64_json"}
        drawn = client.images.generate(**wanted, extra_body={"num_inference_steps": 2}).data[0].b64_json
        first = Image.open(io.BytesIO(base64.b64decode(drawn)))
        assert first.size == (64, 64)
        given = io.BytesIO(base64.b64decode(drawn))
        edited = client.images.edit(image=("cat.png", given), **wanted, extra_body={"num_inference_steps": 2})
        assert Image.open(io.BytesIO(base64.b64decode(edited.data[0].b64_json))).size == (64, 64)


def test_speech(specs: dict[str, ModelSpec]) -> None:
    from quintet_tts.app import create

    chosen = specs["CosyVoice-300M-SFT"]
    with client_of(create([chosen])) as client:
        sound = client.audio.speech.create(model=chosen.id, voice="中文女", input="你好。", response_format="wav")
        assert sound.content[:4] == b"RIFF"


def test_embeddings(specs: dict[str, ModelSpec]) -> None:
    from quintet_embed.app import create_app

    with client_of(create_app([specs["bge-m3"]])) as client:
        assert len(client.embeddings.create(model="bge-m3", input="the cat").data[0].embedding) == 32
