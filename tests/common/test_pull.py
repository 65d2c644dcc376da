"""Downloading from a hub, spoken to by its own client: a small server here answers as the hub does."""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
from quintet_common.models_yml import ConfigError
from quintet_common.pull import Wanted, from_config, needed

COMMIT = "a" * 40
FILES = {
    "config.json": b'{"model_type": "llama"}',
    "model.safetensors": bytes(range(256)) * 1000,
    "pytorch_model.bin": b"pickled",
    "README.md": b"# words",
}
LARGE = {"model.safetensors", "pytorch_model.bin"}


class Hub(http.server.BaseHTTPRequestHandler):
    """Two calls of the hub's API, for one repository. ``damaged`` is a file whose bytes are not those it tells of."""

    damaged: str | None = None
    asked: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self._answer(True)

    def do_HEAD(self) -> None:
        self._answer(False)

    def _answer(self, with_body: bool) -> None:
        type(self).asked.append(f"{self.command} {self.path}")
        if self.path.startswith(f"/api/models/org/name/tree/{COMMIT}"):
            return self._send(200, json.dumps(self._tree()).encode(), {"Content-Type": "application/json"}, with_body)
        if self.path.startswith("/api/models/org/name"):
            return self._send(200, json.dumps(self._info()).encode(), {"Content-Type": "application/json"}, with_body)
        name = self.path.partition(f"/org/name/resolve/{COMMIT}/")[2]
        if name not in FILES:
            return self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"}, with_body)
        content = FILES[name]
        headers = {"ETag": f'"{_checksum(name)}"', "X-Repo-Commit": COMMIT}
        if name == self.damaged:
            content = content[:-1] + b"?"
        return self._send(200, content, headers, with_body)

    def _info(self) -> dict[str, Any]:
        siblings = []
        for name, content in FILES.items():
            each: dict[str, Any] = {"rfilename": name, "size": len(content), "blobId": _checksum(name)}
            if name in LARGE:
                each["lfs"] = {
                    "sha256": _checksum(name),
                    "oid": _checksum(name),
                    "size": len(content),
                    "pointerSize": 130,
                }
            siblings.append(each)
        return {"id": "org/name", "sha": COMMIT, "siblings": siblings, "private": False, "tags": [], "downloads": 0}

    def _tree(self) -> list[dict[str, Any]]:
        made = self._info()["siblings"]
        return [each | {"type": "file", "path": each["rfilename"], "oid": each["blobId"]} for each in made]

    def _send(self, status: int, body: bytes, headers: dict[str, str], with_body: bool) -> None:
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(body))}).items():
            self.send_header(name, value)
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


def _checksum(name: str) -> str:
    content = FILES[name]
    if name in LARGE:
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@pytest.fixture
def hub() -> Iterator[str]:
    Hub.damaged = None
    Hub.asked = []
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def environment(hub: str, home: Path) -> dict[str, str]:
    found = os.environ | {"HF_ENDPOINT": hub, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
    found.pop("HF_HUB_OFFLINE", None)
    return found


def pull(hub: str, home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "quintet_common.pull", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment(hub, home), timeout=120)


def test_a_model_comes_whole_and_checked(hub: str, tmp_path: Path) -> None:
    done = pull(hub, tmp_path, "org/name", "--into", str(tmp_path / "models"))
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "models" / "org" / "name"
    assert done.stdout == f"{folder}\n"
    assert f"org/name at {COMMIT}: 2 files, 256 kB" in done.stderr
    assert {path.name for path in folder.iterdir() if path.is_file()} == {"config.json", "model.safetensors"}
    assert (folder / "model.safetensors").read_bytes() == FILES["model.safetensors"]
    Hub.asked.clear()
    assert pull(hub, tmp_path, "org/name", "--into", str(tmp_path / "models")).returncode == 0
    assert not [each for each in Hub.asked if each.startswith("GET") and "resolve" in each]


def test_without_a_folder_it_is_where_services_look(hub: str, tmp_path: Path) -> None:
    done = pull(hub, tmp_path, f"org/name@{COMMIT}")
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).is_relative_to(tmp_path / "hub" / "models--org--name" / "snapshots" / COMMIT)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_what_is_damaged_is_removed(hub: str, tmp_path: Path, name: str) -> None:
    Hub.damaged = name
    done = pull(hub, tmp_path, "org/name")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == f"org/name: {name} was damaged on its way and is removed. Pull it again."
    Hub.damaged = None
    again = pull(hub, tmp_path, "org/name")
    assert again.returncode == 0, again.stderr


def test_ctrl_c_ends_it_in_the_middle_of_a_file_and_what_is_complete_is_kept(
    hub: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, enough = threading.Event(), threading.Event()
    send = Hub._send

    def stall(self: Hub, status: int, body: bytes, headers: dict[str, str], with_body: bool) -> None:
        if not with_body or body != FILES["model.safetensors"]:
            return send(self, status, body, headers, with_body)
        send(self, status, body, headers, False)
        begun.set()
        enough.wait(60)
        return None

    monkeypatch.setattr(Hub, "_send", stall)
    command = [sys.executable, "-m", "quintet_common.pull", "org/name", "--into", str(tmp_path / "models")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment(hub, tmp_path))
    try:
        assert begun.wait(60)
        config = tmp_path / "models" / "org" / "name" / "config.json"
        while not config.exists():
            time.sleep(0.05)
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
        assert not enough.is_set()
    finally:
        enough.set()
        process.kill()
    assert process.stderr is not None
    assert process.stderr.read().endswith(
        "\nStopped. Files that are complete are kept; the same command fetches the rest.\n"
    )
    assert list(tmp_path.rglob("*.incomplete")) == []
    monkeypatch.setattr(Hub, "_send", send)
    Hub.asked.clear()
    assert pull(hub, tmp_path, "org/name", "--into", str(tmp_path / "models")).returncode == 0
    assert [each for each in Hub.asked if each.startswith("GET") and "resolve" in each] == [
        f"GET /org/name/resolve/{COMMIT}/model.safetensors"
    ]


def test_what_cannot_be_had_is_one_line(hub: str, tmp_path: Path) -> None:
    unknown = pull(hub, tmp_path, "org/other")
    assert unknown.returncode == 1
    assert unknown.stderr.startswith("org/other: ")
    assert "Traceback" not in unknown.stderr
    nowhere = pull("http://127.0.0.1:9", tmp_path / "empty", "org/name")
    assert nowhere.returncode == 1
    assert nowhere.stderr.startswith("org/name: the hub 127.0.0.1:9 cannot be reached: ")
    assert nowhere.stderr.endswith(". HF_ENDPOINT=https://… names another or a mirror.\n")
    half = pull(hub, tmp_path, "Qwen")
    assert (half.returncode, half.stderr) == (1, "'Qwen' is not ORG/NAME, like Qwen/Qwen2-7B-Instruct.\n")
    assert pull(hub, tmp_path).stderr == "Name a model, or give --models FILE.\n"


def test_a_models_yml_without_models_of_a_hub_is_said(hub: str, tmp_path: Path) -> None:
    file = tmp_path / "models.yml"
    file.write_text("models: [{id: a, kind: tts, path: 'embedded:hibari'}]")
    done = pull(hub, tmp_path, "--models", str(file))
    assert done.returncode == 0
    assert done.stderr == f"{file} names no model of a hub: there is nothing to pull.\n"


def test_only_what_a_loader_reads() -> None:
    names = [
        "config.json", "model-00001-of-00002.safetensors", "pytorch_model.bin", "onnx/model.onnx", "README.md",
        "original/consolidated.00.pth", "sparse_linear.pt", "1_Pooling/config.json", "tokenizer.model",
        "modeling_x.py", "tf_model.h5", "unet/model.bin",
    ]  # fmt: skip
    assert needed(names) == [
        "1_Pooling/config.json", "config.json", "model-00001-of-00002.safetensors", "sparse_linear.pt",
        "tokenizer.model", "unet/model.bin",
    ]  # fmt: skip
    cosyvoice = ["llm.pt", "flow.pt", "hift.pt", "spk2info.pt", "cosyvoice.yaml"]
    assert needed(cosyvoice) == sorted(cosyvoice)


def test_a_models_yml_names_what_to_pull(tmp_path: Path) -> None:
    file = tmp_path / "models.yml"
    file.write_text(
        "models:\n"
        "  - {id: a, kind: chat, path: org/name}\n  - {id: b, kind: chat, path: org/name}\n"
        "  - {id: c, kind: chat, path: /models/c}\n  - {id: d, kind: chat, path: 'embedded:smollm2-135m-instruct'}\n"
    )
    assert from_config(file) == [Wanted("org/name")]
    with pytest.raises(ConfigError):
        from_config(tmp_path / "none.yml")
