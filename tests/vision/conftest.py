from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from openai import OpenAI
from quintet_common.models_yml import ModelSpec

from .tiny_kolors import save_tiny_kolors
from .vision_served import served

EMOJI = ModelSpec(
    id="emoji-64", kind="image", path="embedded:emoji-64", aliases=["kolors_diffusers"], default=True, max_waiting=3
)


@pytest.fixture(scope="session")
def emoji_url() -> Iterator[str]:
    """The service with the embedded model, without ``/v1``."""
    with served(EMOJI) as url:
        yield url


@pytest.fixture(scope="session")
def kolors_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "kolors"
    save_tiny_kolors(folder)
    return folder


@pytest.fixture
def client(emoji_url: str) -> Iterator[OpenAI]:
    with OpenAI(api_key="none", base_url=f"{emoji_url}/v1", max_retries=0) as client:
        yield client
