"""Text completions through OpenAI's own SDK, on a worker that continues a prompt with its own parts."""

from __future__ import annotations

import json
from typing import Any

import httpx2
import openai
import pytest
from openai import OpenAI
from quintet_chat.api.logprobs import characters, completion_logprobs
from quintet_chat.protocol import TokenLogprob


def ids(text: str) -> list[int]:
    return [ord(letter) for letter in text]


def test_an_answer_has_exactly_the_fields_of_openais(scripted_url: str) -> None:
    answer = httpx2.post(f"{scripted_url}/v1/completions", json={"model": "short", "prompt": "a|b"}).json()
    assert answer.pop("id").startswith("cmpl-")
    assert answer.pop("created") > 0
    assert answer == {
        "object": "text_completion",
        "model": "short",
        "choices": [{"index": 0, "text": "ab", "finish_reason": "stop", "logprobs": None}],
        "usage": {
            "prompt_tokens": 7,
            "completion_tokens": 2,
            "total_tokens": 9,
            "prompt_tokens_details": {"cached_tokens": 3},
        },
    }


@pytest.mark.parametrize(
    ("prompt", "texts"),
    [
        ("a|b", ["ab"]),
        (["a", "b", "c"], ["a", "b", "c"]),
        (ids("x|y"), ["xy"]),
        ([ids("x"), ids("y|z")], ["x", "yz"]),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_every_form_of_prompt_in_order(client: OpenAI, prompt: Any, texts: list[str], stream: bool) -> None:
    assert answered(client, stream, prompt=prompt) == texts


def answered(client: OpenAI, stream: bool, **fields: Any) -> list[str]:
    """The texts of the choices, by index."""
    answer = client.completions.create(model="short", stream=stream, **fields)
    texts: dict[int, str] = {}
    for part in answer if stream else [answer]:
        for choice in part.choices:
            texts[choice.index] = texts.get(choice.index, "") + choice.text
    return [texts[index] for index in range(len(texts))]


@pytest.mark.parametrize("stream", [False, True])
def test_n_choices_of_each_prompt(client: OpenAI, stream: bool) -> None:
    assert answered(client, stream, prompt=["a", "b"], n=2) == ["a", "a", "b", "b"]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("prompt", ["a|b", ids("a|b")])
def test_echo_gives_the_prompt_back(client: OpenAI, prompt: Any, stream: bool) -> None:
    assert answered(client, stream, prompt=prompt, echo=True) == ["a|bab"]
    assert answered(client, stream, prompt=prompt, echo=True, max_tokens=0) == ["a|b"]


def test_best_of_answers_the_likeliest(client: OpenAI) -> None:
    """The worker gives its last candidate the highest logprobs."""
    answer = client.completions.create(model="short", prompt="a", best_of=3, n=2, logprobs=0)
    assert [choice.index for choice in answer.choices] == [0, 1]
    first = answer.choices[0].logprobs
    assert first is not None
    assert first.token_logprobs == [1.5]
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 3


def test_without_a_limit_sixteen_tokens_come(client: OpenAI) -> None:
    assert answered(client, False, prompt="|".join("x" * 40)) == ["x" * 16]


def test_logprobs_are_parallel_lists(client: OpenAI) -> None:
    answer = client.completions.create(model="short", prompt="ab|c", logprobs=2)
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.tokens == ["ab", "c"]
    assert logprobs.token_logprobs == [-0.5, -0.5]
    assert logprobs.text_offset == [0, 2]
    assert logprobs.top_logprobs == [{"ab": -0.5, "other": -1.5}, {"c": -0.5, "other": -1.5}]


def test_streamed_logprobs_go_on_counting(client: OpenAI) -> None:
    parts = list(client.completions.create(model="short", prompt="ab|c", logprobs=1, stream=True))
    found = [choice.logprobs for part in parts for choice in part.choices if choice.logprobs]
    assert [each.text_offset for each in found] == [[0], [2]]


def test_tokens_within_a_character_start_where_it_does() -> None:
    """A token's name is longer than its text where it is written by its bytes."""
    parts = "a猫b".encode()
    tokens = [TokenLogprob(token, list(raw), -1.0) for token, raw in (
        ("a", parts[:1]), ("\\xe7\\x8c", parts[1:3]), ("\\xab", parts[3:4]), ("b", parts[4:])
    )]  # fmt: skip
    assert completion_logprobs(tokens, 5).text_offset == [5, 6, 6, 7]
    assert characters(tokens) == 3


def test_obfuscation_evens_out_the_sizes_of_pieces(scripted_url: str) -> None:
    def pieces(**fields: Any) -> list[dict[str, Any]]:
        body = {"model": "short", "prompt": "a|bcd|efghij", "stream": True, **fields}
        lines = httpx2.post(f"{scripted_url}/v1/completions", json=body).text.split("\n\n")
        return [json.loads(line.removeprefix("data: ")) for line in lines if line and "[DONE]" not in line]

    hidden = pieces(stream_options={"include_obfuscation": True})
    assert {len(each["choices"][0]["text"] + each["obfuscation"]) % 32 for each in hidden} == {0}
    assert any(each["obfuscation"] for each in hidden)
    assert all("obfuscation" not in each for each in pieces())


def test_a_stream_ends_with_usage_and_done(scripted_url: str) -> None:
    body = {"model": "short", "prompt": ["a", "b"], "stream": True, "stream_options": {"include_usage": True}}
    text = httpx2.post(f"{scripted_url}/v1/completions", json=body).text
    *events, done = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
    assert done == "[DONE]"
    *parts, last = map(json.loads, events)
    assert all(part["usage"] is None and part["object"] == "text_completion" for part in parts)
    assert last["choices"] == []
    assert (last["usage"]["prompt_tokens"], last["usage"]["completion_tokens"]) == (14, 2)


BAD: list[tuple[dict[str, Any], str]] = [
    ({"prompt": None}, "prompt"),
    ({"prompt": []}, "prompt"),
    ({"prompt": [[]]}, "prompt[0]"),
    ({"prompt": [-1]}, "prompt[0]"),
    ({"prompt": ["a", 1]}, "prompt[1]"),
    ({"prompt": {"a": 1}}, "prompt"),
    ({"suffix": "end"}, "suffix"),
    ({"guided_json": {"type": "object"}}, "guided_json"),
    ({"echo": True, "logprobs": 1}, "logprobs"),
    ({"best_of": 1, "n": 2}, "best_of"),
    ({"best_of": 2, "stream": True}, "best_of"),
    ({"prompt": ["a"] * 9, "n": 128}, "n"),
    ({"prompt": ["a"] * 9, "best_of": 128}, "best_of"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": -1}, "max_tokens"),
    ({"logprobs": 21}, "logprobs"),
    ({"temperature": -1}, "temperature"),
]


@pytest.mark.parametrize(("fields", "param"), BAD, ids=[f"{param}-{i}" for i, (_, param) in enumerate(BAD)])
def test_bad_input_is_a_400_that_names_its_field(scripted_url: str, fields: dict[str, Any], param: str) -> None:
    response = httpx2.post(f"{scripted_url}/v1/completions", json={"model": "short", "prompt": "a", **fields})
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, param), error


def test_a_missing_prompt_is_named(client: OpenAI, scripted_url: str) -> None:
    error = httpx2.post(f"{scripted_url}/v1/completions", json={"model": "short"}).json()["error"]
    assert (error["param"], error["code"]) == ("prompt", "missing_required_parameter")
    with pytest.raises(openai.NotFoundError):
        client.completions.create(model="nobody", prompt="a")


@pytest.mark.parametrize("stream", [False, True])
def test_one_refused_prompt_refuses_the_request(client: OpenAI, stream: bool) -> None:
    for prompt in (["a", "refuse", "b"], ["refuse"], ["refuse", "refuse"]):
        with pytest.raises(openai.BadRequestError, match=r"No\."):
            client.completions.create(model="short", prompt=prompt, stream=stream)


def test_one_failing_prompt_fails_the_request(client: OpenAI) -> None:
    with pytest.raises(openai.InternalServerError, match="melted"):
        client.completions.create(model="short", prompt=["a|b|c", "fail", "d"])


def test_one_failing_prompt_ends_the_stream_with_an_error(client: OpenAI) -> None:
    stream = client.completions.create(model="short", prompt=["a|b|c", "fail", "d"], stream=True)
    with pytest.raises(openai.APIError, match="melted"):
        list(stream)


def test_the_limit_of_models_yml_goes_before_openai_s(smollm2_url: str) -> None:
    """Its entry says ``sampling: {max_tokens: 200}``."""
    body = {"model": "smollm2", "prompt": "The numbers are: one, two, three,", "temperature": 0}
    body |= {"stop": [" twenty"], "ignore_eos": True}
    usage = httpx2.post(f"{smollm2_url}/v1/completions", json=body, timeout=60).json()["usage"]
    assert usage["completion_tokens"] > 16
    limited = httpx2.post(f"{smollm2_url}/v1/completions", json=body | {"max_tokens": 3}, timeout=60).json()["usage"]
    assert limited["completion_tokens"] == 3
