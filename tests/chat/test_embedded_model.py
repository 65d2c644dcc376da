"""SmolLM2 itself, in a worker process of its own, as the service runs it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from chat.engine_kit import user
from quintet_chat.protocol import Accepted, Delta, Event, Finished, Generate, Grammar, Sampling
from quintet_common.models_yml import ModelSpec
from quintet_common.worker.process import State, Worker

pytestmark = pytest.mark.asyncio(loop_scope="session")
LIMIT_MB = 1000


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def worker() -> AsyncIterator[Worker[Event]]:
    spec = ModelSpec(id="smol", kind="chat", path="embedded:smollm2-135m-instruct", max_waiting=64)
    started: Worker[Event] = Worker(spec, "quintet_chat.worker:create_engine", Event)
    started.start()
    await asyncio.wait_for(started.until(State.READY, State.FAILED), 600)
    yield started
    await started.stop()


async def ask(worker: Worker[Event], text: str, **fields: Any) -> list[Event]:
    sampling = Sampling(**{name: fields.pop(name) for name in list(fields) if name in Sampling.__struct_fields__})
    async with await worker.submit(Generate(messages=user(text), sampling=sampling, **fields)) as job:
        return [event async for event in job]


def text_of(events: list[Event]) -> str:
    return "".join(event.text for event in events if isinstance(event, Delta))


async def test_the_worker_says_what_it_serves(worker: Worker[Event]) -> None:
    assert worker.state is State.READY, worker.note
    assert worker.info["engine"] == "transformers"
    assert worker.info["tool_family"] == "hermes"
    assert worker.info["template_tools"] is False
    assert (worker.info["context"], worker.info["vocab_size"]) == (8192, 49152)
    assert worker.info["sampling"].keys() == {"temperature", "top_p"}


async def test_it_knows_the_capital_of_france(worker: Worker[Event]) -> None:
    events = await ask(worker, "What is the capital of France?", temperature=0)
    assert text_of(events) == "The capital of France is Paris."
    assert isinstance(events[0], Accepted)
    assert events[-1] == Finished(0, "stop")


async def test_a_hot_answer_still_matches_its_schema(worker: Worker[Event]) -> None:
    schema = {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 20}, "unit": {"enum": ["celsius", "fahrenheit"]}},
        "required": ["city", "unit"],
    }
    grammar = Grammar(type="json_schema", value=schema)
    events = await ask(worker, "Weather in Paris?", grammar=grammar, temperature=1.8, max_tokens=80)
    value = json.loads(text_of(events))
    assert len(value["city"]) <= 20
    assert value["unit"] in ("celsius", "fahrenheit")


async def test_32_clients_all_finish_and_the_memory_stays_in_bounds(worker: Worker[Event]) -> None:
    questions = [f"Name {i + 2} animals." for i in range(32)]
    answers = await asyncio.gather(
        *(ask(worker, question, temperature=0.7, max_tokens=24, ignore_eos=True) for question in questions)
    )
    for events in answers:
        assert sum(event.tokens for event in events if isinstance(event, Delta)) == 24
        assert events[-1] == Finished(0, "length")
    assert resident_mb(worker.pid) < LIMIT_MB


async def test_a_client_that_leaves_frees_its_place(worker: Worker[Event]) -> None:
    body = Generate(messages=user("Tell me a long story."), sampling=Sampling(ignore_eos=True, max_tokens=2000))
    async with await worker.submit(body) as job:
        async for event in job:
            if isinstance(event, Delta):
                break
    for _ in range(400):
        if worker.stats.get("num_requests_running") == 0:
            break
        await asyncio.sleep(0.05)
    else:
        pytest.fail("the place was not freed")
    assert worker.stats["decode_tokens_total"] < 24 * 32 + 1000


def resident_mb(pid: int | None) -> int:
    status = Path(f"/proc/{pid}/status")
    if not status.exists():
        pytest.skip("this system does not tell the memory of a process")
    line = next(line for line in status.read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) >> 10
