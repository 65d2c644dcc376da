"""``quintet run`` and the endpoint's address, with a client that notes what it is asked."""

from __future__ import annotations

import argparse
import base64
import io
import itertools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import openai
import pytest
from quintet.client import Card, ClientError, connect
from quintet.commands import run
from quintet.commands.run import WAYS
from quintet.main import main


def draw(out: str, size: str | None = None) -> dict[str, Any]:
    """What the endpoint is asked for."""
    asked: dict[str, Any] = {}

    def generate(**wanted: Any) -> Any:
        asked.update(wanted)
        return SimpleNamespace(data=[SimpleNamespace(b64_json=base64.b64encode(b"pixels").decode())])

    client: Any = SimpleNamespace(images=SimpleNamespace(generate=generate))
    WAYS["image"](client, "cat", argparse.Namespace(model="m", size=size, out=out, image=[]))
    return asked


@pytest.mark.parametrize(
    ("name", "form"),
    [("cat.jpg", "jpeg"), ("cat.JPEG", "jpeg"), ("cat.webp", "webp"), ("cat.png", openai.omit)],
)
def test_a_picture_has_the_format_that_its_name_says(tmp_path: Path, name: str, form: Any) -> None:
    assert draw(str(tmp_path / name))["output_format"] == form
    assert (tmp_path / name).read_bytes() == b"pixels"


def test_a_size_is_asked_for_only_where_one_is_given(tmp_path: Path) -> None:
    assert draw(str(tmp_path / "cat.png"))["size"] is openai.omit
    assert draw(str(tmp_path / "cat.png"), "256x256")["size"] == "256x256"


@pytest.mark.parametrize("name", ["cat.gif", "cat"])
def test_a_name_of_another_format_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ClientError, match="--out: a picture is written as png, jpg, jpeg, webp, not "):
        draw(str(tmp_path / name))
    assert not (tmp_path / name).exists()


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "http://127.0.0.1:8000", "http://127.0.0.1:8000/v1/"])
def test_the_endpoint_s_address_needs_no_scheme(url: str) -> None:
    assert str(connect(url).base_url) == "http://127.0.0.1:8000/v1/"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, list[str]]]:
    """The text and the pictures of each request, of an endpoint with a model ``m`` of kind ``image``."""
    seen: list[tuple[str, list[str]]] = []
    monkeypatch.setattr(run, "cards", lambda _client: [Card("m", kind="image")])
    monkeypatch.setitem(WAYS, "image", lambda _client, text, options: seen.append((text, options.image)))
    return seen


def status_of(*arguments: str) -> int | str | None:
    with pytest.raises(SystemExit) as ended:
        main(["run", *arguments])
    return ended.value.code


PARTS = (["m"], ["cat"], ["--image", "f.png"], ["--out", "z.png"])


@pytest.mark.parametrize(
    "parts", [each for each in itertools.permutations(PARTS) if each.index(["m"]) < each.index(["cat"])]
)
def test_the_text_may_stand_behind_options(asked: list[Any], parts: tuple[list[str], ...]) -> None:
    assert status_of(*itertools.chain(*parts)) == 0
    assert asked == [("cat", ["f.png"])]


def test_a_text_that_begins_like_an_option(asked: list[Any]) -> None:
    assert status_of("--out", "z.png", "m", "--", "-cat") == 0
    assert asked == [("-cat", [])]


def test_a_mistake_shows_the_usage_of_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of("m", "cat", "--colour", "red") == 2
    assert capsys.readouterr().err.startswith("usage: quintet run [-h]")


def test_without_a_text(asked: list[Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("cat"))
    assert status_of("m") == 0
    monkeypatch.setattr("sys.stdin", Terminal("typed"))
    assert status_of("m", "-") == 0
    assert status_of("m", "--image", "f.png") == 0
    assert asked == [("cat", []), ("typed", []), ("", ["f.png"])]
    assert status_of("m", "--document", "a") == 2
    error = capsys.readouterr().err.splitlines()
    assert error[0].startswith("usage: quintet run ")
    assert error[-1].startswith("quintet run: error: there is no text: ")
    assert len(asked) == 3


@pytest.mark.parametrize("option", ["--document", "--voice"])
def test_an_option_that_the_kind_has_no_use_for_is_refused(
    asked: list[Any], capsys: pytest.CaptureFixture[str], option: str
) -> None:
    assert status_of("m", "cat", option, "x") == 1
    assert capsys.readouterr().err == f"{option}: 'm' is of kind 'image', which takes none.\n"
    assert asked == []


@pytest.mark.parametrize(
    ("kind", "options"),
    [("tts", ["--size"]), ("chat", ["--size", "--out", "--voice"]), ("embedding", ["--image", "--size", "--out"])],
)
def test_no_option_is_passed_over(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], kind: str, options: list[str]
) -> None:
    monkeypatch.setattr(run, "cards", lambda _client: [Card("m", kind=kind)])
    for option in options:
        assert status_of("m", "hello", option, "5x5") == 1
        assert capsys.readouterr().err == f"{option}: 'm' is of kind '{kind}', which takes none.\n"


def test_a_picture_is_changed_where_one_is_given(tmp_path: Path) -> None:
    (tmp_path / "f.png").write_bytes(b"given")
    told: dict[str, Any] = {}

    def edit(**wanted: Any) -> Any:
        told.update(wanted)
        return SimpleNamespace(data=[SimpleNamespace(b64_json=base64.b64encode(b"pixels").decode())])

    client: Any = SimpleNamespace(images=SimpleNamespace(edit=edit))
    out, given = str(tmp_path / "z.png"), [str(tmp_path / "f.png")]
    WAYS["image"](client, "cat", argparse.Namespace(model="m", size="512x512", out=out, image=given))
    assert (told["prompt"], told["image"]) == ("cat", [tmp_path / "f.png"])
    assert Path(out).read_bytes() == b"pixels"
