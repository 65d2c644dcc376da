"""A worker process from the service's side: states, events, cancellation, death and return."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from quintet_common.errors import ApiError
from quintet_common.models_yml import ModelSpec
from quintet_common.worker import process
from quintet_common.worker.environment import worker_environment
from quintet_common.worker.process import State, Worker

HERE = Path(__file__).parent


@pytest.fixture
async def start(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Callable[..., Worker[dict[str, str]]]]:
    monkeypatch.setenv("PYTHONPATH", str(HERE))
    workers: list[Worker[dict[str, str]]] = []

    def make(keep: str = "always", **args: Any) -> Worker[dict[str, str]]:
        spec = ModelSpec(id="echo", kind="chat", path="embedded:echo", keep=keep, engine_args=args)
        worker: Worker[dict[str, str]] = Worker(spec, "echo_engine:create_engine", dict[str, str])
        worker.start()
        workers.append(worker)
        return worker

    yield make
    await asyncio.gather(*(worker.stop() for worker in workers))


async def until(worker: Worker[Any], *states: State) -> None:
    await asyncio.wait_for(worker.until(*states), 120)


async def eventually(what: Callable[[], bool]) -> None:
    async with asyncio.timeout(120):
        while not what():  # noqa: ASYNC110  # what is waited for happens in another process
            await asyncio.sleep(0.01)


async def words(worker: Worker[dict[str, str]], text: str, delay: float = 0) -> list[str]:
    async with await worker.submit({"text": text, "delay": delay}) as job:
        return [event["word"] async for event in job]


async def test_events_arrive_in_order_and_the_job_ends(start: Any) -> None:
    worker = start()
    await until(worker, State.READY)
    assert worker.info == {"engine": "echo"}
    assert await words(worker, "one two three") == ["one", "two", "three"]
    assert worker.in_flight == 0


async def test_an_error_of_the_engine_reaches_the_caller_with_its_field(start: Any) -> None:
    worker = start()
    await until(worker, State.READY)
    with pytest.raises(ApiError) as caught:
        await words(worker, "")
    assert (caught.value.status, caught.value.param) == (400, "text")


async def test_a_number_of_more_than_64_bits_is_refused_and_leaves_nothing_behind(start: Any) -> None:
    worker = start()
    await until(worker, State.READY)
    with pytest.raises(ApiError, match="64 bits") as caught:
        await worker.submit({"text": "one", "delay": 10**40})
    assert caught.value.status == 400
    assert worker.in_flight == 0


async def test_a_loading_model_says_how_far_it_is(start: Any) -> None:
    worker = start(load_seconds=20)
    await eventually(lambda: worker.note == "half way")
    with pytest.raises(ApiError) as caught:
        await words(worker, "hello")
    assert caught.value.status == 503
    assert "50 %, half way" in caught.value.message
    assert caught.value.retry_after


async def test_a_model_that_refuses_to_load_is_failed_with_its_reason(start: Any) -> None:
    worker = start(refuse="no such file")
    await until(worker, State.FAILED)
    with pytest.raises(ApiError, match="no such file") as caught:
        await words(worker, "hello")
    assert caught.value.code == "model_failed"
    assert caught.value.retry is False  # it is not tried again, so a client that waits would do so for nothing
    assert caught.value.retry_after is None


async def test_leaving_a_job_early_cancels_it_in_the_worker(start: Any) -> None:
    worker = start()
    await until(worker, State.READY)
    async with await worker.submit({"text": "word " * 1000, "delay": 0.05}) as job:
        await anext(job)
    await eventually(lambda: worker.stats.get("ended") == 1)
    assert worker.in_flight == 0


async def test_an_engine_rests_while_its_client_does_not_read(start: Any) -> None:
    worker = start()
    await until(worker, State.READY)
    async with await worker.submit({"text": "word " * 300, "delay": 0.01}, max_ahead=4) as job:
        for taken in (1, 60):
            for _ in range(taken):
                await anext(job)
            await eventually(lambda: job._held)
            before = -1
            while (waiting := job._events.qsize()) != before:  # those on their way when it is told to rest
                before = waiting
                await asyncio.sleep(0.2)
            assert waiting < 200
        assert [event async for event in job] == [{"word": "word"}] * 239
    assert await words(worker, "one two three") == ["one", "two", "three"]


async def test_a_client_who_left_while_the_engine_rested_is_no_longer_worked_for(start: Any) -> None:
    worker = start()
    await until(worker, State.READY)
    async with await worker.submit({"text": "word " * 1000, "delay": 0.001}, max_ahead=2) as job:
        await eventually(lambda: job._held)
    await eventually(lambda: worker.stats.get("ended") == 1)


@pytest.mark.parametrize("how", ["crash", "kill"])
async def test_a_dead_worker_fails_its_requests_and_comes_back(start: Any, how: str) -> None:
    worker = start()
    await until(worker, State.READY)
    first = worker.pid
    async with await worker.submit(
        {"text": "one two" + (" crash" if how == "crash" else " three" * 1000), "delay": 0.05}
    ) as job:
        await anext(job)
        if how == "kill":
            os.kill(first, signal.SIGKILL)
        with pytest.raises(ApiError) as caught:
            async for _ in job:
                pass
    assert caught.value.code == "worker_died"
    await until(worker, State.LOADING)
    assert await words(worker, "back again") == ["back", "again"], "a request waits for the model's return"
    assert worker.pid != first
    assert worker.restarts == 1


async def test_a_worker_that_dies_while_loading_is_started_again_but_not_for_ever(
    start: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "DEATHS", 2)
    worker = start(die=True)
    await eventually(lambda: worker.restarts == 1)
    assert worker.state is State.LOADING
    await until(worker, State.FAILED)
    assert worker.note.startswith("its process ended 2 times while the model was loading")
    assert worker.restarts == 1
    assert worker._task.done()


async def test_a_load_that_fails_again_and_again_keeps_saying_why(start: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "quintet")
    worker = start(stumble="echo: the driver is gone", load_seconds=0.2)
    await until(worker, State.FAILED)
    notes: set[str] = set()
    await eventually(lambda: notes.add(worker.note) or worker.restarts >= 2)
    assert worker.state is State.FAILED
    assert notes == {"echo: the driver is gone"}
    assert worker.unavailable().message == "The model 'echo' failed to load: the driver is gone"
    await eventually(lambda: "echo failed to load as before" in caplog.messages)
    loud = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert loud[0] == "echo failed to load: the driver is gone", "by a name that is said once"
    assert len(loud) == 2, "and then not again, nor that it is tried again"


async def test_an_idle_model_is_unloaded_and_the_next_request_loads_it(start: Any) -> None:
    worker = start(keep="1s idle")
    await until(worker, State.READY)
    await until(worker, State.IDLE)
    await eventually(lambda: worker.pid is None)
    assert await words(worker, "awake now") == ["awake", "now"]
    assert worker.state is State.READY


@pytest.mark.parametrize("turns", range(8))
async def test_a_client_who_leaves_in_the_moment_in_which_the_model_comes_back_leaves(turns: int) -> None:
    worker: Worker[dict[str, str]] = Worker(ModelSpec(id="echo", kind="chat", path="embedded:echo"), "", dict[str, str])
    worker._was_ready = True
    request = asyncio.create_task(worker.submit({"text": "one"}))
    await asyncio.sleep(0)
    worker._connection = process._Connection(worker)
    worker._set(State.READY)
    for _ in range(turns):
        await asyncio.sleep(0)
    left = request.cancel()
    await asyncio.wait([request])
    assert request.cancelled() is left


async def test_a_request_that_comes_while_a_dead_process_is_cleared_away_waits_for_the_next(
    start: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = start()
    await until(worker, State.READY)
    cleared = asyncio.Event()
    end_process = worker._end_process

    async def slowly() -> None:
        await cleared.wait()
        await end_process()

    monkeypatch.setattr(worker, "_end_process", slowly)
    os.kill(worker.pid, signal.SIGKILL)
    await eventually(lambda: worker._connection is None)
    request = asyncio.create_task(words(worker, "back again"))
    await asyncio.sleep(0)
    assert worker.state is State.LOADING
    cleared.set()
    assert await request == ["back", "again"]


async def test_a_request_for_a_model_that_is_taken_out_does_not_wait_for_its_return(start: Any) -> None:
    worker = start()
    await until(worker, State.READY)
    await worker.stop()
    with pytest.raises(ApiError) as caught:
        async with asyncio.timeout(process.COMEBACK_SECONDS / 2):
            await words(worker, "hello")
    assert caught.value.status == 503


async def test_a_process_that_cannot_be_started_is_tried_again(start: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    create, failures = asyncio.create_subprocess_exec, [OSError(24, "Too many open files")]

    async def first_none(*args: Any, **options: Any) -> Any:
        if failures:
            raise failures.pop()
        return await create(*args, **options)

    monkeypatch.setattr(asyncio, "create_subprocess_exec", first_none)
    worker = start()
    await until(worker, State.READY)
    assert worker.restarts == 1


async def test_stopping_ends_the_process(start: Any) -> None:
    worker = start()
    await until(worker, State.READY)
    pid = worker.pid
    await worker.stop()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert worker.state is State.STOPPED


def test_the_api_side_never_imports_torch() -> None:
    code = "import quintet_common.app, quintet_common.server, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_worker_runs_under_uvloop_as_services_do(monkeypatch: pytest.MonkeyPatch) -> None:
    import uvloop

    async def say() -> list[str]:
        spec = ModelSpec(id="echo", kind="chat", path="embedded:echo")
        worker: Worker[dict[str, str]] = Worker(spec, "echo_engine:create_engine", dict[str, str])
        worker.start()
        await until(worker, State.READY)
        try:
            return await words(worker, "one two")
        finally:
            await worker.stop()

    monkeypatch.setenv("PYTHONPATH", str(HERE))
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(say()) == ["one", "two"]


def test_no_library_reports_on_its_use(tmp_path: Path) -> None:
    """onnxruntime's reporting begins at its import, with a device id among the user's files."""
    pytest.importorskip("onnxruntime")
    home = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)}
    subprocess.run([sys.executable, "-c", "import onnxruntime"], env=home | worker_environment(), check=True)
    assert not list(tmp_path.iterdir())
