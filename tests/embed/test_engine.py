"""The engine over an exact backend: every request ends once, in order, whatever its neighbours do."""

from __future__ import annotations

import threading
import time

import pytest
from embed.embed_doubles import LOST, NAN, POISON, Answer, Rig, quiet, spec_of
from quintet_common.errors import ApiError
from quintet_embed.engine.engine import EmbedEngine
from quintet_embed.engine.job import Tokens
from quintet_embed.protocol import TokenizeRequest


@pytest.fixture
def rig() -> Rig:
    return Rig()


def row(text: str) -> list[float]:
    return [float(sum(map(ord, text))), float(len(text))]


def wait_until_tokenised(rig: Rig, count: int) -> None:
    """Until ``count`` texts wait for the model."""
    queue = rig.engine._queue
    for _ in range(1000):
        if sum(len(job.ready) for job in list(queue._jobs.values())) >= count:
            return
        time.sleep(0.005)
    raise AssertionError("not tokenised in time")


def test_rows_come_in_the_order_of_the_texts(rig: Rig) -> None:
    texts = ["a" * (1 + (i * 7) % 30) + str(i) for i in range(300)]
    answer = rig.submit(*texts).wait()
    assert answer.rows == [row(text) for text in texts]
    assert answer.events[0].work.prompt_tokens == sum(map(len, texts))


def test_every_batch_is_told_once(rig: Rig) -> None:
    answers = [rig.submit("abc", "d" * 9) for _ in range(20)]
    told = [size for answer in answers for size in answer.wait().events[0].work.batch_sizes]
    assert sorted(told) == sorted(len(batch) for batch in rig.backend.batches)
    assert sum(told) == 40


def test_a_batch_is_what_queued_while_the_last_ran(rig: Rig) -> None:
    rig.hold()
    answers = [rig.submit("abcd") for _ in range(10)]
    wait_until_tokenised(rig, 10)
    rig.release()
    for answer in answers:
        answer.wait()
    assert rig.backend.batches == [[1], [4] * 10]


def test_a_single_query_does_not_wait_for_a_large_request(rig: Rig) -> None:
    rig.hold()
    bulk = rig.submit(*["b" * 20] * 2048)
    wait_until_tokenised(rig, 2048)
    single = rig.submit("q" * 19)
    wait_until_tokenised(rig, 2049)
    rig.release()
    single.wait()
    assert next(i for i, batch in enumerate(rig.backend.batches) if 19 in batch) <= 2
    assert bulk.wait().rows == [row("b" * 20)] * 2048


def test_batches_stay_within_the_budget_of_padded_tokens(rig: Rig) -> None:
    rig.submit(*["x" * (1 + i % 40) for i in range(200)]).wait()
    assert all(max(batch) * len(batch) <= rig.backend.batch_tokens for batch in rig.backend.batches)


def test_a_text_longer_than_the_budget_runs_alone(rig: Rig) -> None:
    assert rig.submit("a" * 500, "b").wait().rows == [row("a" * 500), row("b")]


def test_max_batch_limits_the_texts_of_a_batch() -> None:
    rig = Rig(max_batch=3)
    rig.submit(*["ab"] * 10).wait()
    assert max(map(len, rig.backend.batches)) == 3


def test_one_failing_text_does_not_fail_its_neighbours(rig: Rig) -> None:
    rig.hold()
    good, bad, other = rig.submit("fine"), rig.submit("ok", ids=None), rig.submit(ids=[[5, 5, 5], [POISON, 1, 1]])
    wait_until_tokenised(rig, 4)
    rig.release()
    assert good.wait().rows == [row("fine")]
    assert bad.wait().rows == [row("ok")]
    error = other.wait().error
    assert error is not None
    assert (error.status, error.param) == (500, "input[1]")


def test_a_row_that_is_not_finite_is_an_error(rig: Rig) -> None:
    error = rig.submit(ids=[[1], [NAN]]).wait().error
    assert error is not None
    assert error.param == "input[1]"


def test_a_text_that_the_tokeniser_refuses_ends_its_request_only(rig: Rig) -> None:
    refused, fine = rig.submit(*["a"] * 70, "too long"), rig.submit("a")
    error = refused.wait().error
    assert error is not None
    assert (error.status, error.param) == (400, "input[70]")
    assert fine.wait().rows == [row("a")]


def test_a_bug_in_the_tokeniser_is_a_500_and_the_engine_goes_on(rig: Rig) -> None:
    error = rig.submit("boom").wait().error
    assert error is not None
    assert error.status == 500
    assert rig.submit("a").wait().rows == [row("a")]


def test_a_request_that_the_model_cannot_do_is_refused_at_once(rig: Rig) -> None:
    with pytest.raises(ApiError, match="too many"):
        rig.submit("a", dimensions=99)


def test_cancelled_texts_are_not_computed(rig: Rig) -> None:
    rig.hold()
    gone = rig.submit(*["g" * 13] * 500)
    wait_until_tokenised(rig, 500)
    rig.engine.cancel(gone.id)  # type: ignore[attr-defined]
    assert gone.wait().error is None
    assert gone.events == []
    rig.release()
    rig.submit("a").wait()
    assert all(13 not in batch for batch in rig.backend.batches)


def test_a_request_cancelled_while_it_runs_ends_once(rig: Rig) -> None:
    held = rig.hold()
    rig.engine.cancel(held.id)  # type: ignore[attr-defined]
    held.wait()
    rig.release()
    rig.submit("a").wait()
    assert (held.ends, held.events) == (1, [])
    rig.engine.cancel(held.id)  # type: ignore[attr-defined]
    assert held.ends == 1


def test_more_requests_than_may_wait_are_refused_with_429() -> None:
    rig = Rig(max_waiting=3)
    rig.hold()
    answers = [rig.submit("a") for _ in range(3)]
    with pytest.raises(ApiError) as caught:
        rig.submit("a")
    assert (caught.value.status, caught.value.retry_after) == (429, 1)
    assert rig.engine.stats()["num_requests_waiting"] == 3
    rig.release()
    for answer in answers:
        answer.wait()
    assert rig.submit("a").wait().rows == [row("a")]
    assert rig.engine.stats()["num_requests_running"] == 0


def test_tokenising_alone_never_reaches_the_model(rig: Rig) -> None:
    class Tokeniser(type(rig.backend)):  # type: ignore[misc]
        def check(self, request: object) -> None: ...

        def tokenise(self, request: TokenizeRequest, start: int, stop: int) -> list[object]:
            return [Tokens([len(text)]) for text in request.texts[start:stop]]

    backend, answer = Tokeniser(), Answer()
    engine = EmbedEngine(spec_of(), backend)
    engine.load(quiet)
    engine.submit(1, TokenizeRequest(["ab"] * 200), answer)  # type: ignore[arg-type]
    assert answer.wait().events[0].token_ids == [[2]] * 200
    assert backend.batches == []


def test_a_lost_device_ends_the_thread_so_that_the_process_is_restarted(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = threading.Event()
    monkeypatch.setattr(threading, "excepthook", lambda _: failed.set())
    rig.submit(ids=[[LOST]])
    assert failed.wait(60)


def test_many_clients_at_once_all_get_their_own(rig: Rig) -> None:
    answers: dict[str, list[list[float]]] = {}

    def client(n: int) -> None:
        for i in range(20):
            text = f"{n} says {i}"
            answers[text] = rig.submit(text).wait().rows

    threads = [threading.Thread(target=client, args=(n,)) for n in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(rows == [row(text)] for text, rows in answers.items())
    assert len(answers) == 320
