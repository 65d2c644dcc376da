"""Many clients at once with whatever parameters, many of which leave: every request ends, nothing is left behind."""

from __future__ import annotations

import random
import threading
import time
from typing import Any

import pytest
from chat.blocks_kit import PAGINGS, with_paging
from chat.engine_kit import Heard, started, submit, tiny_spec
from quintet_chat.engine.blocks import BlockCache
from quintet_chat.engine.engine import ChatEngine
from quintet_chat.protocol import Grammar

CLIENTS, CHUNK = 200, 32
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
BEGINNINGS = [[3 + (i * 7 + k) % 200 for i in range(90)] for k in range(3)]


def random_request(chooser: random.Random, number: int) -> dict[str, Any]:
    """Any mixture of what a request can ask for; prompts often begin like others'."""
    prompt = chooser.choice(BEGINNINGS)[: chooser.randrange(0, 90)]
    prompt = prompt + [chooser.randrange(3, 250) for _ in range(chooser.randrange(1, 60))]
    fields: dict[str, Any] = {
        "prompt": prompt,
        "max_tokens": chooser.choice([1, 5, 20, 60, 120]),
        "temperature": chooser.choice([0.0, 0.7, 1.0, 2.0]),
        "ignore_eos": chooser.random() < 0.7,
    }
    options: dict[str, Any] = {
        "top_k": 5,
        "top_p": 0.5,
        "min_p": 0.1,
        "presence_penalty": 1.5,
        "frequency_penalty": -0.5,
        "repetition_penalty": 1.3,
        "logit_bias": {7: -100.0, 9: 5.0},
        "logprobs": 3,
        "stop": ["the", "at"],
        "stop_token_ids": [20, 30],
        "min_tokens": 3,
        "n": chooser.randrange(1, 4),
        "seed": number,
        "grammar": Grammar(type="json_schema", value=SCHEMA),
    }
    for name in chooser.sample(sorted(options), chooser.randrange(0, 4)):
        fields[name] = options[name]
    return fields


def client(engine: ChatEngine, fields: dict[str, Any], leaves_after: float | None) -> Heard:
    request_id, heard = submit(engine, **fields)
    if leaves_after is not None:
        time.sleep(leaves_after)
        engine.cancel(request_id)
    return heard.wait()


def wait_until_idle(engine: ChatEngine) -> None:
    """Until no slot is in use: an answer that a stop string ends is told before its slot is free."""
    deadline = time.monotonic() + 60
    while engine.stats()["num_requests_running"] or engine.stats()["kv_cache_usage_perc"]:
        assert time.monotonic() < deadline
        time.sleep(0.005)


def answers(heard: Heard) -> list[str]:
    return [heard.text(index) for index in sorted(heard.reasons)]


@pytest.mark.parametrize("paging", ["pages", "blocks, gathered"])
def test_200_clients_of_which_a_third_leave(paging: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with_paging(monkeypatch, PAGINGS[paging])
    chooser = random.Random(4)
    small = {"kv_memory": "1MB", "prefix_cache": "256KB", "prefill_chunk": CHUNK}
    engine = started(tiny_spec(max_batch=12, max_waiting=CLIENTS, engine_args=small))
    requests = [random_request(chooser, number) for number in range(CLIENTS)]
    leaving = [chooser.random() * 2 if number % 3 == 0 else None for number in range(CLIENTS)]
    heard: dict[int, Heard] = {}

    def run(number: int) -> None:
        heard[number] = client(engine, requests[number], leaving[number])

    threads = [threading.Thread(target=run, args=(number,)) for number in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(heard) == CLIENTS
    for number, each in heard.items():
        assert each.endings == 1
        if leaving[number] is None:
            assert each.error is None
            assert len(each.reasons) == requests[number].get("n", 1)
    wait_until_idle(engine)
    assert engine.stats()["num_requests_waiting"] == 0
    assert engine.stats()["prefix_cache_hits_total"] > 0
    assert not engine._open
    assert not engine._output._writers
    again = [number for number, fields in enumerate(requests) if "seed" in fields and leaving[number] is None]
    assert again
    for number in again:
        assert answers(client(engine, requests[number], None)) == answers(heard[number])
    wait_until_idle(engine)
    slots = engine._scheduler._runner.slots
    assert not isinstance(slots, BlockCache) or slots.table.used == 0
