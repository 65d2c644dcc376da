"""One stack for all end-to-end tests; the tests must leave it as they found it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))
from stack import Stack


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """``quintet serve`` on the embedded models, ready."""
    running = Stack(tmp_path_factory.mktemp("stack"))
    yield running
    running.stop()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """End-to-end tests come last: what is simpler fails first, and the stack does not run beside all other tests."""
    here = Path(__file__).parent
    items.sort(key=lambda item: here in item.path.parents)
