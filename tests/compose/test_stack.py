"""``docker compose up`` on CPUs: what it serves, how it is locked up, and what happens when containers go and come."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from docker_stack import HERE, ROOT, SERVICES, Project, docker, until
from PIL import Image, ImageDraw

pytestmark = pytest.mark.docker

CHAT = {"model": "smollm2-135m-instruct", "messages": [{"role": "user", "content": "Tell me a story."}]}
VECTOR = {"model": "all-minilm-l6-v2", "input": "meanwhile"}
ZLAI = ROOT.parent / "shared" / "zlai_scripts" / "run.py"
ZLAI_PACKAGES = ["openai", "pillow", "requests", "chardet", "colorama", "numpy", "termcolor", "elasticsearch-dsl"]
ZLAI_MODELS = {
    "glm-4-9b-chat": "smollm2-135m-instruct",
    "glm-4v-9b": "ppocr",
    "mini_cpm-v2_6": "ppocr",
    "kolors_diffusers": "emoji-64",
    "kolors_image2image": "emoji-64",
    "CosyVoice-300M-SFT": "hibari",
    "bge-m3": "all-minilm-l6-v2",
}


def test_every_slice_of_the_api_answers(stack: Project, tmp_path: Path) -> None:
    picture = Image.new("RGB", (480, 120), "white")
    ImageDraw.Draw(picture).text((20, 30), "QUINTET 2048", fill="black", font_size=48)
    picture.save(tmp_path / "picture.png")
    slices = ROOT / "tests" / "e2e" / "sdk_slices.py"
    command = [sys.executable, str(slices), f"{stack.url}/v1", str(tmp_path / "picture.png")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_scripts_written_for_zlai_run_unchanged(stack: Project, tmp_path: Path) -> None:
    uv = Path(sys.executable).with_name("uv")
    if not ZLAI.exists() or not uv.exists():
        pytest.skip("the scripts of ZLAI's page are not beside the repository")
    python = tmp_path / "venv" / "bin" / "python"
    for arguments in (["--no-deps", "zlai==0.3.108"], ZLAI_PACKAGES):
        if not python.exists():
            subprocess.run([uv, "venv", "-q", "--python", sys.executable, tmp_path / "venv"], check=True, timeout=120)
        subprocess.run([uv, "pip", "install", "-q", "--python", python, *arguments], check=True, timeout=300)
    names = [f"{theirs}={ours}" for theirs, ours in ZLAI_MODELS.items()]
    command = [str(python), str(ZLAI), "--base-url", stack.url, "--map", *names]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


# How the containers are locked up


@pytest.mark.parametrize("service", ["router", *SERVICES])
def test_a_container_can_do_no_more_than_it_must(stack: Project, service: str) -> None:
    (container, *_) = stack.containers(service)
    status = dict(
        line.split(":\t", 1)
        for line in docker("exec", container, "cat", "/proc/self/status").splitlines()
        if ":\t" in line
    )
    assert status["Uid"].split() == ["10001"] * 4
    assert int(status["CapEff"], 16) == int(status["CapBnd"], 16) == 0
    assert status["NoNewPrivs"] == "1"
    for place in ("/opt/venv/x", "/etc/quintet/x", "/x"):
        assert "Read-only file system" in docker("exec", container, "touch", place, check=False)
    docker("exec", container, "touch", "/tmp/x")
    host = stack.inspect(service)["HostConfig"]
    assert host["Memory"] > 0
    assert host["PidsLimit"] > 0
    assert host["RestartPolicy"]["Name"] == "unless-stopped"


def test_only_the_router_and_prometheus_can_be_reached_and_only_from_this_machine(stack: Project) -> None:
    for service in (*SERVICES, "router", "prometheus"):
        ports = stack.inspect(service)["NetworkSettings"]["Ports"].values()
        published = {address["HostIp"] for addresses in ports for address in addresses or []}
        assert published == (set() if service in SERVICES else {"127.0.0.1"}), service


def test_what_was_converted_is_in_the_volume_and_its_owner_is_the_service(stack: Project) -> None:
    listing = docker(
        "exec", stack.containers("chat")[0], "find", "/cache", "-name", "model.safetensors", "-printf", "%U %p"
    )
    assert listing.startswith("10001 /cache/quintet/smollm2-135m-instruct-")


# Prometheus


def targets(stack: Project) -> list[dict[str, Any]]:
    answer = httpx2.get(f"http://127.0.0.1:{stack.prometheus_port}/api/v1/targets", trust_env=False)
    return list(answer.json()["data"]["activeTargets"])


def test_prometheus_scrapes_every_service(stack: Project) -> None:
    def all_up() -> bool:
        up = {each["labels"].get("service") for each in targets(stack) if each["health"] == "up"}
        return up >= {"router", *SERVICES}

    until(all_up, 60)
    query = {"query": 'count by (service) (quintet_requests_total{job="quintet"})'}
    address = f"http://127.0.0.1:{stack.prometheus_port}/api/v1/query"
    found = httpx2.get(address, params=query, trust_env=False).json()["data"]["result"]
    assert {each["metric"]["service"] for each in found} == {"router", *SERVICES}, "the metrics' own label stays"


# What goes and comes


def test_a_killed_container_comes_back_and_the_others_answer_meanwhile(stack: Project) -> None:
    before = stack.inspect("chat")
    os.kill(before["State"]["Pid"], signal.SIGKILL)
    assert stack.ask("/v1/embeddings", VECTOR).status_code == 200

    def answered() -> bool:
        answer = stack.ask("/v1/chat/completions", CHAT | {"max_tokens": 4})
        assert answer.status_code == 200 or (answer.status_code == 503 and answer.headers["retry-after"]), answer.text
        return answer.status_code == 200

    until(answered, 60)
    after = stack.inspect("chat")
    assert after["RestartCount"] == before["RestartCount"] + 1
    until(lambda: stack.health("chat") == "healthy")


def test_sigterm_lets_an_answer_end(stack: Project) -> None:
    (container,) = stack.containers("chat")
    lines: list[str] = []

    def read() -> None:
        body = CHAT | {"stream": True, "max_tokens": 150, "ignore_eos": True}
        with httpx2.stream(
            "POST", f"{stack.url}/v1/chat/completions", json=body, timeout=60, trust_env=False
        ) as answer:
            lines.extend(line for line in answer.iter_lines() if line)

    reader = threading.Thread(target=read)
    reader.start()
    until(lambda: len(lines) > 3, 20)
    stopper = threading.Thread(target=docker, args=("stop", "-t", "45", container))
    stopper.start()
    reader.join(60)
    stopper.join(60)
    assert lines[-1] == "data: [DONE]"
    assert sum('"content"' in line for line in lines) > 100
    state = stack.inspect("chat")["State"]
    assert state["Status"] == "exited"
    assert state["ExitCode"] in (0, 128 + signal.SIGTERM), "it was not killed when its time was over"
    docker("start", container)
    until(lambda: stack.health("chat") == "healthy")


@pytest.fixture
def two_chats(stack: Project) -> Iterator[Project]:
    stack.compose("up", "-d", "--no-build", "--no-recreate", "--wait", "--scale", "chat=2")
    yield stack
    stack.compose("up", "-d", "--no-build", "--no-recreate", "--wait", "--scale", "chat=1")


def served_by(stack: Project) -> dict[str, float]:
    """Answers by upstream of the chat model, as the router has counted them."""
    line = (
        r'quintet_requests_total\{code="200",endpoint="/chat/completions",model="smollm2[^}]*upstream="([^"]+)"\} (\S+)'
    )
    return {upstream: float(count) for upstream, count in re.findall(line, stack.ask("/metrics").text)}


def test_scaling_is_seen_and_a_lost_replica_costs_no_request(two_chats: Project) -> None:
    stack = two_chats
    before = served_by(stack)
    counter = iter(range(1000))

    def both_answer() -> bool:
        stack.ask(
            "/v1/chat/completions",
            CHAT | {"max_tokens": 1, "user": str(next(counter))},
            headers={"x-session-id": str(next(counter))},
        )
        return len([1 for upstream, count in served_by(stack).items() if count > before.get(upstream, 0)]) == 2

    until(both_answer, 30)
    until(lambda: sum(each["labels"].get("service") == "chat" for each in targets(stack)) == 2, 30)
    statuses: list[int] = []

    def keep_asking() -> None:
        for number in range(20):
            answer = stack.ask("/v1/chat/completions", CHAT | {"max_tokens": 2}, headers={"x-session-id": f"s{number}"})
            statuses.append(answer.status_code)

    asking = [threading.Thread(target=keep_asking) for _ in range(2)]
    for each in asking:
        each.start()
    time.sleep(0.5)
    (found,) = json.loads(docker("inspect", stack.containers("chat")[1]))
    os.kill(found["State"]["Pid"], signal.SIGKILL)
    for each in asking:
        each.join(120)
    assert statuses.count(200) >= len(statuses) - 2, "only what the lost replica had begun may be lost"
    assert len(statuses) == 40


# GPUs


def test_the_gpu_stanza_starts_where_there_is_a_driver(stack: Project) -> None:
    """compose.yaml as it is, on the images that are built already."""
    project = Project("quintet-test-gpu", [ROOT / "compose.yaml", HERE / "no-grafana.yaml"], QUINTET_TAG="test-cpu")
    try:
        project.compose("up", "-d", "--no-build", "--no-deps", "tts")
        (request,) = project.inspect("tts")["HostConfig"]["DeviceRequests"]
        assert (request["Driver"], request["Count"], request["Capabilities"]) == ("nvidia", -1, [["gpu"]])
        until(lambda: project.health("tts") == "healthy")
    except AssertionError as error:
        if "could not select device driver" in str(error):
            pytest.skip("the engine has no driver for GPUs")
        raise
    finally:
        project.down()
    assert stack.health("tts") == "healthy"
