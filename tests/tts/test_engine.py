"""The engine with the real voice: many requests, cancelled ones, failing ones."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import numpy as np
import pytest
from quintet_common.errors import ApiError
from quintet_tts import protocol
from quintet_tts.backends import Backend
from quintet_tts.engine import engine as engine_module
from quintet_tts.engine.engine import SpeechEngine
from quintet_tts.protocol import Audio, Speak, Started
from quintet_tts.speech.reshape import Samples
from quintet_tts.speech.speaking import SLICE, Speaking
from quintet_tts.voices import Catalogue, Voice
from tts.conftest import SPEC

STORY = "It was a fine day. The sun stood over the hills. Nobody was about. Then a door opened. " * 10


class Listener:
    """The other end of an Emit."""

    def __init__(self) -> None:
        self.events: queue.Queue[Any] = queue.Queue()
        self.ended = 0

    def __call__(self, event: Any) -> None:
        self.events.put(event)

    def done(self) -> None:
        self.fail(None)

    def fail(self, error: ApiError | None) -> None:
        self.ended += 1
        if self.ended == 1:  # as the host's Emit: the first end counts
            self.events.put(("end", error))

    def all(self) -> tuple[list[Any], ApiError | None]:
        events = []
        while not isinstance(event := self.events.get(timeout=120), tuple):
            events.append(event)
        return events, event[1]


@pytest.fixture
def engine(model: tuple[Catalogue, dict[str, Backend]], monkeypatch: pytest.MonkeyPatch) -> Iterator[SpeechEngine]:
    monkeypatch.setattr(engine_module.loading, "load", lambda _spec, _report: model)
    monkeypatch.setenv("QUINTET_THREADS", "2")
    made = SpeechEngine(msgspec.structs.replace(SPEC, max_batch=4))
    info = made.load(lambda _fraction, _note: None)
    assert info["sample_rate"] == 24000
    yield made
    assert eventually(lambda: made.stats() == {"num_requests_running": 0, "num_requests_waiting": 0})


def eventually(true: Callable[[], bool], seconds: float = 60) -> bool:
    deadline = time.monotonic() + seconds
    while not true():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def submit(engine: SpeechEngine, request_id: int, text: str, **more: Any) -> Listener:
    listener = Listener()
    engine.submit(request_id, Speak(text=text, format=more.pop("format", "pcm"), **more), listener)  # type: ignore[arg-type]
    return listener


def test_what_a_request_is_told(engine: SpeechEngine) -> None:
    events, error = submit(engine, 1, "One two three. Four five six.").all()
    assert error is None
    assert isinstance(events[0], Started)
    assert events[0].engines == ["hibari"]
    audio = events[1:]
    assert all(isinstance(event, Audio) for event in audio)
    assert sum(event.characters for event in audio) == len("One two three. Four five six.")
    assert sum(event.seconds for event in audio) == pytest.approx(sum(len(e.data) for e in audio) / 2 / 24000)
    assert sum(event.busy_seconds for event in audio) > 0


@pytest.mark.parametrize("more", ["\u0958\u0958", "\u2154", "\x01"])
def test_characters_are_those_of_the_input_though_others_are_spoken(engine: SpeechEngine, more: str) -> None:
    """U+0958 is two characters in NFC: with a hundred of them later on, the first piece had fewer than none."""
    text = "क. " + f"{more} क " * 60
    events, error = submit(engine, 1, text, voice="hi").all()
    assert error is None
    counts = [event.characters for event in events[1:]]
    assert (min(counts) >= 0, sum(counts)) == (True, len(text))


def test_a_short_request_does_not_wait_for_the_end_of_long_ones(engine: SpeechEngine) -> None:
    long = [submit(engine, number, STORY * 3) for number in (1, 2, 3)]
    for listener in long:
        assert isinstance(listener.events.get(timeout=120), Started)
    short = submit(engine, 4, "Me too.")
    _, error = short.all()
    assert error is None
    assert all(listener.ended == 0 for listener in long)
    for number in (1, 2, 3):
        engine.cancel(number)
    for listener in long:
        listener.all()


def test_more_than_run_at_once_all_finish(engine: SpeechEngine) -> None:
    listeners = [submit(engine, number, "We are many. We all speak.") for number in range(24)]
    assert all(listener.all()[1] is None for listener in listeners)
    assert all(listener.ended == 1 for listener in listeners)


def test_the_same_seed_gives_the_same_sound_alone_or_among_others(engine: SpeechEngine) -> None:
    def heard(listener: Listener) -> bytes:
        return b"".join(event.data for event in listener.all()[0][1:])

    alone = heard(submit(engine, 1, "The seed decides. Nothing else.", seed=5))
    among = [submit(engine, number, "The seed decides. Nothing else.", seed=5) for number in range(2, 6)]
    assert {heard(listener) for listener in among} == {alone}
    assert heard(submit(engine, 7, "The seed decides. Nothing else.", seed=6)) != alone


@pytest.mark.parametrize("voice", ["heart", "英文男"])
def test_a_cancelled_request_ends_within_a_sentence(engine: SpeechEngine, voice: str) -> None:
    listener = submit(engine, 1, STORY * 5, voice=voice)
    listener.events.get(timeout=120)
    engine.cancel(1)
    events, error = listener.all()
    assert error is None
    assert sum(event.characters for event in events if isinstance(event, Audio)) < len(STORY)


@pytest.mark.parametrize("form", ["pcm", "mp3", "opus", "aac", "flac"])
def test_one_who_leaves_before_the_first_sound_is_no_failure(
    model: tuple[Catalogue, dict[str, Backend]], monkeypatch: pytest.MonkeyPatch, form: protocol.Format
) -> None:
    """There is no silence to end with then, of which FFmpeg's encoders made an error with a traceback in the log."""
    speaking = Speaking(Speak(text="Only one sentence.", voice="heart", format=form), *model)

    def left(*_: object) -> Iterator[Samples]:
        speaking.stop()
        yield from ()

    monkeypatch.setattr(model[1]["hibari"], "synthesize", left)
    assert list(speaking) == []
    speaking.close()


def test_a_full_queue_sends_away(engine: SpeechEngine) -> None:
    listeners = [submit(engine, number, STORY) for number in range(4 + SPEC.max_waiting)]
    with pytest.raises(ApiError) as caught:
        listeners += [submit(engine, number, STORY) for number in range(1000, 1020)]
    assert caught.value.status == 429
    for number in (*range(4 + SPEC.max_waiting), *range(1000, 1020)):
        engine.cancel(number)
    for listener in listeners:
        listener.all()


@pytest.mark.parametrize(
    ("request_", "param"),
    [
        (Speak(text="!!! — 😀", format="pcm"), "input"),
        (Speak(text="Hello", voice="nobody", format="pcm"), "voice"),
        (Speak(text="你好", voice="heart", format="mp3"), "voice"),
    ],
)
def test_what_cannot_be_spoken_is_refused_before_it_is_queued(
    engine: SpeechEngine, request_: Speak, param: str
) -> None:
    with pytest.raises(ApiError) as caught:
        engine.submit(1, request_, Listener())  # type: ignore[arg-type]
    assert (caught.value.status, caught.value.param) == (400, param)


def test_one_that_fails_does_not_take_others_with_it(
    engine: SpeechEngine, model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    hibari = model[1]["hibari"]
    speak = hibari.synthesize

    def fragile(text: str, voice: Voice, speed: float, seed: list[int] | None) -> Iterator[Samples]:
        if "break" in text:
            raise ZeroDivisionError
        yield from speak(text, voice, speed, seed)

    monkeypatch.setattr(hibari, "synthesize", fragile)
    good, bad = submit(engine, 1, "All is well. Still well."), submit(engine, 2, "Fine. Now break.")
    assert good.all()[1] is None
    error = bad.all()[1]
    assert error is not None
    assert error.status == 500
    assert "ZeroDivisionError" not in error.message


def test_tiny_sentences_do_not_cost_a_process_each(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    espeak = model[1]["espeak-ng"]
    speak, texts = espeak.synthesize, []

    def counted(text: str, *rest: Any) -> Iterator[Samples]:
        texts.append(text)
        yield from speak(text, *rest)

    monkeypatch.setattr(espeak, "synthesize", counted)
    for _ in Speaking(Speak(text="是。" * 100, format="pcm"), *model):
        pass
    assert texts[0] == "是。"
    assert "".join(texts) == "是。" * 100
    assert len(texts) < 8


def test_voices_are_listed(engine: SpeechEngine) -> None:
    listener = Listener()
    engine.submit(1, protocol.ListVoices(), listener)  # type: ignore[arg-type]
    events, _ = listener.all()
    assert "heart" in {voice.id for voice in events[0].voices}


@pytest.mark.parametrize("voice", ["heart", "中文男"])
@pytest.mark.parametrize("speed", [0.25, 0.7, 2.5, 4.0])
def test_every_engine_takes_every_pace(model: Any, voice: str, speed: float) -> None:
    text = "This is how fast I am." if voice == "heart" else "这是我说话的速度。"

    def length(pace: float) -> float:
        return sum(audio.seconds for audio in Speaking(Speak(text=text, voice=voice, format="pcm", speed=pace), *model))

    assert length(speed) == pytest.approx(length(1.0) / speed, rel=0.2)


@pytest.mark.parametrize("format", ["mp3", "wav"])
def test_the_first_of_four_sentences_sounds_within_a_quarter_of_the_work(model: Any, format: Any) -> None:
    text = (
        "The morning train was late again, and nobody seemed to mind. A boy counted the pigeons under the clock. "
        "His mother read the same page of her book again. Then, far away, a bell began to ring."
    )

    def share() -> float:
        begun = time.thread_time()
        speaking = Speaking(Speak(text=text, voice="heart", format=format), *model)
        assert next(speaking).data
        first = time.thread_time() - begun
        assert len(list(speaking)) >= 4
        return first / (time.thread_time() - begun)

    assert sorted(share() for _ in range(5))[2] <= 0.25


def test_joins_are_silent(model: Any) -> None:
    """The sound on both sides of each pause is faded: no sample jumps by more than speech itself does."""
    audio = Speaking(Speak(text="One here. Two there. 三在这里。", format="pcm", seed=1), *model)
    samples = np.frombuffer(b"".join(part.data for part in audio), "<i2") / 32768
    silent = np.convolve(samples == 0, np.ones(1000), "valid") == 1000
    starts = np.flatnonzero(np.diff(silent.astype(int)) == 1) + 1
    ends = np.flatnonzero(np.diff(silent.astype(int)) == -1) + 1000
    assert len(starts) == 3  # after each sentence
    assert len(ends) == 2
    for edge in (*starts, *ends):
        assert np.abs(samples[max(0, edge - 4) : edge + 4]).max() < 0.01


def test_a_long_text_is_prepared_a_slice_at_a_time_and_not_by_who_submits_it(model: Any) -> None:
    text = "One here. Two there. " * 1000
    speaking = Speaking(Speak(text=text, format="pcm"), *model)
    assert speaking.engines == []  # nothing yet
    slices = 1
    while not speaking.prepare():
        slices += 1
    assert slices == len(text) // SLICE + 1
    assert speaking.engines == ["hibari"]
    assert speaking.prepare()


def test_a_short_request_is_spoken_before_long_ones_are_prepared_and_those_can_be_cancelled(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = SpeechEngine(msgspec.structs.replace(SPEC, max_batch=8))
    engine._catalogue, engine._backends = model
    long = [submit(engine, number, "All is well. " * 15_000) for number in range(3)]
    short = submit(engine, 3, "Me too.")
    monkeypatch.setattr(engine._schedule, "take", limited(engine._schedule.take, 30))
    with pytest.raises(StopIteration):
        engine._run()
    assert short.all()[1] is None
    assert all(listener.events.empty() for listener in long)
    for number, listener in enumerate(long):
        engine.cancel(number)
        assert listener.all() == ([], None)


def limited(call: Callable[[], Any], times: int) -> Callable[[], Any]:
    """``call`` for so many times, then StopIteration."""
    left = iter(range(times))

    def once() -> Any:
        next(left)
        return call()

    return once
