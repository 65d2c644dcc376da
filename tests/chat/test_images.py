"""Pictures in the engine: with them, too, greedy tokens are those of ``generate()``, whatever else is going on."""

from __future__ import annotations

import functools
import io
import itertools
import json
import re
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from chat import picture_models as tiny
from chat.blocks_kit import PAGINGS, with_paging
from chat.engine_kit import Heard, ask, started, submit
from PIL import Image
from quintet_chat.engine.engine import ChatEngine
from quintet_chat.engine.pictures import Held, PictureReader
from quintet_chat.engine.snapshots import LEAST
from quintet_chat.protocol import Accepted, Grammar, Started

NEW = 12
STATEFUL = ("qwen3_5",)
"""Of which nothing is known from the first time."""
PICTURE = 16
"""Tokens of a picture for the tiny LLaVA."""

IMAGES = [tiny.picture(number) for number in range(4)]
CONVERSATIONS: list[list[dict[str, Any]]] = [
    [tiny.message("hello world")],
    [tiny.message("the cat", 0)],
    [tiny.message("sat on the mat", 1, 2)],
    [tiny.message("hello", 2), tiny.message("world", role="assistant"), tiny.message("the cat sat", 0, 3)],
]
"""With 0 to 3 pictures; the last in two turns."""


@functools.cache
def engine(kind: str) -> ChatEngine:
    return started(tiny.spec(kind, max_batch=5, engine_args={"prefill_chunk": 16}))


def greedy(engine: ChatEngine, messages: list[dict[str, Any]], new: int = NEW, **fields: Any) -> Heard:
    asked: dict[str, Any] = {"temperature": 0, "max_tokens": new, "ignore_eos": True, "logprobs": 1, **fields}
    return submit(engine, messages=messages, **{"images": IMAGES, **asked})[1]


def said(heard: Heard, index: int = 0) -> list[str]:
    assert heard.wait().error is None
    return [logprob.token for delta in heard.deltas(index) for logprob in delta.logprobs]


def cached(heard: Heard) -> int:
    return next(event.cached_tokens for event in heard.events if isinstance(event, Started))


def prompt_tokens(heard: Heard) -> int:
    return next(event.prompt_tokens for event in heard.events if isinstance(event, Accepted))


@functools.cache
def expected(kind: str, number: int) -> list[str]:
    text = engine(kind)._output._token_text
    return [text(token)[0] for token in tiny.generate(kind, CONVERSATIONS[number], IMAGES, NEW)]


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_greedy_tokens_are_those_of_generate_with_none_to_three_pictures(kind: str) -> None:
    alone = [greedy(engine(kind), messages) for messages in CONVERSATIONS]
    assert [said(heard) for heard in alone] == [expected(kind, number) for number in range(len(CONVERSATIONS))]
    order = (3, 0, 1, 2, 0, 3, 1)
    together = [greedy(engine(kind), CONVERSATIONS[number]) for number in order]
    assert [said(heard) for heard in together] == [expected(kind, number) for number in order]
    # What was known from the first time is not computed again, pictures and all.
    margin = 16 if kind in STATEFUL else 1
    known = [(prompt_tokens(heard) - margin) // 16 * 16 for heard in together]
    # States are kept of no fewer tokens than a copy is worth.
    assert [cached(heard) for heard in together] == [n if kind not in STATEFUL or n >= LEAST else 0 for n in known]


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_another_picture_is_another_prompt(kind: str) -> None:
    """Of the same size and behind the same words, so that nothing but its content tells it apart."""
    text = "the cat sat on the mat hello world the cat sat"
    asked: dict[str, Any] = {"temperature": 0, "max_tokens": 1, "ignore_eos": True, "logprobs": 1}
    beside = [tiny.message(text), tiny.message("hello", 0)]
    heard = [
        submit(engine(kind), messages=beside, images=[tiny.picture(number)], **asked)[1].wait() for number in (0, 12, 0)
    ]
    first, other, again = ([each.logprob for delta in each.deltas() for each in delta.logprobs] for each in heard)
    assert first == pytest.approx(again, abs=1e-6)
    assert first != pytest.approx(other, abs=1e-5)
    assert cached(heard[1]) == (0 if kind in STATEFUL else 16)  # of the words; the pictures begin before token 32


@pytest.mark.parametrize("paging", PAGINGS)
@pytest.mark.parametrize("kind", ["llava", "qwen2_vl", "gemma3", "qwen3_5"])
def test_pictures_are_looked_at_again_after_an_eviction(
    kind: str, paging: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With slots as on a CPU, and as on a GPU but for the recording of steps; choices share what was seen."""
    per_token = 2 * 2 * 2 * 16 * 4  # keys and values, layers, heads, head size, bytes
    tokens = 220 if kind in STATEFUL else 320
    small: dict[str, Any] = {"kv_memory": str(tokens * per_token), "prefix_cache": "off", "prefill_chunk": 16}
    with_paging(monkeypatch, PAGINGS[paging])
    made = started(tiny.spec(kind, max_batch=5, engine_args=small))
    together = [greedy(made, messages, 80, n=2) for messages in CONVERSATIONS[1:] * 2]
    text = made._output._token_text
    wanted = [[text(token)[0] for token in tiny.generate(kind, each, IMAGES, 80)] for each in CONVERSATIONS[1:]]
    for index in range(2):
        assert [said(heard, index) for heard in together] == wanted * 2
    assert made.stats()["preemptions_total"] > 0


def eventually(true: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 60
    while not true() and time.monotonic() < deadline:
        time.sleep(0.001)
    return true()


def test_running_answers_go_on_while_pictures_are_looked_at() -> None:
    made = engine("qwen2_vl")
    done: list[str] = []
    steps = made._scheduler._runner
    look = steps.look

    def slowly(picture: Any) -> None:
        done.append("look")
        begun = len(done)
        assert eventually(lambda: done[begun:].count("decode") > 2)
        look(picture)
        done.append("seen")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(steps, "look", slowly)
        for name in ("prefill", "decode"):
            patch.setattr(steps, name, _noting(done, name, getattr(steps, name)))
        running = greedy(made, [tiny.message("hello hello")], 400)
        while "decode" not in done:
            time.sleep(0.001)
        assert greedy(made, [tiny.message("a picture that is new", 0, 1)], 2).wait().error is None
        running.wait()
    assert done.count("look") == done.count("seen") == 2
    first, last = done.index("look"), len(done) - done[::-1].index("prefill")
    while "look" in done[first:last]:
        begin = done.index("look", first)
        first = done.index("seen", begin)
        assert done[begin:first].count("decode") > 2
        assert "prefill" not in done[begin:first]
    work = [name for name in done[first:last] if name in ("prefill", "decode")]
    assert all("decode" in pair for pair in itertools.pairwise(work))


def _noting(done: list[str], name: str, do: Callable[..., Any]) -> Callable[..., Any]:
    def noted(*args: Any) -> Any:
        done.append(name)
        return do(*args)

    return noted


def test_a_picture_that_cannot_be_looked_at_costs_its_own_request_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    made = engine("llava")
    running = greedy(made, [tiny.message("hello hello")], 60)

    def fail(_picture: Any) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(made._scheduler._runner, "look", fail)
    error = greedy(made, [tiny.message("never seen before", 3)]).wait().error
    assert error is not None
    assert (error.status, "picture" in error.message) == (500, True)
    assert running.wait().error is None
    monkeypatch.undo()
    assert said(greedy(made, CONVERSATIONS[1])) == expected("llava", 1)
    assert (made.stats()["num_requests_running"], made._held._bytes) == (0, {})


@pytest.mark.parametrize(
    ("text", "images", "code"),
    [
        ("what is <image> for?", 1, "picture_marks"),
        ("<|image_pad|>", 0, None),
        ("hello " * 600, 1, "context_length_exceeded"),
    ],
)
def test_what_cannot_be_told_from_a_picture_or_does_not_fit_is_refused(text: str, images: int, code: str) -> None:
    heard = greedy(engine("llava"), [tiny.message(text, *range(images))], 1).wait()
    assert (heard.error.code, heard.error.status) == (code, 400) if heard.error else code is None
    if code == "context_length_exceeded":
        assert heard.error is not None
        limit, length = (int(number) for number in re.findall(r"\d+", heard.error.message))
        assert limit == 512
        assert length > 600 + PICTURE


def test_pictures_that_wait_are_held_within_a_limit() -> None:
    held = Held(limit=100)
    held.add(1, 90)
    held.wait()
    held.add(2, 50)
    waiting = threading.Thread(target=held.wait)
    waiting.start()
    held.drop(3)
    waiting.join(0.05)
    assert waiting.is_alive()
    held.drop(2)
    waiting.join(60)
    assert not waiting.is_alive()
    held.add(2, 50)
    held.close()
    held.wait()


def test_answers_in_json_about_a_picture() -> None:
    schema = {"type": "object", "properties": {"cats": {"type": "integer"}}, "required": ["cats"]}
    heard = ask(
        engine("idefics3"),
        messages=CONVERSATIONS[1],
        images=IMAGES,
        temperature=2,
        max_tokens=60,
        seed=4,
        grammar=Grammar(type="json_schema", value=schema),
    )
    if heard.reasons[0] == "stop":
        assert isinstance(json.loads(heard.text())["cats"], int)
    else:
        assert heard.text().lstrip().startswith("{")


@pytest.mark.parametrize("kind", ["llava", "qwen2_5_vl", "qwen3_vl"])
def test_bfloat16_on_a_cpu(kind: str) -> None:
    """Linear layers are packed there, those of the vision tower as well."""
    made = started(tiny.spec(kind, dtype="bfloat16", max_batch=2))
    assert len(said(greedy(made, CONVERSATIONS[2]))) == NEW
    assert made.info["modalities"] == ["text", "image"]  # type: ignore[attr-defined]


def encoded(image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def test_what_is_transparent_is_white() -> None:
    """Black lines on nothing, as programs export diagrams; half transparent is half as black."""
    drawn = Image.new("RGBA", (56, 56), (0, 0, 0, 0))
    drawn.paste((0, 0, 0, 255), (10, 20, 40, 24))
    drawn.paste((0, 0, 0, 128), (10, 30, 40, 34))
    expected = Image.new("RGB", drawn.size, "white")
    expected.paste("black", (10, 20, 40, 24))
    expected.paste((127, 127, 127), (10, 30, 40, 34))
    model, processor = tiny.reference("llava")
    reader = PictureReader(processor, model)
    seen = [
        reader.read(f"a{reader.mark}b", [encoded(each)], lambda text: list(reader.tokenizer(text)["input_ids"]))[1]
        for each in (drawn, expected)
    ]
    pixels, plain = (each.each[0].features["pixel_values"] for each in seen)
    assert torch.equal(pixels, plain)


def test_a_picture_that_takes_one_place() -> None:
    messages = [tiny.message("the cat", 0)]
    small, large = (encoded(Image.new("RGB", (size, size), "red")) for size in (20, 40))
    one, four = (greedy(engine("mistral3"), messages, images=[each]) for each in (small, large))
    assert len(said(one)) == NEW
    assert prompt_tokens(one.wait()) < prompt_tokens(four.wait())


def test_a_picture_of_a_shape_that_the_processor_refuses_is_a_400() -> None:
    picture = encoded(Image.new("RGB", (19_999, 2)))
    error = greedy(engine("qwen3_vl"), [tiny.message("hello", 0)], 1, images=[picture]).wait().error
    assert error is not None
    assert (error.status, error.code, error.param) == (400, "invalid_image", "messages")
    assert "19999x2" in error.message
