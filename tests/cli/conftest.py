"""The supervisor's tests run it as a user does: ``quintet serve`` in a process, here with stand-ins as services."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))
from cli_served import Served

MODULES = {
    "quintet_chat": ("chat", {"chat"}),
    "quintet_chat.multimodal": ("multimodal", {"multimodal"}),
    "quintet_vision": ("vision", {"image"}),
    "quintet_tts": ("tts", {"tts"}),
    "quintet_embed": ("embed", {"embedding", "rerank"}),
    "quintet_router": ("router", set[str]()),
}

TWO_MODELS = """models:
  - {id: small-talk, kind: chat, path: "embedded:smollm2-135m-instruct"}
  - {id: 小向量, kind: embedding, path: "embedded:all-minilm-l6-v2"}
"""


@pytest.fixture
def house(tmp_path: Path) -> Path:
    """A folder with stand-ins for every service and a models.yml of two models."""
    here = Path(__file__).parent
    for module, (name, kinds) in MODULES.items():
        package = tmp_path / "standins" / module.replace(".", "/")
        package.mkdir(parents=True)
        (package / "__init__.py").touch()
        call = f"import sys; sys.path.append({str(here)!r})\nimport standin_service as s\ns.main({name!r}, {kinds!r})\n"
        (package / "__main__.py").write_text(call)
    (tmp_path / "models.yml").write_text(TWO_MODELS)
    return tmp_path


@pytest.fixture
def serve(house: Path) -> Iterator[Callable[..., Served]]:
    """Start ``quintet serve`` with these arguments on a free port; it ends with the test."""
    running: list[Served] = []

    def start(*arguments: str, command: str = "quintet.main") -> Served:
        words = ["serve", *arguments, "--port=0"] if command == "quintet.main" else [*arguments, "--port=0"]
        running.append(Served(house, words, command))
        return running[-1]

    yield start
    for served in running:
        if served.process.poll() is None:
            served.stop(signal.SIGTERM)
