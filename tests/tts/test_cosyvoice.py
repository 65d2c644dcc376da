"""CosyVoice as an engine, for real but tiny: voices, batches, seeds, instructions, leaving early."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("tiktoken")

import torch
from quintet_common.errors import ApiError
from quintet_common.models_yml import ModelSpec
from quintet_tts.backends import Backend, cosyvoice, loading
from quintet_tts.backends.embedded import OPENAI_VOICES
from quintet_tts.cosyvoice import streaming
from quintet_tts.cosyvoice.decoding import Decoder
from quintet_tts.cosyvoice.numbers import in_words
from quintet_tts.cosyvoice.turns import Turns
from quintet_tts.cosyvoice.wetext import Wetext
from quintet_tts.engine.engine import SpeechEngine
from quintet_tts.protocol import Audio, Speak
from quintet_tts.speech.speaking import Speaking
from quintet_tts.voices import Catalogue
from tts import cosyvoice_tiny
from tts.test_engine import eventually, submit

TEXT = "今天是2024年5月3日。It costs 12 dollars, said he. こんにちは、世界。"
Model = tuple[Catalogue, dict[str, Backend]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return cosyvoice_tiny.write(tmp_path_factory.mktemp("release") / "CosyVoice-300M-Instruct")


def spec(folder: Path, **more: Any) -> ModelSpec:
    return ModelSpec(id="cosy", kind="tts", path=str(folder), device="cpu", **more)


def load(folder: Path, **more: Any) -> Model:
    return loading.load(spec(folder, **more), lambda _fraction, _note: None)  # type: ignore[return-value]


@pytest.fixture(scope="module")
def instruct(folder: Path) -> Model:
    return load(folder)


def backend_of(model: Model) -> Any:
    return model[1]["cosyvoice"]


def say(model: Model, text: str = "Hello there, world.", **more: Any) -> bytes:
    return b"".join(part.data for part in Speaking(Speak(text=text, format="pcm", **more), *model))


def test_the_voices_and_openais_names(instruct: Model) -> None:
    voices = {voice.id: voice for voice in instruct[0].voices}
    assert list(voices) == [*cosyvoice_tiny.VOICES, *OPENAI_VOICES]
    assert (voices["粤语女"].name, voices["粤语女"].language, voices["粤语女"].gender) == (
        "Cantonese woman",
        "yue-HK",
        "female",
    )
    assert voices["alloy"].alias_of == "英文女"
    pieces = ["Hello.", "你好。", "こんにちは、世界。", "안녕하세요."]
    chosen = [next(instruct[0].speakers("alloy", piece, [piece]))[1].id for piece in pieces]
    assert chosen == ["英文女", "中文女", "日语男", "韩语女"]
    assert [voice.id for _, voice in instruct[0].speakers("粤语女", "".join(pieces), pieces)] == ["粤语女"] * 4
    with pytest.raises(ApiError, match="No one voice of this model can read"):
        instruct[0].check("中文女", "Привет")


def test_voices_of_other_names(folder: Path, tmp_path: Path) -> None:
    torch.save({"narrator": {"embedding": torch.zeros(1, 192)}}, tmp_path / "own.pt")
    model = load(folder, engine_args={"voices": str(tmp_path / "own.pt")})
    voice = model[0].voices[0]
    assert (voice.id, voice.language, voice.gender) == ("narrator", "mul", None)
    assert say(model, seed=1, voice="alloy") == say(model, seed=1, voice="narrator")


def test_a_voice_with_a_recording(folder: Path, tmp_path: Path) -> None:
    """What CosyVoice saves of a recording: its text, its tokens and its mel frames come before what is said."""
    generator = torch.Generator().manual_seed(3)
    voice = {
        "prompt_text": torch.randint(0, 50_000, (1, 6), generator=generator),
        "llm_prompt_speech_token": torch.randint(0, 40, (1, 30), generator=generator),
        "flow_prompt_speech_token": torch.randint(0, 40, (1, 30), generator=generator),
        "prompt_speech_feat": torch.randn(1, 51, 80, generator=generator),
        "llm_embedding": torch.randn(1, 192, generator=generator),
        "flow_embedding": torch.randn(1, 192, generator=generator),
    }
    torch.save({"mine": voice, "bare": {"embedding": voice["llm_embedding"]}}, tmp_path / "own.pt")
    model = load(folder, engine_args={"voices": str(tmp_path / "own.pt"), "first_chunk": 30})
    mine, bare = (say(model, "Much is to be said. " * 5, seed=1, voice=name) for name in ("mine", "bare"))
    assert len(mine) > 24_000
    assert mine != bare


@pytest.mark.parametrize("speed", [0.25, 0.6, 1.7, 4.0])
def test_every_pace(instruct: Model, speed: float) -> None:
    whole = len(say(instruct, "This is how fast I am, more or less.", seed=4))
    assert len(say(instruct, "This is how fast I am, more or less.", seed=4, speed=speed)) == pytest.approx(
        whole / speed, rel=0.1
    )


def test_all_of_a_long_text_is_said(instruct: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    encode = backend_of(instruct)._tokenizer.encode
    backend = backend_of(instruct)
    pieces = backend._frontend.pieces
    monkeypatch.setattr(backend._frontend, "pieces", lambda text: said.extend(found := pieces(text)) or found)
    text = "这是一句话，后面还有。" * 60 + "没有标点" * 60
    speaking = Speaking(Speak(text=text, format="pcm"), *instruct)
    audio = list(speaking)
    assert sum(part.characters for part in audio) == len(text)
    assert "".join(said).replace("。", "").replace("，", "") == text.replace("。", "").replace("，", "")
    assert max(len(encode(piece)) for piece in said) < 200


def test_the_first_chunk_does_not_wait_for_the_whole(instruct: Model) -> None:
    """With many tokens to come, the first sound is there when few of them are."""
    backend = backend_of(instruct)
    voice = instruct[0].voices[0]
    synthesis = backend.synthesize("很长的一句话，" * 12, voice, 1.0, [1])
    first = next(synthesis)
    rest = sum(chunk.size for chunk in synthesis)
    assert first.dtype == np.float32
    assert 0.2 < first.size / backend.sample_rate < 0.8
    assert rest > 4 * first.size


def test_seeds_alone_and_among_others(instruct: Model) -> None:
    alone = say(instruct, TEXT, seed=5)
    results: list[bytes] = []
    threads = [threading.Thread(target=lambda: results.append(say(instruct, TEXT, seed=5))) for _ in range(4)]
    threads += [threading.Thread(target=say, args=(instruct, TEXT)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert results == [alone] * 4
    assert say(instruct, TEXT, seed=6) != alone
    assert say(instruct, TEXT) != say(instruct, TEXT)


def test_chance_is_nobody_elses(instruct: Model) -> None:
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first = say(instruct, seed=9)
    torch.rand(3)
    assert say(instruct, seed=9) == first
    torch.manual_seed(1)
    say(instruct)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_instructions(folder: Path, instruct: Model) -> None:
    plain = say(instruct, seed=3)
    sad = say(instruct, seed=3, instructions="Speak sadly.")
    glad = say(instruct, seed=3, instructions="Speak gladly.")
    assert len({plain, sad, glad}) == 3
    assert say(instruct, seed=3, instructions="Speak sadly.") == sad
    with pytest.raises(ApiError) as caught:
        say(instruct, instructions="Speak very very sadly. " * 200)
    assert (caught.value.status, caught.value.param) == (400, "instructions")
    for options in ({"instruct": False}, {}):
        other = load(folder, engine_args=options) if options else load(sft(folder))
        with pytest.raises(ApiError, match="cannot follow instructions") as caught:
            say(other, instructions="Speak sadly.")
        assert (caught.value.status, caught.value.param) == (400, "instructions")
        assert say(other, seed=3) == plain


def sft(folder: Path) -> Path:
    other = folder.with_name("CosyVoice-300M-SFT")
    if not other.exists():
        other.symlink_to(folder)
    return other


# The engine


@pytest.fixture
def engine(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SpeechEngine]:
    monkeypatch.setenv("QUINTET_THREADS", "1")
    made = SpeechEngine(spec(folder, max_batch=6))
    info = made.load(lambda _fraction, _note: None)
    assert info["engine"] == "cosyvoice"
    yield made
    assert eventually(lambda: made.stats() == {"num_requests_running": 0, "num_requests_waiting": 0})
    assert eventually(lambda: backend_of((None, made._backends))._decoder.rows == 0)  # type: ignore[arg-type]


def test_requests_share_the_steps_of_the_language_model(engine: SpeechEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    decoder = backend_of((None, engine._backends))._decoder  # type: ignore[arg-type]
    step = decoder._step
    monkeypatch.setattr(decoder, "_step", lambda: (sizes.append(decoder.rows), step()))
    listeners = [submit(engine, number, "我们一起说话，说得很好。") for number in range(12)]
    assert all(listener.all()[1] is None for listener in listeners)
    assert max(sizes) == 6
    assert sum(sizes) / len(sizes) > 1.5


def test_one_who_leaves_stops_costing_within_a_step(engine: SpeechEngine) -> None:
    backend = backend_of((None, engine._backends))  # type: ignore[arg-type]
    taken = threading.Event()

    class Slow(Turns):
        def _enter(self, urgent: bool) -> None:
            super()._enter(urgent)
            taken.set()
            time.sleep(0.05)

    backend._turns.__class__ = Slow
    listener = submit(engine, 1, "很长的一句话，" * 100)
    assert taken.wait(60)
    time.sleep(0.2)
    engine.cancel(1)
    events, error = listener.all()
    assert error is None
    assert sum(event.characters for event in events if isinstance(event, Audio)) < 100
    backend._turns.__class__ = Turns


def test_one_that_fails_leaves_the_others(engine: SpeechEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder: Decoder = backend_of((None, engine._backends))._decoder  # type: ignore[arg-type]
    step = decoder._step
    failed: list[int] = []

    def fragile() -> None:
        if not failed:
            failed.append(decoder.rows)
            raise MemoryError
        step()

    monkeypatch.setattr(decoder, "_step", fragile)
    error = submit(engine, 1, "Hello there.").all()[1]
    assert error is not None
    assert error.status == 500
    assert submit(engine, 2, "Hello there.").all()[1] is None


# Parts that the golden data does not reach


def test_turns_go_round() -> None:
    turns, order = Turns(), []
    first = threading.Event()

    def take(name: str, urgent: bool) -> None:
        with turns.take(urgent):
            order.append(name)
            first.wait(60)

    threads = []
    for name in ("a", "b", "c", "U1", "U2"):
        thread = threading.Thread(target=take, args=(name, name.startswith("U")))
        thread.start()
        threads.append(thread)
        assert eventually(lambda count=len(threads): len(order) + sum(map(len, turns._queues.values())) == count)
    first.set()
    for thread in threads:
        thread.join(60)
    assert order == ["a", "U1", "b", "U2", "c"]


@pytest.mark.parametrize(
    ("digits", "words"),
    [
        ("0", "zero"),
        ("100", "one hundred"),
        ("1001", "one thousand and one"),
        ("1100", "one thousand, one hundred"),
        ("1234567", "one million, two hundred and thirty-four thousand, five hundred and sixty-seven"),
        ("007", "zero zero seven"),
        ("9" * 37, " ".join(["nine"] * 37)),
    ],
)
def test_numbers(digits: str, words: str) -> None:
    assert in_words(digits) == words


@pytest.mark.parametrize(
    ("language", "text", "words"),
    [
        ("en", "3개 or 12 cats", "3개 or twelve cats"),
        ("en", 'He said "2".', 'He said "two".'),
        ("en", "<3 /3", "<3 /3"),
        ("zh", "一共86.40元", "一共八十六点四零元"),
        ("zh", "2 \\ 3", "二 \\ 三"),
    ],
)
def test_wetext_with_its_edges_off(language: Any, text: str, words: str) -> None:
    assert Wetext(language).normalize(text) == words


def test_the_service_does_not_import_torch() -> None:
    imports = "import sys, quintet_tts.app, quintet_tts.backends.loading, quintet_tts.cosyvoice.settings"
    check = "; sys.exit(bool({'torch', 'tiktoken', 'wetext'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", imports + check], timeout=60, check=False).returncode == 0


def test_chunks_grow_and_lose_nothing() -> None:
    class Said:
        tokens = range(333)

        def wait(self, _count: int) -> int:
            return 333

    cut: list[range] = []

    class Sound:
        def chunk(self, tokens: range, _turn: Any, final: bool = False) -> torch.Tensor:
            assert final == (tokens[-1] == 332)
            cut.append(tokens)
            return torch.zeros(1)

    said: Any = Said()
    sound: Any = Sound()
    list(streaming.chunks(said, 40, sound, nullcontext))
    assert [len(each) for each in cut] == [60, 100, 120, 113]
    fresh = [*(each[:-20] for each in cut[:-1]), cut[-1]]
    assert [token for each in fresh for token in each] == list(range(333))


def test_defaults_of_types() -> None:
    assert cosyvoice.default_dtype(torch.device("cpu")) is torch.float32
    assert cosyvoice.default_dtype(torch.device("cuda")) is torch.float16
