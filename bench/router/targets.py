"""The routers that are compared, each installed apart from the others, and how each is started."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from machine import CACHE, HERE
from processes import free_port

SGLANG = "sglang-router==0.3.2"
VLLM = "vllm-router==0.1.17"
LITELLM = "litellm[proxy]==1.106.2"
# vLLM's production-stack is on no package index.
STACK = "https://github.com/vllm-project/production-stack"
STACK_COMMIT = "089c51baedac7f3a1aec219afd5559bae4e75e31"


class Missing(Exception):
    """Why a target cannot be measured here."""


@dataclass(frozen=True)
class Target:
    """``start_seconds``: how long it may take until it answers. ``key``: what its clients send. ``passes``: it is
    left out of the later ones, to save time."""

    name: str
    about: str
    port: int
    command: list[str]
    environment: dict[str, str] = field(default_factory=dict)
    start_seconds: float = 30.0
    key: str = "sk-bench"
    passes: int | None = None


Maker = Callable[[list[int]], Target]
"""Makes a target in front of mocks at these ports. Raises Missing."""


def urls(mocks: list[int]) -> list[str]:
    return [f"http://127.0.0.1:{port}" for port in mocks]


def direct(mocks: list[int]) -> Target:
    return Target("direct", "no proxy", mocks[0], [])


def quintet(mocks: list[int]) -> Target:
    return _quintet("quintet", "key check, request id, metrics, usage, breaker, prefix affinity", mocks)


def quintet_least(mocks: list[int]) -> Target:
    return _quintet("quintet least", "the same without affinity: power of two choices", mocks, "--balance", "least")


def _quintet(name: str, about: str, mocks: list[int], *options: str) -> Target:
    port = free_port()
    upstreams = [word for url in urls(mocks) for word in ("--upstream", url)]
    keys = CACHE / f"{name}.keys.yml"
    keys.unlink(missing_ok=True)
    add = [str(Path(sys.executable).parent / "quintet"), "keys", "add", "bench", "--file", str(keys)]
    added = subprocess.run(add, capture_output=True, text=True)
    key = next((word for word in added.stdout.split() if word.startswith("sk-")), None)
    if key is None:
        raise Missing(f"quintet keys add made none: {added.stderr.strip()}")
    command = [sys.executable, "-m", "quintet_router", "--port", str(port), "--keys", str(keys)]
    command += ["--log-level", "warning", *upstreams, *options]
    return Target(name, about, port, command, key=key)


def nginx(mocks: list[int]) -> Target:
    port = free_port()
    folder = CACHE / "nginx"
    folder.mkdir(exist_ok=True)
    words = {
        "{folder}": str(folder),
        "{port}": str(port),
        "{user}": "user root;" if os.geteuid() == 0 else "",
        "{servers}": " ".join(f"server 127.0.0.1:{mock};" for mock in mocks),
    }
    text = (HERE / "nginx.conf").read_text()
    for word, value in words.items():
        text = text.replace(word, value)
    (folder / "nginx.conf").write_text(text)
    binary = _nginx_binary(folder)
    version = subprocess.run([binary, "-v"], capture_output=True, text=True).stderr.strip().rpartition("/")[2]
    command = [binary, "-p", str(folder), "-e", "stderr", "-c", str(folder / "nginx.conf")]
    return Target("nginx", f"{version}, round robin", port, command)


def _nginx_binary(folder: Path) -> str:
    """The one of the system, or one unpacked from Debian's package without installing it."""
    found = shutil.which("nginx") or shutil.which("/usr/sbin/nginx")
    unpacked = folder / "usr" / "sbin" / "nginx"
    for package in ("nginx", "nginx-light"):
        if found or unpacked.exists():
            break
        if shutil.which("apt-get") and shutil.which("dpkg-deb"):
            subprocess.run(["apt-get", "download", "-q", package], cwd=folder, capture_output=True)
            for archive in folder.glob(f"{package}_*.deb"):
                subprocess.run(["dpkg-deb", "-x", str(archive), str(folder)], check=True)
    if not found and not unpacked.exists():
        raise Missing("nginx is not here and could not be fetched by apt-get download")
    return str(found or unpacked)


def sglang(mocks: list[int]) -> Target:
    return _rust_router("sglang-router", SGLANG, [str(bin_of("sglang", SGLANG) / "sglang-router"), "launch"], mocks)


def vllm(mocks: list[int]) -> Target:
    return _rust_router("vllm-router", VLLM, [str(bin_of("vllm-router", VLLM) / "vllm-router")], mocks, passes=2)


def _rust_router(name: str, version: str, command: list[str], mocks: list[int], passes: int | None = None) -> Target:
    port = free_port()
    command += ["--host", "127.0.0.1", "--port", str(port), "--worker-urls", *urls(mocks), "--policy", "round_robin"]
    command += ["--log-level", "error", "--prometheus-port", str(free_port()), "--max-concurrent-requests", "4096"]
    return Target(name, f"{version.rpartition('=')[2]} (Rust), round robin", port, command, passes=passes)


def litellm(mocks: list[int]) -> Target:
    port = free_port()
    entry = "- model_name: mock\n  litellm_params: {{model: openai/mock, api_base: '{}/v1', api_key: sk-upstream}}\n"
    config = CACHE / "litellm.yaml"
    config.write_text(
        "model_list:\n"
        + "".join(entry.format(url) for url in urls(mocks))
        + "litellm_settings: {num_retries: 0, request_timeout: 600}\n"
    )
    command = [str(bin_of("litellm", LITELLM) / "litellm"), "--config", str(config), "--host", "127.0.0.1"]
    command += ["--port", str(port), "--num_workers", "1", "--telemetry", "False"]
    environment = {
        "LITELLM_LOG": "ERROR",
        "LITELLM_MODE": "PRODUCTION",
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true",
        "NO_PROXY": "*",
    }
    version = LITELLM.rpartition("=")[2]
    return Target("litellm", f"{version}, simple shuffle", port, command, environment, 120.0, passes=1)


def production_stack(mocks: list[int]) -> Target:
    asked = subprocess.run(["git", "ls-remote", STACK, "HEAD"], capture_output=True, text=True, timeout=60)
    if asked.returncode:
        raise Missing(f"it is on no package index, and its repository cannot be reached: {asked.stderr.strip()}")
    interpreter = sys.executable if sys.version_info >= (3, 12) else shutil.which("python3.12")
    if interpreter is None:
        raise Missing("it needs Python 3.12")
    port = free_port()
    folder = bin_of("production-stack", f"git+{STACK}@{STACK_COMMIT}", interpreter)
    command = [str(folder / "vllm-router"), "--host", "127.0.0.1"]
    command += ["--port", str(port), "--service-discovery", "static", "--static-backends", ",".join(urls(mocks))]
    command += ["--static-models", ",".join("mock" for _ in mocks), "--routing-logic", "roundrobin"]
    command += ["--engine-stats-interval", "30", "--log-stats-interval", "30", "--log-level", "error"]
    about = f"{STACK_COMMIT[:7]} (Python), round robin"
    return Target("production-stack", about, port, command, start_seconds=60.0, passes=2)


def bin_of(name: str, package: str, interpreter: str = sys.executable) -> Path:
    """The bin folder of an environment of its own with ``package`` in it, made at first use. Raises Missing."""
    environment = CACHE / name
    marker = environment / "installed"
    if not marker.exists() or marker.read_text() != package:
        beside = Path(sys.executable).parent / "uv"
        uv = str(beside) if beside.exists() else shutil.which("uv")
        python = str(environment / "bin" / "python")
        make = [uv, "venv", "--clear", "-q", "--python", interpreter] if uv else [interpreter, "-m", "venv"]
        install = [uv, "pip", "install", "-q", "--python", python] if uv else [python, "-m", "pip", "install", "-q"]
        print(f"installing {package}", file=sys.stderr)
        for command in ([*make, str(environment)], [*install, package]):
            if subprocess.run(command, check=False).returncode:
                raise Missing(f"{package} could not be installed")
        marker.write_text(package)
    return environment / "bin"


def other(spec: str) -> Maker:
    """A router started by a command line of the user's, ``NAME=COMMAND``. ``{port}`` stands for the port to listen on,
    ``{upstreams}`` for the mocks' URLs with commas between."""
    name, _, words = spec.partition("=")

    def make(mocks: list[int]) -> Target:
        port = free_port()
        filled = words.replace("{port}", str(port)).replace("{upstreams}", ",".join(urls(mocks)))
        return Target(name, "given by --also", port, ["sh", "-c", f"exec {filled}"], start_seconds=120.0)

    return make


ALL: dict[str, Maker] = {
    "direct": direct,
    "nginx": nginx,
    "quintet": quintet,
    "quintet least": quintet_least,
    "sglang-router": sglang,
    "vllm-router": vllm,
    "production-stack": production_stack,
    "litellm": litellm,
}
