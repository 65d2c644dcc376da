"""A compose project of our own on a real engine: the container lab's if it lies beside the repository, else Docker's.

The lab is a folder of scripts that bring an engine to machines without one. It is taken from $QUINTET_LAB, or from
``shared/lab`` beside the repository. Projects here have names, tags and ports that no user's stack has.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import httpx2
import pytest

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).parent
LAB = Path(os.environ.get("QUINTET_LAB") or ROOT.parent / "shared" / "lab")
SERVICES = ("chat", "multimodal", "vision", "tts", "embed")
TAG = "test"
WAIT_SECONDS = 240


@cache
def engine() -> str:
    """The ``docker`` command of a running engine, which the lab is set up for first. Skips the test without one."""
    if (LAB / "setup").exists():
        done = subprocess.run([str(LAB / "setup")], capture_output=True, text=True, timeout=900, check=False)
        if done.returncode != 0:
            pytest.skip(f"the container lab cannot be set up: {(done.stdout + done.stderr).strip()[-300:]}")
        subprocess.run([str(LAB / "engine"), "start"], check=True, timeout=120)
    docker = shutil.which("docker")
    if docker is None:
        pytest.skip("there is no Docker on this machine, and no container lab beside the repository")
    needed = [["version"], ["compose", "version"]]
    if not LAB.exists():  # the lab builds in a way of its own
        needed.append(["buildx", "version"])
    for command in needed:
        done = subprocess.run([docker, *command], capture_output=True, text=True, timeout=60, check=False)
        if done.returncode != 0:
            pytest.skip(f"docker {command[0]}: {done.stderr.strip()[-300:]}")
    return docker


def docker(*arguments: str, check: bool = True, timeout: float = 300) -> str:
    """What ``docker`` prints, of both streams."""
    done = subprocess.run(
        [engine(), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0 or not check, f"docker {' '.join(arguments)}: {done.stdout[-3000:]}"
    return done.stdout


def free_port() -> str:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return str(sock.getsockname()[1])


def until(what: Callable[[], Any], seconds: float = 60) -> Any:
    """What ``what`` returns as soon as that is true."""
    deadline = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.3)
    return found


class Project:
    """``docker compose`` with these files, from the repository's root. ``url`` is the router's."""

    def __init__(self, name: str, files: list[Path], **settings: str) -> None:
        self.name = name
        self.port, self.prometheus_port = free_port(), free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._options = [word for file in files for word in ("-f", str(file))]
        self._options += ["-p", name, "--project-directory", str(ROOT), "--profile", "monitoring"]
        ports = {"QUINTET_PORT": self.port, "PROMETHEUS_PORT": self.prometheus_port}
        # The tests' own: settings of the person who runs them, in the environment or in .env, are for their stack.
        ours = {"QUINTET_TAG": TAG, "COMPOSE_DISABLE_ENV_FILE": "1", "START_PERIOD": f"{WAIT_SECONDS}s"}
        self._environment = {**os.environ, **ours, **ports, **settings}

    def up(self, *options: str) -> subprocess.CompletedProcess[str]:
        """Build what is not built, start, and wait until all are healthy, or one cannot become so."""
        if (LAB / "compose").exists():
            command = [str(LAB / "compose"), "up", *self._options, "--", *options]
        else:
            command = [engine(), "compose", *self._options, "up", "-d", "--build", "--wait"]
            command += ["--wait-timeout", str(WAIT_SECONDS), *options]
        environment = {**self._environment, "LAB_WAIT": str(WAIT_SECONDS)}
        return subprocess.run(
            command, cwd=ROOT, env=environment, text=True, check=False,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=1800,
        )  # fmt: skip

    def compose(self, *arguments: str) -> str:
        done = subprocess.run(
            [engine(), "compose", *self._options, *arguments], cwd=ROOT, env=self._environment, text=True, check=False,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout[-3000:]
        return done.stdout

    def down(self) -> None:
        self.compose("down", "--volumes", "--remove-orphans", "--timeout", "3")

    def containers(self, service: str) -> list[str]:
        """The ids of a service's containers, running or not, the oldest first."""
        labels = [f"com.docker.compose.project={self.name}", f"com.docker.compose.service={service}"]
        return docker("ps", "-aq", "--no-trunc", *(f"--filter=label={each}" for each in labels)).split()[::-1]

    def inspect(self, service: str) -> dict[str, Any]:
        """What the engine knows of a service's first container."""
        (found,) = json.loads(docker("inspect", self.containers(service)[0]))
        return dict(found)

    def health(self, service: str) -> str:
        return str(self.inspect(service)["State"]["Health"]["Status"])

    def logs(self, service: str) -> str:
        return docker("logs", self.containers(service)[0])

    def ask(self, path: str, body: dict[str, Any] | None = None, **options: Any) -> httpx2.Response:
        """One request to the router, with nothing tried twice."""
        method = "GET" if body is None else "POST"
        return httpx2.request(method, self.url + path, json=body, timeout=120, trust_env=False, **options)
