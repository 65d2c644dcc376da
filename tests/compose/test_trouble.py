"""Services in trouble: each says what is wrong, and the others, the router and its keys do not mind."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from docker_stack import HERE, ROOT, Project, docker, until

pytestmark = pytest.mark.docker

FILES = [ROOT / "compose.yaml", ROOT / "compose" / "cpu.yaml", ROOT / "compose" / "keys.yaml"]


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A key and its file, made as docs/deploy.md says."""
    file = tmp_path_factory.mktemp("keys") / "keys.yml"
    command = [Path(sys.executable).with_name("quintet"), "keys", "add", "somebody", "--file", file]
    said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    for each in (file.parent, *file.parent.parents[:2]):
        each.chmod(0o755)
    file.chmod(0o444)
    return next(word for word in said.split() if word.startswith("sk-")), file


@pytest.fixture(scope="module")
def trouble(containers: str, key: tuple[str, Path]) -> Iterator[Project]:
    assert containers
    models = str(HERE / "trouble" / "models.yml")
    project = Project(
        "quintet-trouble", [*FILES, HERE / "trouble" / "compose.yaml"],
        MODELS_FILE=models, KEYS_FILE=str(key[1]), START_PERIOD="5s", PWD=str(ROOT),
    )  # fmt: skip
    done = project.up()
    try:
        assert done.returncode != 0, "up says that not all is well"
        until(lambda: project.health("router") == "healthy", 120)
        yield project
    finally:
        project.down()


def ask(project: Project, key: tuple[str, Path], path: str, body: dict[str, Any] | None = None) -> Any:
    return project.ask(path, body, headers={"authorization": f"Bearer {key[0]}"})


def test_the_router_wants_keys(trouble: Project, key: tuple[str, Path]) -> None:
    assert trouble.ask("/v1/models").status_code == 401
    assert ask(trouble, key, "/v1/models").status_code == 200
    assert "NO API KEYS" not in trouble.logs("router")


def test_what_is_well_is_served(trouble: Project, key: tuple[str, Path]) -> None:
    until(lambda: trouble.health("vision") == "healthy", 120)
    body = {"model": "emoji-64", "prompt": "a red apple", "size": "128x128"}
    assert ask(trouble, key, "/v1/images/generations", body).status_code == 200


def test_a_missing_model_is_named(trouble: Project, key: tuple[str, Path]) -> None:
    until(lambda: "ERROR" in trouble.logs("embed"))
    until(lambda: trouble.health("embed") == "unhealthy")
    (said,) = {line for line in trouble.logs("embed").splitlines() if line.startswith("ERROR")}
    assert "not-there failed to load" in said
    assert "/etc/quintet/models/not-there" in said
    answer = ask(trouble, key, "/v1/embeddings", {"model": "not-there", "input": "hello"})
    assert answer.status_code == 503
    assert "/etc/quintet/models/not-there" in answer.json()["error"]["message"]


def test_a_full_cache_is_named(trouble: Project, key: tuple[str, Path]) -> None:
    until(lambda: "No space left on device" in trouble.logs("chat"))
    until(lambda: trouble.health("chat") == "unhealthy")
    answer = ask(trouble, key, "/v1/chat/completions", {"messages": [{"role": "user", "content": "Hi"}]})
    assert answer.status_code == 503
    assert "No space left on device" in answer.json()["error"]["message"]
    left = docker("exec", trouble.containers("chat")[0], "find", "/cache", "-type", "f")
    assert not left.strip(), "half of a model stays behind"


def test_a_wrong_models_yml_is_said_in_one_line_and_the_container_is_not_healthy(trouble: Project) -> None:
    state = trouble.inspect("tts")
    assert state["State"]["Health"]["Status"] != "healthy"
    assert state["RestartCount"] > 0
    lines = set(trouble.logs("tts").splitlines())
    assert lines == {"/etc/quintet/models.yml:4: unknown key 'pat'; did you mean 'path'?"}
