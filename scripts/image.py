"""Install into the environment of a container image. Run by the Dockerfiles while they are built, not by hand.

    python3 scripts/image.py tools              the installer, into .venv beside scripts/: no image keeps it
    python3 scripts/image.py torch              torch in the build of TORCH_BACKEND, and what its users share
    python3 scripts/image.py locked FILE        every package of a requirements.lock
    python3 scripts/image.py own FOLDER ...     Quintet's own packages
    python3 scripts/image.py vllm REQUIREMENT   vLLM in an environment of its own

Packages come from where pip in the base image takes them. Without TORCH_BACKEND so does torch: from a common index that
is the build with CUDA. ``cpu`` (or cu130, rocm7.2, ...) takes the build of that name from torch's own index, but
``cpu`` is also content with what pip's sources offer when that has no CUDA in it.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from bootstrap import LOCK, PYTHON, TORCH, UV, brings_cuda, make_venv, pip_sources, run, uv_environment

TARGET = Path("/opt/venv")
"""The environment that the image runs; ``.venv`` beside this script only has the installer in it."""

VLLM = Path("/opt/vllm")
"""vLLM's own environment: it pins other versions than Quintet of nearly all that both need. torch is the same."""

OF_CUDA = ["torchvision", "torchaudio", "torchcodec", "triton"]
"""What vLLM asks for beside torch, and what the package index has for torch with CUDA alone."""

WITH_TORCH = ["transformers", "safetensors", "numpy"]
"""What chat, vision and embed need beside torch, all three: in one layer that their images share."""


def main(arguments: Sequence[str]) -> None:
    what, *names = arguments
    if what == "tools":
        make_venv()
        run([PYTHON, "-m", "pip", "install", "-qq", "--disable-pip-version-check", UV], UV)
    elif what == "torch":
        install(TORCH, [TORCH, *WITH_TORCH, "--constraints", str(LOCK), *torch_sources(os.environ["TORCH_BACKEND"])])
    elif what == "locked":
        install(names[0], ["--no-deps", "-r", names[0], *pip_sources()])
    elif what == "vllm":
        install_vllm(names[0])
    else:
        install(" ".join(names), ["--no-deps", *names, *pip_sources()])


def torch_sources(backend: str) -> list[str]:
    sources = pip_sources()
    if not backend or (backend == "cpu" and sources and not brings_cuda(sources)):
        return sources
    return [*sources, "--torch-backend", backend]


def install_vllm(requirement: str) -> None:
    run([sys.executable, "-m", "venv", "--without-pip", VLLM], str(VLLM))
    # torch is not installed a second time but found where it is, after what is in this environment.
    (packages,) = VLLM.glob("lib/python3*/site-packages")
    (packages / "torch.pth").write_text(f"{TARGET / packages.relative_to(VLLM)}\n")
    without_cuda = any((TARGET / packages.relative_to(VLLM)).glob("torch-*+cpu.dist-info"))
    dropped = ["torch", *(OF_CUDA if without_cuda else [])]
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as overrides:
        overrides.writelines(f"{package} ; sys_platform == 'never'\n" for package in dropped)
        overrides.flush()
        install(requirement, [requirement, "--overrides", overrides.name, *pip_sources()], VLLM)


def install(what: str, arguments: Sequence[str], target: Path = TARGET) -> None:
    # Compiled here, for the image's file system is read-only.
    command = [PYTHON.with_name("uv"), "pip", "install", "--python", target / "bin" / "python", "--compile-bytecode"]
    run([*command, "--link-mode", "copy", *arguments], what, uv_environment())


if __name__ == "__main__":
    main(sys.argv[1:])
