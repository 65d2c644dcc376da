"""Who speaks next, who waits, who is sent away."""

from __future__ import annotations

from typing import Any, cast
from unittest.mock import Mock

import pytest
from quintet_common.errors import ApiError
from quintet_tts.engine.schedule import Schedule, Task


def task(request_id: int) -> Task:
    return Task(request_id, Mock(), cast(Any, None))


def test_the_listener_who_would_run_dry_first_is_served_first() -> None:
    schedule = Schedule(streams=8, max_waiting=8)
    ahead, behind, fresh = task(1), task(2), task(3)
    ahead.seconds, behind.seconds = 30.0, 5.0
    for each in (ahead, behind, fresh):
        schedule.add(each)
    assert [schedule.take().id for _ in range(3)] == [3, 2, 1]


def test_of_those_who_have_heard_nothing_the_first_come_is_first() -> None:
    schedule = Schedule(streams=8, max_waiting=8)
    for number in (1, 2, 3):
        schedule.add(task(number))
    assert [schedule.take().id for _ in range(3)] == [1, 2, 3]


def test_a_bounded_number_runs_the_rest_waits_in_order_and_more_are_sent_away() -> None:
    schedule = Schedule(streams=1, max_waiting=2)
    first = task(1)
    for each in (first, task(2), task(3)):
        schedule.add(each)
    assert schedule.counts() == (1, 2)
    with pytest.raises(ApiError) as caught:
        schedule.add(task(4))
    assert (caught.value.status, caught.value.code, caught.value.retry_after) == (429, "queue_full", 1)
    assert schedule.take() is first
    schedule.end(first)
    assert schedule.take().id == 2
    assert schedule.counts() == (1, 1)


def test_one_that_is_between_two_steps_is_cancelled_at_once() -> None:
    schedule = Schedule(streams=1, max_waiting=2)
    running, waiting = task(1), task(2)
    schedule.add(running)
    schedule.add(waiting)
    assert schedule.cancel(2) is waiting
    assert schedule.cancel(1) is running
    assert schedule.cancel(1) is None
    schedule.end(waiting)
    schedule.end(running)
    assert schedule.counts() == (0, 0)


def test_one_that_is_being_stepped_is_ended_by_its_thread() -> None:
    schedule = Schedule(streams=1, max_waiting=2)
    schedule.add(task(1))
    taken = schedule.take()
    assert schedule.cancel(1) is None
    assert cast(Mock, taken.speaking).stop.call_count == 1
    assert schedule.give_back(taken) is False


def test_one_whose_client_does_not_read_gives_its_place_to_the_next() -> None:
    schedule = Schedule(streams=1, max_waiting=3)
    slow, next_one, last = task(1), task(2), task(3)
    for each in (slow, next_one, last):
        schedule.add(each)
    schedule.hold(1, True)
    assert schedule.counts() == (1, 2)
    assert schedule.take() is next_one
    schedule.hold(1, False)
    schedule.end(next_one)
    assert schedule.take() is slow  # before those who came later
    schedule.hold(1, True)  # while it is being stepped
    assert schedule.give_back(slow)
    assert schedule.take() is last


def test_those_who_rest_count_as_waiting_and_can_be_cancelled() -> None:
    schedule = Schedule(streams=1, max_waiting=2)
    for number in (1, 2):
        schedule.add(task(number))
        schedule.hold(number, True)
    assert schedule.counts() == (0, 2)
    with pytest.raises(ApiError, match="waiting already"):
        schedule.add(task(3))
    resting = schedule.cancel(1)
    assert resting is not None
    schedule.end(resting)
    assert schedule.counts() == (0, 1)
    schedule.hold(99, True)


def test_those_who_have_rested_for_long_are_taken_out_and_do_not_come_back() -> None:
    schedule = Schedule(streams=2, max_waiting=2)
    resting, other = task(1), task(2)
    schedule.add(resting)
    schedule.add(other)
    schedule.hold(1, True)
    assert schedule.abandoned(60) == []
    assert schedule.abandoned(-1) == [resting]
    schedule.hold(1, False)  # its client reads again, too late
    assert schedule.cancel(1) is None
    assert schedule.take() is other
    assert not schedule._ready
    schedule.end(resting)
    assert schedule.counts() == (1, 0)


def test_cancelling_what_is_not_there_does_nothing() -> None:
    assert Schedule(streams=1, max_waiting=1).cancel(5) is None
