from __future__ import annotations

from typing import Any

import pytest
from agents import (
    Agent,
    ModelSettings,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    Runner,
    function_tool,
    set_tracing_disabled,
)
from openai import AsyncOpenAI
from served import MODEL, TOKENS, URL, WEATHER, Person

set_tracing_disabled(True)
both = pytest.mark.parametrize("model", [OpenAIChatCompletionsModel, OpenAIResponsesModel])


@function_tool
def get_weather(city: str) -> str:
    """The weather of a city."""
    return f"sunny in {city}"


def agent(model: Any, **fields: Any) -> Agent[None]:
    served = model(model=MODEL, openai_client=AsyncOpenAI(base_url=URL, api_key="none"))
    settings = ModelSettings(max_tokens=TOKENS, **fields.pop("settings", {}))
    return Agent(name="helper", instructions="Be brief.", model=served, model_settings=settings, **fields)


@both
async def test_an_answer(model: Any) -> None:
    assert (await Runner.run(agent(model), "Hi")).final_output


@both
async def test_an_answer_of_a_type(model: Any) -> None:
    run = await Runner.run(agent(model, output_type=Person), "John is 30")
    assert isinstance(run.final_output, Person)


@both
async def test_a_tool_is_called_and_its_result_read(model: Any) -> None:
    asked = agent(model, tools=[get_weather], settings={"tool_choice": "required"})
    run = await Runner.run(asked, WEATHER, max_turns=4)
    assert any(item.type == "tool_call_output_item" for item in run.new_items)
    assert run.final_output


@both
async def test_the_same_as_a_stream(model: Any) -> None:
    run = Runner.run_streamed(agent(model, tools=[get_weather]), WEATHER, max_turns=4)
    kinds = {event.type async for event in run.stream_events()}
    assert {"raw_response_event", "run_item_stream_event"} <= kinds
    assert run.final_output
