from __future__ import annotations

from collections.abc import Iterator

import pytest
from openai import OpenAI
from quintet_common.models_yml import ModelSpec

from .vision_served import served

EMOJI = ModelSpec(
    id="emoji-64", kind="image", path="embedded:emoji-64", aliases=["kolors_diffusers"], default=True, max_waiting=3
)


@pytest.fixture(scope="session")
def emoji_url() -> Iterator[str]:
    """The service with the embedded model, without ``/v1``."""
    with served(EMOJI) as url:
        yield url


@pytest.fixture
def client(emoji_url: str) -> Iterator[OpenAI]:
    with OpenAI(api_key="none", base_url=f"{emoji_url}/v1", max_retries=0) as client:
        yield client
