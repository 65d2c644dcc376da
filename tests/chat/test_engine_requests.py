"""A running engine over a tiny random model: every field of a request, refusals, cancellation, a full queue."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from chat.engine_kit import DEVICE, Heard, ask, started, submit, tiny_engine, tiny_path, tiny_spec, tokenizer, user
from quintet_chat.engine.engine import ChatEngine
from quintet_chat.protocol import Accepted, Generate, Grammar, Sampling
from quintet_common.errors import ApiError
from quintet_common.models_yml import ModelSpec


@pytest.fixture
def engine() -> ChatEngine:
    return tiny_engine()


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


FIXED: dict[str, Any] = {"temperature": 0, "max_tokens": 12, "ignore_eos": True}


def test_events_come_in_order(engine: ChatEngine) -> None:
    heard = ask(engine, "the cat", **FIXED)
    assert heard.events[0] == Accepted(prompt_tokens=len(tokenizer()("the cat")["input_ids"]))
    assert heard.reasons == {0: "length"}
    assert heard.events[-1].index == 0
    assert heard.tokens() == 12
    assert heard.text()


def test_32_requests_at_once_all_finish(engine: ChatEngine) -> None:
    requests = [submit(engine, f"the cat number {i}", max_tokens=20 + i, ignore_eos=True)[1] for i in range(32)]
    for i, heard in enumerate(requests):
        assert heard.wait().error is None
        assert heard.tokens() == 20 + i
    assert engine.stats()["num_requests_running"] == 0


def test_messages_go_through_the_template(engine: ChatEngine) -> None:
    heard = ask(engine, messages=user("hello"), echo=True, **FIXED)
    assert heard.events[0].prompt_text == "user\nhello\nassistant\n"
    parts = [{"role": "user", "content": [{"type": "text", "text": "hello"}, {"type": "text", "text": "cat"}]}]
    assert ask(engine, messages=parts, echo=True, **FIXED).events[0].prompt_text == "user\nhello\ncat\nassistant\n"
    heard = ask(engine, messages=user("hello"), assistant_prefix="the cat", echo=True, **FIXED)
    assert heard.events[0].prompt_text == "user\nhello\nassistant\nthe cat"


def test_several_choices_share_the_prompt_and_differ(engine: ChatEngine) -> None:
    before = engine.stats()["prefill_tokens_total"]
    heard = ask(engine, "the cat sat", n=4, seed=1, temperature=1.5, max_tokens=12, ignore_eos=True)
    assert heard.reasons == dict.fromkeys(range(4), "length")
    assert [heard.tokens(i) for i in range(4)] == [12] * 4
    assert len({heard.text(i) for i in range(4)}) > 1
    assert engine.stats()["prefill_tokens_total"] - before == heard.events[0].prompt_tokens


def test_more_choices_than_slots_all_come() -> None:
    engine = started(tiny_spec(max_batch=2))
    heard = ask(engine, "the cat", n=5, **FIXED)
    assert {heard.text(i) for i in range(5)} == {ask(engine, "the cat", **FIXED).text()}


def test_a_seed_repeats_the_answer_alone_and_in_company(engine: ChatEngine) -> None:
    def answer() -> Any:
        return submit(engine, "the cat", seed=11, temperature=1.0, max_tokens=16, ignore_eos=True)[1]

    first = answer().wait().text()
    company = [submit(engine, "on the mat", max_tokens=30, ignore_eos=True)[1] for _ in range(5)]
    assert answer().wait().text() == first
    for heard in company:
        heard.wait()


def test_a_stop_string_over_token_boundaries_ends_the_answer_before_it(engine: ChatEngine) -> None:
    whole = ask(engine, "the cat", temperature=0, max_tokens=30, ignore_eos=True)
    texts = [delta.text for delta in whole.deltas()]
    middle = len(texts) // 2
    stop = texts[middle][-1] + texts[middle + 1][0]  # the end of one token and the beginning of the next
    cut = ask(engine, "the cat", temperature=0, max_tokens=30, ignore_eos=True, stop=[stop, "never"])
    assert cut.reasons == {0: "stop"}
    assert cut.text() == whole.text()[: whole.text().index(stop)]
    assert cut.tokens() < 30


def test_stop_tokens_end_without_text_and_ignore_eos_does_not_touch_them(engine: ChatEngine) -> None:
    whole = ask(engine, "the cat", logprobs=0, **FIXED)
    third = [logprob for delta in whole.deltas() for logprob in delta.logprobs][3]
    token = next(i for i in range(330) if engine._output._token_text(i)[0] == third.token)
    heard = ask(engine, "the cat", stop_token_ids=[token], logprobs=0, **FIXED)
    assert heard.reasons == {0: "stop"}
    assert whole.text().startswith(heard.text())
    assert third.token not in [logprob.token for delta in heard.deltas() for logprob in delta.logprobs]


def test_the_end_token_stops_unless_it_is_ignored_or_too_early(engine: ChatEngine) -> None:
    end = tokenizer().eos_token_id
    forced: dict[str, Any] = {"temperature": 0, "logit_bias": {end: 100.0}, "max_tokens": 8}
    heard = ask(engine, "the", **forced)
    assert (heard.reasons, heard.text(), heard.tokens()) == ({0: "stop"}, "", 1)
    assert ask(engine, "the", ignore_eos=True, **forced).tokens() == 8
    assert ask(engine, "the", min_tokens=5, **forced).tokens() == 6


def test_special_tokens_are_text_only_when_asked_for(engine: ChatEngine) -> None:
    start = tokenizer().convert_tokens_to_ids("<|im_start|>")
    forced: dict[str, Any] = {"temperature": 0, "logit_bias": {start: 100.0}, "max_tokens": 2}
    assert ask(engine, "the", **forced).text() == ""
    assert ask(engine, "the", marks=["<|im_start|>"], **forced).text() == "<|im_start|><|im_start|>"


def test_logprobs_come_with_their_text(engine: ChatEngine) -> None:
    heard = ask(engine, "the cat", logprobs=3, **FIXED)
    logprobs = [logprob for delta in heard.deltas() for logprob in delta.logprobs]
    assert len(logprobs) == 12
    for logprob in logprobs:
        assert len(logprob.top) == 3
        assert logprob.top[0][2] == pytest.approx(logprob.logprob)
        assert logprob.logprob < 0
    joined = bytes(byte for logprob in logprobs for byte in logprob.bytes)
    assert joined.decode("utf-8", "ignore").replace("�", "").startswith(heard.text()[:5].replace("�", ""))


def test_no_limit_goes_to_the_end_of_the_context(engine: ChatEngine) -> None:
    context = engine.info["context"]  # type: ignore[attr-defined]
    heard = ask(engine, [5] * (context - 7), temperature=0, ignore_eos=True)
    assert heard.reasons == {0: "length"}
    assert heard.tokens() == 7
    assert ask(engine, [5] * (context - 7), temperature=0, ignore_eos=True, max_tokens=1000).tokens() == 7


def test_nothing_to_generate_is_answered_with_nothing(engine: ChatEngine) -> None:
    heard = ask(engine, "the cat", max_tokens=0, n=2, echo=True)
    assert heard.reasons == {0: "length", 1: "length"}
    assert heard.deltas() == []


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"prompt": [5] * 512}, "prompt", "context_length_exceeded"),
        ({"prompt": "猫" * 100000}, "prompt", "context_length_exceeded"),
        ({"messages": user("cat " * 2000)}, "messages", "context_length_exceeded"),
        ({"prompt": []}, "prompt", None),
        ({"prompt": [5, 99999]}, "prompt", None),
        ({"prompt": "a", "logit_bias": {-1: 1.0}}, "logit_bias", None),
        ({"prompt": "a", "stop_token_ids": [99999]}, "stop_token_ids", None),
        ({"messages": [{"role": "villain", "content": "boo"}]}, "messages", "chat_template"),
        ({"messages": user("a"), "template_args": {"tokenize": True}}, "chat_template_kwargs", None),
        ({"messages": user("a"), "template_args": {"chat_template": "{{ 1 }}"}}, "chat_template_kwargs", None),
        ({"messages": user("a"), "images": [b"png"]}, "messages", "no_images"),
        ({"prompt": "a", "grammar": Grammar(type="regex", value="(")}, "response_format", "invalid_grammar"),
        ({"prompt": "a", "grammar": Grammar(type="structural_tag", value={"x": 1})}, "tools", "invalid_grammar"),
        ({"prompt": "a", "grammar": Grammar(type="ebnf", value=7)}, "response_format", "invalid_grammar"),
    ],
    ids=str,
)
def test_what_cannot_be_done_is_refused_by_name(
    engine: ChatEngine, fields: dict[str, Any], param: str, code: str | None
) -> None:
    with pytest.raises(ApiError) as caught:
        ask(engine, **fields)
    assert (caught.value.status, caught.value.param, caught.value.code) == (400, param, code)
    assert ask(engine, "the cat", **FIXED).tokens() == 12


def test_a_token_that_the_model_lacks_costs_its_own_request_alone(tmp_path: Path) -> None:
    """Published tokenizers have such: a ``[PAD]`` that was added, and no row of the embeddings for it."""
    shutil.copytree(tiny_path(), tmp_path, dirs_exist_ok=True)
    larger = tokenizer()
    larger.add_special_tokens({"additional_special_tokens": ["[PAD]"]})
    larger.save_pretrained(tmp_path)
    engine = started(ModelSpec(id="larger", kind="chat", path=str(tmp_path), dtype="float32", device=DEVICE))
    with pytest.raises(ApiError, match=r"'\[PAD\]' in prompt") as caught:
        ask(engine, "the cat [PAD]", **FIXED)
    assert (caught.value.status, caught.value.param) == (400, "prompt")
    assert ask(engine, "the cat", **FIXED).tokens() == 12


@pytest.mark.parametrize(
    "template",
    ["{{ 1 // messages[0].content|length }}", "{{ '{1}'.format(messages) }}"],
)
def test_whatever_a_chat_template_fails_with_is_the_requests_fault(template: str) -> None:
    engine = tiny_engine()
    preparer, before = engine._preparer, engine._preparer._tokenizer.chat_template
    preparer._tokenizer.chat_template = template
    try:
        with pytest.raises(ApiError) as caught:
            ask(engine, messages=user(""), **FIXED)
    finally:
        preparer._tokenizer.chat_template = before
    assert (caught.value.status, caught.value.code) == (400, "chat_template")


def test_arguments_that_are_nested_too_deep_stay_text(engine: ChatEngine) -> None:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"a":' * 5000}}
    history = [*user("the"), {"role": "assistant", "content": "", "tool_calls": [call]}]
    assert ask(engine, messages=history, **FIXED).tokens() == 12


def test_a_prompt_that_is_too_long_names_both_lengths(engine: ChatEngine) -> None:
    with pytest.raises(ApiError, match=r"512 tokens.*600 tokens") as caught:
        ask(engine, [5] * 600)
    assert caught.value.retry is False


def test_a_cancelled_request_ends_and_frees_its_place_at_once(engine: ChatEngine) -> None:
    request_id, heard = submit(engine, "the cat", ignore_eos=True, max_tokens=400)
    until(lambda: heard.tokens() > 2)
    engine.cancel(request_id)
    heard.wait()
    assert heard.error is None
    assert heard.reasons == {}
    assert heard.tokens() < 400
    until(lambda: engine.stats()["num_requests_running"] == 0)
    assert engine.stats()["kv_cache_usage_perc"] == 0


def test_cancelling_before_preparation_is_over_ends_it_too(engine: ChatEngine) -> None:
    requests = [submit(engine, messages=user("cat " * 90), n=2, max_tokens=5) for _ in range(20)]
    for request_id, _ in requests:
        engine.cancel(request_id)
    for _, heard in requests:
        heard.wait()
    engine.cancel(10**9)  # of a request that is not there
    assert not engine._open


class AsksAgain(Heard):
    """A client that sends its next two requests as soon as it is told that the last one has ended."""

    engine: ChatEngine
    again: tuple[Heard, ...] = ()

    def done(self) -> None:
        try:
            for _ in range(2):
                self.again += (submit(self.engine, "the", max_tokens=2)[1],)
        except ApiError as error:
            self.error = error
        super().done()


def test_a_request_whose_end_is_told_takes_nobodys_place() -> None:
    client = AsksAgain()
    client.engine = started(tiny_spec(max_batch=1, max_waiting=1))
    body = Generate(prompt="the cat", sampling=Sampling(max_tokens=3, ignore_eos=True))
    client.engine.submit(10**6, body, client)  # type: ignore[arg-type]
    assert client.wait().error is None
    assert [heard.wait().error for heard in client.again] == [None, None]


def test_a_full_queue_refuses_with_a_time_to_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = started(tiny_spec(max_batch=1, max_waiting=2))
    full, runner = threading.Event(), engine._scheduler._runner
    decode = runner.decode

    def held(*batch: Any) -> Any:
        assert full.wait(60)
        return decode(*batch)

    monkeypatch.setattr(runner, "decode", held)
    first = submit(engine, "the cat", ignore_eos=True, max_tokens=450)
    until(lambda: engine.stats()["num_requests_running"] == 1)
    others = [submit(engine, "the", max_tokens=3, ignore_eos=True) for _ in range(2)]
    with pytest.raises(ApiError) as caught:
        submit(engine, "the")
    assert (caught.value.status, caught.value.code) == (429, "queue_full")
    assert 1 <= (caught.value.retry_after or 0) <= 60
    assert engine.stats()["num_requests_waiting"] == 2
    engine.cancel(first[0])
    full.set()
    for _, heard in others:
        assert heard.wait().tokens() == 3
    assert ask(engine, "the", max_tokens=2, ignore_eos=True).tokens() == 2
