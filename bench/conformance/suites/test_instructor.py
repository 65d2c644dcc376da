from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import instructor
import openai
import pytest
from served import MODEL, TOKENS, URL, USER, Person


def client(mode: instructor.Mode) -> Any:
    return instructor.from_openai(openai.OpenAI(base_url=URL, api_key="none"), mode=mode)


@pytest.mark.parametrize("mode", ["TOOLS", "TOOLS_STRICT", "JSON_SCHEMA", "RESPONSES_TOOLS"])
def test_a_model_of_pydantic(mode: str) -> None:
    asked = client(instructor.Mode[mode]).chat.completions.create
    found = asked(model=MODEL, response_model=Person, messages=USER, max_retries=0, max_tokens=TOKENS)
    assert isinstance(found, Person)


def test_parallel_calls() -> None:
    asked = client(instructor.Mode.PARALLEL_TOOLS).chat.completions.create
    found = list(asked(model=MODEL, response_model=Iterable[Person], messages=USER, max_tokens=TOKENS))
    assert all(isinstance(each, Person) for each in found)


def test_a_model_that_grows() -> None:
    asked = client(instructor.Mode.TOOLS).chat.completions.create_partial
    *_, last = asked(model=MODEL, response_model=Person, messages=USER, max_tokens=TOKENS)
    assert Person.model_validate(last.model_dump())
