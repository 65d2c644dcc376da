"""The embedded multimodal model: what it reads in real pictures, what it says, how it is scheduled."""

from __future__ import annotations

import base64
import io
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx2
import openai
import pytest
from chat.serving import serving
from openai import OpenAI
from PIL import Image, ImageDraw, ImageFont
from quintet_chat.app import create_app
from quintet_chat.backends.ppocr import PICTURE_TOKENS, OcrEngine
from quintet_chat.backends.ppocr_answer import Answer, Words, count_tokens
from quintet_chat.protocol import Accepted, Delta, Finished, Generate, Sampling, Started
from quintet_common.errors import ApiError
from quintet_common.models_yml import ModelSpec

SPEC = ModelSpec(id="ppocr", kind="multimodal", path="embedded:ppocr", max_waiting=3)


def picture(*lines: str, size: tuple[int, int] = (480, 200)) -> bytes:
    image = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(image)
    for number, line in enumerate(lines):
        draw.text((20, 20 + 50 * number), line, fill="black", font=ImageFont.load_default(32))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def user(text: str, *pictures: bytes) -> dict[str, Any]:
    urls = [f"data:image/png;base64,{base64.b64encode(data).decode()}" for data in pictures]
    parts: list[dict[str, Any]] = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return {"role": "user", "content": [*parts, {"type": "text", "text": text}]}


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serving(create_app("multimodal", [SPEC])) as url:
        yield url


@pytest.fixture
def ocr(url: str) -> OpenAI:
    return OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)


def test_it_reads_a_picture_line_by_line(ocr: OpenAI) -> None:
    messages: Any = [user("What does it say?", picture("INVOICE 2041", "Total 99.50 EUR"))]
    deltas = [
        chunk.choices[0].delta.content
        for chunk in ocr.chat.completions.create(model="ppocr", messages=messages, stream=True)
    ]
    assert [each for each in deltas if each] == ["INVOICE 2041", "\nTotal 99.50 EUR"]
    answer = ocr.chat.completions.create(model="ppocr", messages=messages)
    assert answer.choices[0].message.content == "INVOICE 2041\nTotal 99.50 EUR"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (PICTURE_TOKENS + 5, 7)


def test_several_pictures_are_labelled_in_the_users_language(ocr: OpenAI) -> None:
    pictures = (picture("FIRST"), picture(), picture("THIRD"))
    for text, expected in (
        ("Compare", "Picture 1:\nFIRST\nPicture 2:\nNo text was found in the picture.\nPicture 3:\nTHIRD"),
        ("对比", "图 1：\nFIRST\n图 2：\n图中没有读到文字。\n图 3：\nTHIRD"),
    ):
        messages: Any = [user(text, *pictures)]
        answer = ocr.chat.completions.create(model="ppocr", messages=messages)
        assert answer.choices[0].message.content == expected


def test_the_last_message_with_pictures_is_read(ocr: OpenAI) -> None:
    messages: Any = [
        user("Read", picture("OLD")),
        user("And this", picture("NEW")),
        {"role": "assistant", "content": "NEW"},
        {"role": "user", "content": "Again please"},
    ]
    assert ocr.chat.completions.create(model="ppocr", messages=messages).choices[0].message.content == "NEW"


def test_without_a_picture_it_says_what_it_does(ocr: OpenAI) -> None:
    for text, words in (("Hello", "do not reason"), ("你好", "不会推理")):
        answer = ocr.chat.completions.create(model="ppocr", messages=[{"role": "user", "content": text}])
        assert words in (answer.choices[0].message.content or "")


def test_limits_of_the_answer(ocr: OpenAI) -> None:
    messages: Any = [user("Read", picture("ONE TWO THREE", "FOUR"))]
    cut = ocr.chat.completions.create(model="ppocr", messages=messages, max_tokens=2)
    assert (cut.choices[0].message.content, cut.choices[0].finish_reason) == ("ONE TWO", "length")
    stopped = ocr.chat.completions.create(model="ppocr", messages=messages, stop=["THREE\nFOUR"])
    assert (stopped.choices[0].message.content, stopped.choices[0].finish_reason) == ("ONE TWO ", "stop")


def test_large_letters_in_a_small_picture_stay_one_line(ocr: OpenAI) -> None:
    image = Image.new("RGB", (480, 120), "white")
    ImageDraw.Draw(image).text((20, 30), "QUINTET 2048", fill="black", font=ImageFont.load_default(48))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    answer = ocr.chat.completions.create(model="ppocr", messages=[user("Read", buffer.getvalue())])  # type: ignore[list-item]
    assert answer.choices[0].message.content == "QUINTET 2048"


def test_pictures_of_awkward_shapes_cost_little(ocr: OpenAI) -> None:
    started = time.monotonic()
    for size in ((1, 1), (3000, 20), (20, 3000)):
        messages: Any = [user("Read", picture(size=size))]
        assert ocr.chat.completions.create(model="ppocr", messages=messages).choices[0].finish_reason == "stop"
    assert time.monotonic() - started < 20


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"logprobs": True}, "logprobs"),
        ({"n": 2}, "n"),
        ({"logit_bias": {"1": 1}}, "logit_bias"),
        ({"messages": [user("x", b"no picture")]}, "messages[0].content[0].image_url"),
        ({"messages": [user("x", *[b"x"] * 17)]}, "messages[0].content[16].image_url"),
        ({"messages": [{**user("x", b"x"), "role": "system"}]}, "messages[0].content[0]"),
    ],
)
def test_what_it_cannot_do_is_refused_by_name(ocr: OpenAI, fields: Any, param: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        ocr.chat.completions.create(**{"model": "ppocr", "messages": [user("Read", picture("A"))], **fields})
    assert caught.value.param == param


def test_text_completions_are_refused(ocr: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        ocr.completions.create(model="ppocr", prompt="Once upon a time")
    assert caught.value.param == "prompt"


def test_a_private_address_is_refused(ocr: OpenAI) -> None:
    part = {"type": "image_url", "image_url": {"url": "http://169.254.169.254/latest"}}
    messages: Any = [{"role": "user", "content": [part]}]
    with pytest.raises(openai.BadRequestError) as caught:
        ocr.chat.completions.create(model="ppocr", messages=messages)
    assert caught.value.code == "url_not_allowed"


def test_raw_base64_on_zlais_path_alone(url: str, ocr: OpenAI) -> None:
    part = {"type": "image_url", "image_url": {"url": base64.b64encode(picture("RAW")).decode()}}
    messages: Any = [{"content": [part, {"type": "text", "text": "Read"}]}]
    zlai = OpenAI(base_url=url, api_key="none", max_retries=0)
    assert zlai.chat.completions.create(model="ppocr", messages=messages).choices[0].message.content == "RAW"
    with pytest.raises(openai.BadRequestError):
        ocr.chat.completions.create(model="ppocr", messages=[{"role": "user", **messages[0]}])


def test_a_text_model_given_a_picture_says_so(scripted_url: str) -> None:
    body = {"model": "short", "messages": [user("Read", picture("A"))]}
    error = httpx2.post(f"{scripted_url}/v1/chat/completions", json=body).json()["error"]
    assert "'org/scripted' does not take pictures" in error["message"]
    assert error["param"] == "messages[0].content[0].image_url"


def test_its_requests_are_counted_as_multimodal(url: str) -> None:
    assert (
        'quintet_request_success_total{finished_reason="stop",model="ppocr",service="multimodal"}'
        in httpx2.get(f"{url}/metrics").text
    )


# The schedule, on a reader that waits until it is told to go on.


class SlowReader:
    """Reads a picture as its own words; each picture waits for a permit."""

    def __init__(self) -> None:
        self.permits = threading.Semaphore(0)
        self.begun: list[str] = []

    def lines(self, picture: bytes) -> Iterator[str]:
        self.begun.append(picture.decode())
        for word in picture.decode().split():
            self.permits.acquire(timeout=60)
            if word == "broken":
                raise ValueError(word)
            yield word


class Collected:
    """Stands where the worker's host gives an Emit."""

    def __init__(self) -> None:
        self.events: list[Any] = []
        self.ended = threading.Event()

    def __call__(self, event: Any) -> None:
        self.events.append(event)

    def done(self) -> None:
        self.ended.set()

    def fail(self, error: ApiError) -> None:
        self.events.append(error.status)
        self.ended.set()

    @property
    def text(self) -> str:
        return "".join(event.text for event in self.events if isinstance(event, Delta))


def request(*pictures: str) -> Generate:
    parts = [{"type": "image", "image": index} for index in range(len(pictures))]
    messages = [{"role": "user", "content": [*parts, {"type": "text", "text": "Read"}]}]
    return Generate(messages=messages, images=[each.encode() for each in pictures])


def started_engine() -> tuple[OcrEngine, SlowReader]:
    reader = SlowReader()
    engine = OcrEngine(SPEC, reader)
    engine.load(lambda *_: None)
    return engine, reader


def submit(engine: OcrEngine, number: int, *pictures: str) -> Collected:
    emit = Collected()
    engine.submit(number, request(*pictures), emit)  # type: ignore[arg-type]
    return emit


def until(condition: Any) -> None:
    deadline = time.monotonic() + 60
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.005)
    assert condition()


def test_requests_take_turns_a_picture_each() -> None:
    engine, reader = started_engine()
    long = submit(engine, 1, "a1", "a2", "a3")
    until(lambda: reader.begun == ["a1"])
    short = submit(engine, 2, "b1")
    assert engine.stats() == {"num_requests_running": 1, "num_requests_waiting": 1}
    reader.permits.release(4)
    assert long.ended.wait(60)
    assert short.ended.is_set()
    assert reader.begun == ["a1", "b1", "a2", "a3"]
    assert long.text == "Picture 1:\na1\nPicture 2:\na2\nPicture 3:\na3"
    assert engine.stats() == {"num_requests_running": 0, "num_requests_waiting": 0}


def test_a_cancelled_request_ends_at_the_next_line_and_says_no_more() -> None:
    engine, reader = started_engine()
    running = submit(engine, 1, "one two three", "four")
    waiting = submit(engine, 2, "five")
    reader.permits.release()
    until(lambda: "one" in running.text)
    engine.cancel(1)
    engine.cancel(2)
    engine.cancel(99)
    reader.permits.release()
    assert running.ended.wait(60)
    assert waiting.ended.wait(60)
    assert running.text.endswith("one")
    assert reader.begun == ["one two three"]
    assert not any(isinstance(event, Finished) for event in running.events + waiting.events)


def test_too_many_requests_are_refused() -> None:
    engine, reader = started_engine()
    taken = [submit(engine, number, "x") for number in range(4)]
    with pytest.raises(ApiError) as caught:
        submit(engine, 9, "x")
    assert (caught.value.status, caught.value.retry_after) == (429, 2)
    reader.permits.release(4)
    assert all(each.ended.wait(60) for each in taken)
    submit(engine, 10, "x")


def test_a_picture_that_breaks_the_reader_costs_its_request_alone() -> None:
    engine, reader = started_engine()
    reader.permits.release(9)
    broken, fine = submit(engine, 1, "broken"), submit(engine, 2, "fine")
    assert broken.ended.wait(60)
    assert fine.ended.wait(60)
    assert broken.events[-1] == 500
    assert fine.text == "fine"
    assert engine.stats()["num_requests_running"] == 0


def test_what_was_said_is_counted() -> None:
    engine, reader = started_engine()
    reader.permits.release(9)
    emit = submit(engine, 1, "one two")
    assert emit.ended.wait(60)
    started = emit.events.pop(1)
    assert isinstance(started, Started)
    assert 0 <= started.queue_seconds < 60
    assert emit.events == [
        Accepted(PICTURE_TOKENS + 1),
        Delta(0, "one", 1),
        Delta(0, "\ntwo", 1),
        Finished(0, "stop"),
    ]


@pytest.mark.parametrize(
    ("text", "tokens"), [("", 0), ("two words", 2), ("Total: 99.50", 5), ("你好 world", 3), ("图1", 2), (" \n", 0)]
)
def test_tokens_are_characters_words_and_marks(text: str, tokens: int) -> None:
    assert count_tokens(text) == tokens


@pytest.mark.parametrize(
    ("stop", "said", "rest"),
    [
        ([], "ab\ncd\nef", "stop"),
        (["d"], "ab\nc", "stop"),
        (["b\nc"], "a", "stop"),
        (["cd\nx", "\ne"], "ab\ncd", "stop"),
        (["zz"], "ab\ncd\nef", "stop"),
        (["ab\ncd\nef\n"], "ab\ncd\nef", "stop"),
    ],
)
def test_stop_strings_across_lines(stop: list[str], said: str, rest: str) -> None:
    emit = Collected()
    answer = Answer(emit, None, stop)  # type: ignore[arg-type]
    for line in ("ab", "cd", "ef"):
        answer.say(line)
    answer.finish()
    assert emit.text == said
    assert [event for event in emit.events if isinstance(event, Finished)] == [Finished(0, rest)]


def test_words_follow_the_users_language() -> None:
    assert Words.of("读一下").label.format(1) == "图 1："
    assert Words.of("read").label.format(2) == "Picture 2:"
    assert Sampling().max_tokens is None
