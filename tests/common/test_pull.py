"""Downloading from a hub, spoken to by its own client."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from common.small_hub import COMMIT, FILES, LARGE_FILE, Hub, checksum, serving
from quintet_common.models_yml import ConfigError
from quintet_common.pull import Wanted, from_config, needed

HALF = len(FILES[LARGE_FILE]) // 2


@pytest.fixture
def hub() -> Iterator[str]:
    with serving() as url:
        yield url


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


def half(home: Path) -> Path:
    (found,) = home.rglob("*.incomplete")
    return found


def test_ctrl_c_ends_it_in_the_middle_of_a_file_and_the_next_pull_goes_on_there(hub: str, tmp_path: Path) -> None:
    Hub.breaks_after, Hub.stalled = HALF, threading.Event()
    command = [sys.executable, "-m", "quintet_common.pull", "org/name", "--into", str(tmp_path / "models")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment(hub, tmp_path))
    try:
        assert Hub.stalled.wait(60)
        while half(tmp_path).stat().st_size < HALF:
            time.sleep(0.05)
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
        assert not Hub.end.is_set()
    finally:
        process.kill()
    assert process.stderr is not None
    assert process.stderr.read().endswith("\nStopped. What has come is kept; the same command goes on from there.\n")
    Hub.breaks_after = None
    Hub.asked.clear()
    assert pull(hub, tmp_path, "org/name", "--into", str(tmp_path / "models")).returncode == 0
    assert Hub.fetched() == [f"{LARGE_FILE} bytes={HALF}-", "config.json"]
    assert (tmp_path / "models" / "org" / "name" / LARGE_FILE).read_bytes() == FILES[LARGE_FILE]
    assert not list(tmp_path.rglob("*.incomplete"))


def test_a_file_that_has_changed_meanwhile_is_begun_anew(hub: str, tmp_path: Path) -> None:
    blobs = tmp_path / "hub" / "models--org--name" / "blobs"
    blobs.mkdir(parents=True)
    (blobs / f"{checksum(LARGE_FILE, FILES)}.incomplete").write_bytes(FILES[LARGE_FILE][:HALF])
    Hub.files[LARGE_FILE] = FILES[LARGE_FILE][::-1]
    done = pull(hub, tmp_path, "org/name")
    assert done.returncode == 0, done.stderr
    assert Hub.fetched() == [LARGE_FILE, "config.json"]
    assert Path(done.stdout.strip(), LARGE_FILE).read_bytes() == FILES[LARGE_FILE][::-1]
    assert not list(tmp_path.rglob("*.incomplete"))


def test_what_was_damaged_on_the_disk_is_noticed_and_fetched_whole(hub: str, tmp_path: Path) -> None:
    blobs = tmp_path / "hub" / "models--org--name" / "blobs"
    blobs.mkdir(parents=True)
    (blobs / f"{checksum(LARGE_FILE, FILES)}.incomplete").write_bytes(bytes(HALF))
    done = pull(hub, tmp_path, "org/name")
    assert Hub.fetched()[0] == f"{LARGE_FILE} bytes={HALF}-"
    assert (
        done.stderr.splitlines()[-1] == f"org/name: {LARGE_FILE} was damaged on its way and is removed. Pull it again."
    )
    assert pull(hub, tmp_path, "org/name").returncode == 0


def test_a_mirror_with_tags_of_its_own_is_asked_once(hub: str, tmp_path: Path) -> None:
    Hub.tags = False
    done = pull(hub, tmp_path, "org/name")
    assert done.returncode == 0, done.stderr
    assert sorted(Hub.fetched()) == ["config.json", LARGE_FILE]


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
