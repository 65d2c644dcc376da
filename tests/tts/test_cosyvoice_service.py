"""CosyVoice as a service: its own process, and OpenAI's SDK at the other end."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import httpx2
import openai
import pytest

pytest.importorskip("torch")
pytest.importorskip("tiktoken")

import uvicorn
from quintet_common.models_yml import parse_config
from quintet_tts.app import create
from tts import cosyvoice_tiny

ZLAI = """
models_config:
  - model_name: CosyVoice-300M-Instruct
    model_path: CosyVoice-300M-Instruct
    model_type: audio
    load_method: load_cosy_voice
    max_memory: {"0": "20GB"}
  - model_name: CosyVoice2-0.5B
    model_path: CosyVoice2-0.5B
    model_type: audio
    load_method: load_cosy_voice
    max_memory: {"0": "20GB"}
"""


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("models")
    cosyvoice_tiny.write(folder / "CosyVoice-300M-Instruct")
    (folder / "CosyVoice2-0.5B").mkdir()
    (folder / "CosyVoice2-0.5B" / "cosyvoice2.yaml").touch()
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    specs = parse_config(ZLAI, folder / "models_config.yml").models
    server = uvicorn.Server(uvicorn.Config(create(specs), log_level="critical", timeout_graceful_shutdown=5))
    thread = threading.Thread(target=server.run, args=([sock],), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{sock.getsockname()[1]}"
    server.should_exit = True
    thread.join(60)


def test_it_speaks_as_told_and_the_newer_one_is_refused(origin: str) -> None:
    client = openai.OpenAI(base_url=f"{origin}/v1", api_key="none", max_retries=30)
    more = {"model": "CosyVoice-300M-Instruct", "voice": "中文女", "input": "今天花了12元。", "response_format": "pcm"}
    sounds = []
    for instructions in ("", "Speak sadly.", "Speak gladly."):
        with client.audio.speech.with_streaming_response.create(
            **more,  # type: ignore[arg-type]
            instructions=instructions,
            extra_body={"seed": 1},
        ) as response:
            sounds.append(b"".join(response.iter_bytes()))
            assert response.headers["x-quintet-engine"] == "cosyvoice"
    assert len(set(sounds)) == 3
    assert min(map(len, sounds)) > 24_000 // 5 * 2
    listed = httpx2.get(f"{origin}/v1/audio/voices", params={"model": "CosyVoice-300M-Instruct"}).json()["voices"]
    assert [voice["id"] for voice in listed[:7]] == cosyvoice_tiny.VOICES
    with pytest.raises(openai.InternalServerError, match=r"CosyVoice2 and CosyVoice3, .* are not") as caught:
        client.with_options(max_retries=0).audio.speech.create(**(more | {"model": "CosyVoice2-0.5B"}))  # type: ignore[arg-type]
    assert caught.value.status_code == 503
