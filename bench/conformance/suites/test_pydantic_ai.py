from __future__ import annotations

from typing import Any

import pytest
from pydantic_ai import Agent, NativeOutput, ToolOutput
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider
from served import MODEL, TOKENS, URL, WEATHER, Person

both = pytest.mark.parametrize("model", [OpenAIChatModel, OpenAIResponsesModel])


def agent(model: Any, **fields: Any) -> Agent[None, Any]:
    served = model(MODEL, provider=OpenAIProvider(base_url=URL, api_key="none"))
    return Agent(served, model_settings={"max_tokens": TOKENS}, **fields)


@both
def test_an_answer(model: Any) -> None:
    assert agent(model).run_sync("Hi").output


@both
async def test_a_stream(model: Any) -> None:
    async with agent(model).run_stream("Hi") as run:
        assert await run.get_output()


@both
@pytest.mark.parametrize("output", [NativeOutput, ToolOutput])
def test_an_answer_of_a_type(model: Any, output: Any) -> None:
    assert isinstance(agent(model, output_type=output(Person)).run_sync("John is 30").output, Person)


@both
def test_a_tool_is_called_and_its_result_read(model: Any) -> None:
    asked = agent(model)
    cities = []

    @asked.tool_plain
    def get_weather(city: str) -> str:
        cities.append(city)
        return "sunny"

    assert asked.run_sync(WEATHER).output
    assert cities
