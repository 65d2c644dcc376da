"""Conversations and sessions go where they went before, as long as nobody has to wait for it."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from quintet_common.models_yml import UpstreamSpec
from quintet_router.affinity import CHUNK, MAX_CHUNKS, TALKS, Conversation, Holders, conversation_in, session_in
from quintet_router.balance import Balancer
from quintet_router.body import json_body
from quintet_router.catalog import Target
from quintet_router.settings import Settings
from quintet_router.upstream.upstream import Upstream
from router.harness import FakeUpstream, open_door
from router.test_keys import bearer, key, locked_door

SYSTEM = {"role": "system", "content": "You are the help desk of a shop. " * 60}


def replicas(count: int) -> list[Target]:
    targets = []
    for slot in range(count):
        upstream = Upstream(UpstreamSpec(url=f"http://replica-{slot}:80"), Settings())
        upstream.slot = slot
        targets.append(Target(upstream, None, "ready"))
    return targets


def talk(*messages: Any, **more: Any) -> bytes:
    return json.dumps({"model": "m", "messages": list(messages), **more}).encode()


def said(text: str, role: str = "user") -> dict[str, str]:
    return {"role": role, "content": text}


def read(body: bytes) -> Conversation:
    found = conversation_in(json_body(body, True).talk)
    assert found is not None
    return found


def test_a_longer_conversation_begins_with_the_numbers_of_the_shorter_one() -> None:
    first = read(talk(SYSTEM, said("a")))
    second = read(talk(SYSTEM, said("a"), said("b", "assistant"), said("c"), stream=True))
    other = read(talk(SYSTEM, said("x"), said("b", "assistant"), said("c")))
    assert second.chunks[: len(first.chunks)] == first.chunks
    assert first.opening == second.opening == len(first.chunks)
    assert first.key == second.key != other.key
    shared = -(-len(json.dumps(SYSTEM)) // CHUNK)
    assert other.chunks[:shared] == first.chunks[:shared]
    assert not set(other.chunks[shared:]) & set(second.chunks[shared:])


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"messages": [said("a")], "tools": [{"x": 1}]}, {"messages": [said("a")]}),
        ({"system": "s", "messages": [said("a")]}, {"system": "t", "messages": [said("a")]}),
        ({"instructions": "s", "input": "a"}, {"instructions": "t", "input": "a"}),
        ({"input": [said("a")]}, {"input": [said("b")]}),
        ({"prompt": "a"}, {"prompt": ["a"]}),
        ({"messages": [said("x" * 90_000 + "a")]}, {"messages": [said("x" * 90_000 + "b")]}),
    ],
)
def test_what_a_model_reads_first_tells_conversations_apart(one: Any, other: Any) -> None:
    assert read(json.dumps(one).encode()).key != read(json.dumps(other).encode()).key
    assert read(json.dumps(one).encode()).chunks[-1] != read(json.dumps(other).encode()).chunks[-1]
    assert read(json.dumps(one).encode()) == read(json.dumps({"temperature": 1, **one}).encode())


@pytest.mark.parametrize(
    "body",
    [b"{}", b'{"messages": 1}', b'{"messages": {"a": 1}}', b'{"input": null}', b'{"messages": true, "input": 0.5}'],
)
def test_what_is_no_conversation_is_none(body: bytes) -> None:
    assert conversation_in(json_body(body, True).talk) is None


def test_a_huge_conversation_costs_no_more_than_a_long_one() -> None:
    assert len(read(talk(*[said("a")] * 100_000)).chunks) == MAX_CHUNKS
    assert len(read(talk(said("a" * 20_000_000))).chunks) < 50


def test_whose_request_it_is() -> None:
    assert session_in(b'{"user": "u"}') == "u"
    assert session_in(b'{"user": "u", "prompt_cache_key": "k"}') == "k"
    assert session_in(b'{"user": 1}') is None


def test_what_was_not_used_for_long_is_forgotten_and_memory_is_bounded() -> None:
    holders = Holders(1000)
    for chunk in range(100_000):
        holders.learn([7, chunk + 10], 1)
        assert len(holders) <= 1002
    assert holders.find([7]) == [(1, 1)]
    assert holders.find([10]) == []


def test_the_longest_beginning_is_found_first() -> None:
    holders = Holders(100)
    holders.learn([1, 2, 3], 0b001)
    holders.learn([1, 2], 0b010)
    holders.learn([1], 0b100)
    assert holders.find([1, 2, 3, 4]) == [(3, 0b001), (2, 0b010), (1, 0b100)]
    assert holders.find([2]) == [(1, 0b011)]
    assert holders.find([9]) == []


def test_a_conversation_stays_and_conversations_spread() -> None:
    balancer, targets = Balancer(Settings()), replicas(8)
    homes: Counter[str] = Counter()
    for number in range(200):
        messages = [SYSTEM, said(f"question {number}")]
        seen = set()
        for turn in range(4):
            hint = balancer.hint(targets, None, json_body(talk(*messages), True))
            chosen = balancer.choose(targets, [], 0.0, hint)
            assert chosen is not None
            seen.add(chosen.upstream.label)
            messages += [said(f"answer {turn}", "assistant"), said(f"and {turn}")]
        assert len(seen) == 1
        homes.update(seen)
    assert len(homes) == 8  # although all of them share a system prompt
    assert max(homes.values()) < 50


def test_a_replica_with_too_much_to_do_is_passed_over_and_the_next_one_keeps_what_it_got() -> None:
    balancer, targets = Balancer(Settings()), replicas(4)
    hint = balancer.hint(targets, None, json_body(talk(said("a")), True))
    home = balancer.choose(targets, [], 0.0, hint)
    assert home is not None
    for each in targets:
        each.upstream.outstanding = 4
    assert balancer.choose(targets, [], 0.0, hint) is home
    home.upstream.outstanding = 9  # of a mean of 5.25: more than 1.25 times and one
    moved = balancer.choose(targets, [], 0.0, hint)
    assert moved is not home
    longer = talk(said("a"), said("b", "assistant"), said("c"))
    later = balancer.hint(targets, None, json_body(longer, True))
    assert balancer.choose(targets, [], 0.0, later) is moved


def test_two_routers_send_a_conversation_to_the_same_replica() -> None:
    turns = [talk(SYSTEM, said("a")), talk(SYSTEM, said("a"), said("b", "assistant"), said("c"))]
    chosen = []
    for body in turns:
        balancer, targets = Balancer(Settings()), replicas(16)
        target = balancer.choose(targets, [], 0.0, balancer.hint(targets, None, json_body(body, True)))
        assert target is not None
        chosen.append(target.upstream.label)
    assert chosen[0] == chosen[1]


def test_when_a_replica_leaves_only_its_sessions_move() -> None:
    balancer, targets = Balancer(Settings()), replicas(8)

    def homes() -> dict[int, str]:
        found = {}
        for number in range(400):
            hint = balancer.hint(targets, b"s%d" % number, json_body(b"{}", False))
            chosen = balancer.choose(targets, [], 0.0, hint)
            assert chosen is not None
            found[number] = chosen.upstream.label
        return found

    before = homes()
    assert min(Counter(before.values()).values()) > 25
    gone = targets.pop(3).upstream.label
    after = homes()
    assert [number for number in before if before[number] != after[number]] == [
        number for number in before if before[number] == gone
    ]


@pytest.mark.parametrize(
    ("policy", "label", "session", "known_by"),
    [
        ("auto", "/chat/completions", None, Conversation),
        ("auto", "/chat/completions", b"s", int),
        ("auto", "/embeddings", None, type(None)),
        ("auto", "/embeddings", b"s", int),
        ("session", "/chat/completions", None, int),
        ("session", "/chat/completions", b"s", int),
        ("prefix", "/chat/completions", b"s", Conversation),
        ("least", "/chat/completions", b"s", type(None)),
    ],
)
def test_policies(policy: Any, label: str, session: bytes | None, known_by: type) -> None:
    body, targets = json_body(talk(said("a"), user="u"), label in TALKS), replicas(2)
    assert isinstance(Balancer(Settings(balance=policy)).hint(targets, session, body), known_by)
    spec = UpstreamSpec(url="http://h:1", balance=policy)
    own = [Target(Upstream(spec, Settings()), None, "ready")]
    assert isinstance(Balancer(Settings(balance="least")).hint(own, session, body), known_by)


async def test_conversations_stay_on_their_replica_through_the_router() -> None:
    upstreams = [FakeUpstream() for _ in range(4)]
    rng = random.Random(1)
    async with open_door(*upstreams) as door:
        talks = [[SYSTEM, said(f"question {number}")] for number in range(12)]
        for turn in range(4):
            rng.shuffle(talks)
            for messages in talks:
                assert (await door.ask("/v1/chat/completions", {"model": "m", "messages": messages})).status == 200
                messages += [said(f"answer {turn}", "assistant"), said("go on")]
    homes = [{request.json["messages"][1]["content"] for request in upstream.requests} for upstream in upstreams]
    assert sum(map(len, homes)) == 12


async def test_conversations_of_keys_that_may_not_use_every_model_stay_too(tmp_path: Path) -> None:
    """Their bodies are written anew, so that no upstream can read another model there."""
    upstreams = [FakeUpstream() for _ in range(4)]
    talks = [[SYSTEM, said(f"question {number}")] for number in range(12)]
    async with locked_door(tmp_path, [key("a", models=["m"])], *upstreams) as door:
        for turn in range(3):
            for messages in talks:
                body = {"model": "m", "messages": messages}
                assert (await door.ask("/v1/chat/completions", body, bearer("a"))).status == 200
                messages += [said(f"answer {turn}", "assistant"), said("go on")]
    homes = [{request.json["messages"][1]["content"] for request in upstream.requests} for upstream in upstreams]
    assert sum(map(len, homes)) == 12


async def test_a_session_stays_on_its_replica_whatever_it_asks() -> None:
    a, b = FakeUpstream(), FakeUpstream()
    async with open_door(a, b, session_header="X-Chat") as door:
        for number in range(30):
            await door.chat(f"x-chat: {number % 6}", user=str(number % 6), n=number)
    homes = [{request.json["user"] for request in upstream.requests} for upstream in (a, b)]
    assert not homes[0] & homes[1]
    assert len(homes[0] | homes[1]) == 6
