"""What is said of models that no hub gives."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from quintet_common import hub
from quintet_common.models_yml import ModelSpec
from quintet_common.pool import ModelPool
from quintet_common.worker.process import State

SPEC = ModelSpec(id="a", kind="chat", path="Qwen/Qwen2-Chatt")
NOWHERE = "http://127.0.0.1:9"


class Hub(http.server.BaseHTTPRequestHandler):
    """Has nothing: ``refusal`` is its status and its error code."""

    refusal = (404, "RepoNotFound")

    def do_GET(self) -> None:
        self.send_response(self.refusal[0])
        self.send_header("X-Error-Code", self.refusal[1])
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def empty_hub() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def use(monkeypatch: pytest.MonkeyPatch, url: str, cache: Path) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


def test_a_hub_that_cannot_be_reached(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    use(monkeypatch, NOWHERE, tmp_path)
    with pytest.raises(hub.HubError) as caught:
        hub.check(SPEC)
    said = str(caught.value)
    assert said.startswith("a: 'Qwen/Qwen2-Chatt' is no folder here, and the hub 127.0.0.1:9 cannot be reached: ")
    assert "HF_ENDPOINT=https://… names another or a mirror." in said
    assert "like ./Qwen2-Chatt; `quintet pull Qwen/Qwen2-Chatt --into FOLDER`" in said


@pytest.mark.parametrize(
    ("refusal", "says"),
    [
        ((404, "RepoNotFound"), "has no model 'Qwen/Qwen2-Chatt', or hides it from who sends no HF_TOKEN."),
        ((403, "GatedRepo"), "gives Qwen/Qwen2-Chatt only to whom its owner lets; HF_TOKEN is the token for it."),
        ((404, "RevisionNotFound"), "has Qwen/Qwen2-Chatt, but no 'main' of it."),
    ],
)
def test_a_model_that_the_hub_does_not_give(
    empty_hub: str, refusal: tuple[int, str], says: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    use(monkeypatch, empty_hub, tmp_path)
    monkeypatch.setattr(Hub, "refusal", refusal)
    with pytest.raises(hub.NotOnHub) as caught:
        hub.check(SPEC)
    assert f"and the hub {empty_hub.removeprefix('http://')} {says}" in str(caught.value)


def test_a_mirror_that_has_files_alone_is_no_reason(
    empty_hub: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    use(monkeypatch, empty_hub, tmp_path)
    monkeypatch.setattr(Hub, "refusal", (500, ""))
    hub.check(SPEC)


def test_what_was_fetched_before_or_is_a_folder_needs_no_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    use(monkeypatch, NOWHERE, tmp_path)
    (tmp_path / "models--Qwen--Qwen2-Chatt" / "snapshots" / "abc").mkdir(parents=True)
    hub.check(SPEC)
    hub.check(ModelSpec(id="a", kind="chat", path=str(tmp_path)))
    hub.check(ModelSpec(id="a", kind="chat", path="embedded:smollm2-135m-instruct"))


def test_what_is_to_be_fetched_is_known_without_asking(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from huggingface_hub import constants

    use(monkeypatch, NOWHERE, tmp_path)
    assert hub.awaits(SPEC)
    assert not hub.awaits(ModelSpec(id="a", kind="chat", path=str(tmp_path)))
    assert not hub.awaits(ModelSpec(id="a", kind="chat", path="embedded:smollm2-135m-instruct"))
    assert hub.source().startswith("fetched from 127.0.0.1:9 at start")
    (tmp_path / "models--Qwen--Qwen2-Chatt" / "snapshots" / "abc").mkdir(parents=True)
    assert not hub.awaits(SPEC)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert hub.source() == "no hub is asked while HF_HUB_OFFLINE is set."


async def test_a_model_whose_hub_is_away_is_failed_and_not_given_up(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    monkeypatch.setenv("HF_ENDPOINT", NOWHERE)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    pool: ModelPool[Any] = ModelPool([SPEC], "echo_engine:create_engine", dict[str, str])
    pool.start()
    try:
        (worker,) = pool
        await worker.until(State.FAILED)
        assert worker.note.startswith("a: 'Qwen/Qwen2-Chatt' is no folder here, and the hub 127.0.0.1:9 cannot be")
        assert not worker.given_up
    finally:
        await pool.close()


def test_models_of_sentence_transformers_need_no_organisation(
    empty_hub: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    use(monkeypatch, empty_hub, tmp_path)
    short = ModelSpec(id="a", kind="embedding", path="all-MiniLM-L6-v2")
    assert hub.awaits(short)
    hub.check(short)  # the hub has none of this name alone: the library looks further
    (tmp_path / "models--sentence-transformers--all-MiniLM-L6-v2" / "snapshots" / "0").mkdir(parents=True)
    assert not hub.awaits(short)
    with pytest.raises(hub.NotOnHub):
        hub.check(ModelSpec(id="a", kind="chat", path="all-MiniLM-L6-v2"))
