"""Tests that other projects wrote for their own clients and servers, fetched with their source distributions."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parent))
from processes import environment_with  # noqa: E402


class Borrowed(NamedTuple):
    package: str
    """Whose source distribution it is, with the version."""
    what: str
    kept: str
    """The folder of it that is unpacked."""
    tests: Sequence[str]
    options: Sequence[str]
    """Of pytest."""


SUITES = {
    "openai": Borrowed(
        "openai==3.54.0",
        "each route with its fewest and with all its parameters: its strict and loose, sync, async and aiohttp clients",
        "tests",
        [
            "test_models.py", "chat", "test_completions.py", "test_embeddings.py", "test_images.py",
            "audio/test_speech.py", "test_responses.py", "responses",
        ],
        ["-p", "expectations", "-o", "asyncio_default_fixture_loop_scope=session"],
    ),
    "vllm": Borrowed(
        "vllm==0.33.0",
        "chat, tools, text completions, Responses, streams and their events",
        "tests/entrypoints",
        [
            "chat_completion/test_chat.py", "chat_completion/test_completion_with_function_calling.py",
            "chat_completion/test_chat_logit_bias_validation.py", "chat_completion/test_chat_echo.py",
            "completion/test_completion.py", "responses/test_basic.py", "responses/test_simple.py",
            "responses/test_function_call.py", "responses/test_structured_output.py",
        ],
        ["-p", "without_vllm", "-p", "expectations"],
    ),
}  # fmt: skip
ROOTS = {"openai": "tests/api_resources", "vllm": "tests/entrypoints/openai"}
ALIASES = {
    "smollm2-135m-instruct": [
        "gpt-6-astra", "gpt-3.5-turbo-instruct", "model", "HuggingFaceH4/zephyr-7b-beta", "zephyr-lora",
        "Qwen/Qwen3-0.6B", "Qwen/Qwen3-1.7B", "Qwen/Qwen3-8B", "Qwen/Qwen2.5-1.5B-Instruct", "Qwen/Qwen2-1.5B-Instruct",
    ],
    "emoji-64": ["gpt-image-1.5", "gpt-image-2.5-flare"],
    "hibari": ["tts-1"],
    "all-minilm-l6-v2": ["text-embedding-3-small"],
}  # fmt: skip
"""The models that their tests ask for, by those of models.yml that answer."""
BUILD = ["pip", "setuptools>=80", "setuptools-scm>=8", "setuptools-rust", "wheel", "packaging", "jinja2", "hatchling"]


def fetch(name: str, cache: Path) -> Path | None:
    """The folder of a suite's tests, unpacked at first use; None if it cannot be had."""
    package, kept = SUITES[name].package, SUITES[name].kept
    folder = cache / "sources" / package.replace("==", "-")
    if not folder.exists() and not _download(package, cache):
        return None
    if not folder.exists():
        with tarfile.open(f"{folder}.tar.gz") as archive:
            inside = f"{folder.name}/{kept}/"
            package = f"{folder.name}/tests/__init__.py"
            chosen = [each for each in archive if each.name.startswith(inside) or each.name == package]
            archive.extractall(folder.parent, chosen, filter="data")
        Path(f"{folder}.tar.gz").unlink()
    return folder


def _download(package: str, cache: Path) -> bool:
    """pip asks a source distribution for its metadata first, for which vLLM's needs a PyTorch: ours."""
    python = environment_with(cache / "build", BUILD)
    if python is None:
        return False
    (site,) = (cache / "build" / "lib").glob("python*/site-packages")
    (site / "project.pth").write_text(sysconfig.get_paths()["purelib"])
    name, _, version = package.partition("==")
    command = [str(python), "-m", "pip", "download", "-q", "--no-deps", "--no-build-isolation", "--no-binary", name]
    environment = {**os.environ, "VLLM_TARGET_DEVICE": "empty", "VLLM_VERSION_OVERRIDE": version}
    asked = [*command, package, "-d", str(cache / "sources")]
    return subprocess.run(asked, env=environment, check=False).returncode == 0


def arguments(name: str, folder: Path) -> list[str]:
    """For pytest, in ``folder``; its own settings are put aside."""
    shutil.copy(HERE / "suites" / "pytest.ini", folder)
    return [*SUITES[name].options, "-p", "no:cacheprovider", *(f"{ROOTS[name]}/{test}" for test in SUITES[name].tests)]


def with_aliases(models_yml: str) -> str:
    """models.yml, each model answering to the names of ``ALIASES`` too."""
    lines = []
    for line in models_yml.splitlines():
        lines.append(line)
        model = line.partition("- id: ")[2].strip()
        if model in ALIASES:
            lines.append(f"    aliases: [{', '.join(ALIASES[model])}]")
    return "\n".join(lines) + "\n"
