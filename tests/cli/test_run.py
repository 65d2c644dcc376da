"""``quintet run`` and the endpoint's address, with a client that notes what it is asked."""

from __future__ import annotations

import argparse
import base64
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import openai
import pytest
from quintet.client import ClientError, connect
from quintet.commands.run import WAYS


def draw(out: str) -> dict[str, Any]:
    """What the endpoint is asked for."""
    asked: dict[str, Any] = {}

    def generate(**wanted: Any) -> Any:
        asked.update(wanted)
        return SimpleNamespace(data=[SimpleNamespace(b64_json=base64.b64encode(b"pixels").decode())])

    client: Any = SimpleNamespace(images=SimpleNamespace(generate=generate))
    WAYS["image"](client, "cat", argparse.Namespace(model="m", size="512x512", out=out))
    return asked


@pytest.mark.parametrize(
    ("name", "form"),
    [("cat.jpg", "jpeg"), ("cat.JPEG", "jpeg"), ("cat.webp", "webp"), ("cat.png", openai.omit)],
)
def test_a_picture_has_the_format_that_its_name_says(tmp_path: Path, name: str, form: Any) -> None:
    assert draw(str(tmp_path / name))["output_format"] == form
    assert (tmp_path / name).read_bytes() == b"pixels"


@pytest.mark.parametrize("name", ["cat.gif", "cat"])
def test_a_name_of_another_format_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ClientError, match="--out: a picture is written as png, jpg, jpeg, webp, not "):
        draw(str(tmp_path / name))
    assert not (tmp_path / name).exists()


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "http://127.0.0.1:8000", "http://127.0.0.1:8000/v1/"])
def test_the_endpoint_s_address_needs_no_scheme(url: str) -> None:
    assert str(connect(url).base_url) == "http://127.0.0.1:8000/v1/"
