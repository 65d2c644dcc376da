"""One stack of containers for the tests of what works, and one for those of what goes wrong."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))
from docker_stack import HERE, ROOT, Project, engine

CPU = [ROOT / "compose.yaml", ROOT / "compose" / "cpu.yaml"]


@pytest.fixture(scope="session")
def containers() -> str:
    """The command of a running engine; tests that need one are skipped without it."""
    return engine()


@pytest.fixture(scope="session")
def stack(containers: str) -> Iterator[Project]:
    """The CPU stack with the embedded models, and Prometheus. Grafana is another's image, and not needed here."""
    assert containers
    project = Project("quintet-test", [*CPU, HERE / "no-grafana.yaml"])
    done = project.up()
    try:
        assert done.returncode == 0, done.stdout[-5000:]
        yield project
    finally:
        project.down()
