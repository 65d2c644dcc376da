"""Where vLLM is: it pins what it is built with, so it has mostly an environment of its own."""

from __future__ import annotations

import os
import shutil
import sys
from importlib.util import find_spec

PYTHON = "QUINTET_VLLM_PYTHON"
"""Environment variable with the interpreter of an environment that has vLLM, whose pins are not ours."""

ABSENT = (
    "vLLM is not installed here. Install the package vllm in an environment of its own, and name the Python of it in "
    f"{PYTHON}, or point to a running server with engine_args: {{url: http://…}}: docs/vllm.md."
)


def find(path: str) -> list[str] | None:
    """The server's program with the model at ``path``; None where there is none."""
    module = ["-m", "vllm.entrypoints.openai.api_server", "--model", path]
    if named := os.environ.get(PYTHON):
        return [named, *module]
    if find_spec("vllm") is not None:
        return [sys.executable, *module]
    if found := shutil.which("vllm"):
        return [found, "serve", path]
    return None
