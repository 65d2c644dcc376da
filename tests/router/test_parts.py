"""The router's parts alone: the choice among replicas, the circuit, forms in pieces, coroutines driven by hand."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from quintet_common.errors import ApiError
from quintet_common.models_yml import UpstreamSpec
from quintet_router.balance import choose, retry_seconds
from quintet_router.body import Body
from quintet_router.catalog import Target
from quintet_router.driven import Driven
from quintet_router.headers import named_by_connection
from quintet_router.members import replace_member
from quintet_router.metrics import Histogram
from quintet_router.multipart import ModelScan
from quintet_router.paths import find_path
from quintet_router.settings import Settings
from quintet_router.upstream.breaker import FIRST_PAUSE, LAST_PAUSE, Breaker, Failure
from quintet_router.upstream.pool import Address
from quintet_router.upstream.upstream import Upstream


def target(port: int = 1, outstanding: int = 0) -> Target:
    upstream = Upstream(UpstreamSpec(url=f"http://h:{port}"), Settings())
    upstream.outstanding = outstanding
    return Target(upstream, None, "ready")


def test_the_less_busy_of_two_gets_the_request() -> None:
    busy, free = target(1, 5), target(2, 4)
    assert all(choose([busy, free], [], 0.0) is free for _ in range(50))


def test_equally_busy_replicas_share() -> None:
    targets = [target(port) for port in range(4)]
    counts = Counter(id(choose(targets, [], 0.0)) for _ in range(4000))
    assert len(counts) == 4
    assert min(counts.values()) > 700


def test_power_of_two_choices_keeps_the_longest_queue_short() -> None:
    targets = [target(port) for port in range(64)]
    for _ in range(6400):
        chosen = choose(targets, [], 0.0)
        assert chosen is not None
        chosen.upstream.outstanding += 1
    assert max(each.upstream.outstanding for each in targets) <= 104  # one random choice would reach about 125


def test_what_was_tried_or_is_open_is_not_chosen() -> None:
    a, b = target(1), target(2)
    assert choose([a, b], [a.upstream], 0.0) is b
    assert choose([a, b], [a.upstream, b.upstream], 0.0) is None
    b.upstream.breaker.failed(Failure.CONNECT, 10.0)
    assert all(choose([a, b], [], 10.0) is a for _ in range(20))
    assert choose([b], [], 10.0) is None
    assert retry_seconds([b], 10.0) == FIRST_PAUSE


def test_a_breaker_opens_probes_and_closes() -> None:
    breaker = Breaker(3)
    for _ in range(2):
        breaker.failed(Failure.BROKEN, 0.0)
    breaker.succeeded()
    for _ in range(2):
        breaker.failed(Failure.BROKEN, 0.0)
    assert breaker.state == "closed"
    breaker.failed(Failure.BROKEN, 0.0)
    assert breaker.state == "open"
    assert not breaker.allows(FIRST_PAUSE / 2)
    assert breaker.allows(FIRST_PAUSE)
    probe = breaker.taken(FIRST_PAUSE)
    assert breaker.state == "half_open"
    assert not breaker.allows(FIRST_PAUSE)  # one probe only
    breaker.ended(probe)
    assert breaker.allows(FIRST_PAUSE)
    probe = breaker.taken(FIRST_PAUSE)
    breaker.failed(Failure.TIMEOUT, FIRST_PAUSE, probe)
    assert not breaker.allows(2 * FIRST_PAUSE)  # the pause has grown
    for _ in range(20):
        breaker.failed(Failure.TIMEOUT, 100.0)
    assert breaker.until == 100.0 + LAST_PAUSE
    breaker.succeeded()
    assert (breaker.state, breaker.reachable) == ("closed", True)


def test_requests_from_before_the_circuit_opened_neither_close_it_nor_let_a_second_probe_in() -> None:
    breaker = Breaker(1)
    old = [breaker.taken(0.0) for _ in range(4)]
    breaker.failed(Failure.BROKEN, 0.0, old[0])
    breaker.succeeded(old[1])
    assert breaker.state == "open"
    probe = breaker.taken(FIRST_PAUSE)
    breaker.ended(old[1])
    breaker.ended(old[2])
    breaker.failed(Failure.BROKEN, FIRST_PAUSE, old[3])
    assert (breaker.state, breaker.until) == ("half_open", FIRST_PAUSE)
    assert not breaker.allows(FIRST_PAUSE)
    breaker.succeeded(probe)
    assert breaker.state == "closed"


NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\r\n\x00"), min_size=1, max_size=40)


@settings(deadline=None)  # a busy machine takes its time
@given(model=NAMES, before=st.binary(max_size=300), cuts=st.lists(st.integers(0, 800), max_size=12))
def test_a_model_is_found_however_a_form_is_cut(model: str, before: bytes, cuts: list[int]) -> None:
    boundary = b"XyZ"
    if b"\r\n--XyZ" in b"\r\n" + before or "--XyZ" in model:
        return
    head = b'--XyZ\r\nContent-Disposition: form-data; name="image"; filename="model"\r\n\r\n'
    field = b'\r\n--XyZ\r\nContent-Type: text/plain\r\ncontent-disposition: form-data; name="model"\r\n\r\n'
    data = head + before + field + model.encode() + b"\r\n--XyZ--\r\n"
    scan = ModelScan(boundary)
    last = 0
    for cut in [*sorted(cuts), len(data)]:
        scan.feed(data[last:cut])
        last = max(last, cut)
    assert scan.model == model
    start = len(head + before + field)
    assert scan.span == (start, start + len(model.encode()))
    changed = Body(data, model, True, len(data), scan.span).with_model("n")
    assert changed.data == head + before + field + b"n\r\n--XyZ--\r\n"
    assert changed.length == len(changed.data)


def test_only_the_first_field_counts_and_files_do_not() -> None:
    scan = ModelScan(b"b")
    part = b'--b\r\ncontent-disposition: form-data; name="%b"%b\r\n\r\n%b\r\n'
    scan.feed(
        part % (b"model", b'; filename="x"', b"file") + part % (b"models", b"", b"no") + part % (b"model", b"", b"")
    )
    assert scan.model is None
    scan.feed(part % (b"model", b"", b"yes") + part % (b"model", b"", b"late") + b"--b--")
    assert scan.model == "yes"


def test_a_scan_refuses_what_is_no_form() -> None:
    with pytest.raises(ApiError) as caught:
        ModelScan(b"b").feed(b"{}")
    assert caught.value.status == 400


async def test_a_coroutine_is_driven_through_futures_bare_yields_and_errors() -> None:
    loop = asyncio.get_running_loop()
    ended: list[Any] = []

    async def work(fail: bool) -> None:
        await first
        await asyncio.sleep(0)
        if fail:
            raise ValueError

    for fail in (False, True):
        first = loop.create_future()
        Driven(work(fail), lambda _, error: ended.append(error)).step()
        first.set_result(None)
        assert not ended
        for _ in range(4):
            await asyncio.sleep(0)
        assert isinstance(ended.pop(), ValueError if fail else type(None))


async def test_a_driven_coroutine_that_is_cancelled_cleans_up_and_says_nothing() -> None:
    ended: list[Any] = []
    event = asyncio.Event()
    driven = Driven(event.wait(), lambda *end: ended.append(end))
    driven.step()
    driven.cancel()
    driven.cancel()
    event.set()
    await asyncio.sleep(0.01)
    assert not ended
    assert not event._waiters


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://h:8001", Address("h", 8001, False, "")),
        ("https://api.example.com/v1/", Address("api.example.com", 443, True, "/v1")),
        ("http://[::1]:9/x/v1", Address("::1", 9, False, "/x/v1")),
    ],
)
def test_addresses(url: str, expected: Address) -> None:
    assert Address.parse(url) == expected


@pytest.mark.parametrize("url", ["h:1", "ftp://h", "http://", "http://u:p@h", "http://h/?a", "http://h:99999", "/x"])
def test_urls_that_are_no_upstreams(url: str) -> None:
    with pytest.raises(ValueError):
        Address.parse(url)


def test_paths() -> None:
    for path in ("/v1/chat/completions", "/chat/completions"):
        found = find_path(path)
        assert found is not None
        assert found.label == "/chat/completions"
    picture = find_path("/v1/images/files/a.png")
    assert picture is not None
    assert (picture.label, picture.method) == ("/images/files/{id}", "GET")
    for path in ("/v1", "/v1/", "", "/v1/chat", "/v1/chat/completions/", "//chat/completions", "/v2/embeddings"):
        assert find_path(path) is None
    for path in (
        "/images/files/",
        "/images/files/a/b",
        "/v1/images/files/..",
        "/x/images/files/a",
        "/v1images/files/a",
    ):
        assert find_path(path) is None


def test_what_a_connection_header_names() -> None:
    assert named_by_connection(b"keep-alive, X-A ,x-b,") == {b"x-a", b"x-b"}
    assert named_by_connection(None) == frozenset()


def test_a_histogram_counts_as_prometheus_does() -> None:
    from prometheus_client.core import HistogramMetricFamily

    histogram = Histogram((0.1, 1.0))
    for seconds in (0.05, 0.1, 0.2, 5.0):
        histogram.observe(seconds)
    family = HistogramMetricFamily("h", "", labels=["a"])
    histogram.add_to(family, ["x"])
    samples = {(each.name, each.labels.get("le")): each.value for each in family.samples}
    assert samples == {
        ("h_bucket", "0.1"): 2,
        ("h_bucket", "1.0"): 3,
        ("h_bucket", "+Inf"): 4,
        ("h_count", None): 4,
        ("h_sum", None): 5.35,
    }


TEXT = st.text(st.characters(codec="utf-8"), max_size=6)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)
KEYS = TEXT | st.sampled_from(["model", 'a"', "\\", "a\\", "messages", "user"])


@given(before=st.dictionaries(KEYS, JSON), after=st.dictionaries(KEYS, JSON), wide=st.booleans(), plain=st.booleans())
def test_one_member_changes_and_no_other_byte(
    before: dict[str, Any], after: dict[str, Any], wide: bool, plain: bool
) -> None:
    comma, colon = (" ,\n", "\t: ") if wide else (",", ":")

    def written(given: dict[str, Any], other: dict[str, Any]) -> list[str]:
        return [
            json.dumps(key, ensure_ascii=plain) + colon + json.dumps(value, ensure_ascii=plain)
            for key, value in given.items()
            if key != "model" and key not in other
        ]

    def body(model: str) -> bytes:
        members = [*written(before, {}), '"mod\\u0065l"' + colon + model, *written(after, before)]
        return (" {" + comma.join(members) + "} \n").encode()

    assert replace_member(body('"p\\/b\\u0069g"'), "model", b'"big"') == body('"big"')


@given(st.lists(st.tuples(st.sampled_from(["model", "a", "b"]), JSON), min_size=1, max_size=8))
def test_of_members_that_stand_twice_the_last_one_is_changed(members: list[tuple[str, Any]]) -> None:
    members = [*members, ("model", "old")]
    data = "{" + ",".join(f"{json.dumps(key)}:{json.dumps(value)}" for key, value in members) + "}"
    changed = json.loads(replace_member(data.encode(), "model", b'"new"'))
    assert changed == dict(members) | {"model": "new"}
