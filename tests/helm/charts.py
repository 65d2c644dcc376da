"""Helm and what checks a chart: from the container lab where it is set up, else what is in PATH."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "helm" / "quintet"
EXAMPLES = CHART / "examples"
LAB = Path(os.environ.get("QUINTET_LAB") or ROOT.parent / "shared" / "lab")
SECRETS = Path(__file__).with_name("secrets.yaml")
"""The Secrets that the examples expect to exist."""


@cache
def tool(name: str) -> str:
    """The path of a program; the test is skipped without it."""
    found = shutil.which(name, path=f"{LAB}/.state/bin:{LAB}/.state/venv/bin:{os.environ['PATH']}")
    if found is None:
        pytest.skip(f"{name} is not installed: set the container lab up, or put it in PATH")
    return found


def lab_chart(*arguments: str, versions: str = "1.29.0 1.37.0") -> str:
    """Lint, render with Helm 3 and 4, and check against Kubernetes' schemas; what it prints. Skips without the lab."""
    tool("helm3"), tool("kubernetes-validate")
    done = subprocess.run(
        [str(LAB / "chart"), str(CHART), *arguments], text=True, timeout=600, check=False,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env={**os.environ, "LAB_KUBE_VERSIONS": versions},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:]
    return done.stdout


def helm(*arguments: str, program: str = "helm") -> subprocess.CompletedProcess[str]:
    """``helm template``, whatever its exit status."""
    command = [tool(program), "template", "q", str(CHART), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def render(*arguments: str, program: str = "helm") -> list[dict[str, Any]]:
    """The objects that the chart makes of these values."""
    done = helm(*arguments, program=program)
    assert done.returncode == 0, done.stderr
    return [each for each in yaml.safe_load_all(done.stdout) if each]


def example(name: str) -> list[dict[str, Any]]:
    return render("-f", str(EXAMPLES / f"{name}.yaml"))


def the(objects: Iterable[dict[str, Any]], kind: str, name: str = "") -> dict[str, Any]:
    """The object of this kind that is called so after the release's own name."""
    full = "q-quintet" + (f"-{name}" if name else "")
    (found,) = [each for each in objects if each["kind"] == kind and each["metadata"]["name"] == full]
    return found


def pods(objects: Iterable[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The spec of every pod, by the name of what makes it."""
    found: dict[str, dict[str, Any]] = {}
    for each in objects:
        name = each["metadata"]["name"]
        if each["kind"] == "Deployment":
            found[name] = each["spec"]["template"]["spec"]
        elif each["kind"] == "Pod":
            found[name] = each["spec"]
        elif each["kind"] == "LeaderWorkerSet":
            for role in ("leader", "worker"):
                found[f"{name}-{role}"] = each["spec"]["leaderWorkerTemplate"][f"{role}Template"]["spec"]
    return found
