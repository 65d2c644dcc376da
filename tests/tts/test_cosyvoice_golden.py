"""The port against what the original implementation has computed, stage by stage."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from quintet_tts.cosyvoice import files, streaming
from quintet_tts.cosyvoice.columns import Columns
from quintet_tts.cosyvoice.decoding import Decoder, Script
from quintet_tts.cosyvoice.files import Models, Speaker
from quintet_tts.cosyvoice.flow import Prompt
from quintet_tts.cosyvoice.frontend import Frontend
from quintet_tts.cosyvoice.lm import SpeechLM
from quintet_tts.cosyvoice.sampling import SamplingConfig, draw, nucleus
from quintet_tts.cosyvoice.tokenizer import Tokenizer, find_ranks
from quintet_tts.cosyvoice.turns import Turns
from quintet_tts.cosyvoice.wetext import Wetext
from safetensors.torch import load_file
from torch import Tensor
from torch.testing import assert_close

GOLDEN = Path(os.environ.get("QUINTET_GOLDEN", Path(__file__).parents[2].parent / "shared" / "golden"), "cosyvoice")
pytestmark = [
    pytest.mark.skipif(not GOLDEN.exists(), reason="the golden data is not beside the checkout; set QUINTET_GOLDEN"),
    pytest.mark.filterwarnings("ignore"),
]
Data = dict[str, Tensor]


@pytest.fixture(scope="module")
def models() -> Models:
    folder = GOLDEN / "model"
    config = files.read_config(folder)
    return files.load(folder, config, torch.device("cpu"), torch.float32, lambda _fraction, _note: None)


@pytest.fixture(autouse=True)
def no_gradients() -> Iterator[None]:
    with torch.inference_mode():
        yield


def golden(part: str) -> Data:
    return {name: _ids(value) for name, value in load_file(GOLDEN / f"{part}.safetensors").items()}


def _ids(value: Tensor) -> Tensor:
    return value if value.is_floating_point() else value.long()


def close(ours: Tensor, theirs: Tensor, limit: float = 1e-4) -> None:
    assert_close(ours, theirs, rtol=0, atol=limit)


# The language model


def script(data: Data, case: str) -> Script:
    return Script(
        data[f"in.{case}.text"],
        data.get(f"in.{case}.prompt_text"),
        data.get(f"in.{case}.embedding"),
        data.get(f"in.{case}.prompt_speech"),
    )


def prefix(models: Models, given: Script) -> Tensor:
    text = given.text if given.prompt_text is None else torch.cat([given.prompt_text, given.text], dim=1)
    return models.lm.prefix(text, given.speaker, given.prompt_speech)


def test_what_the_language_model_reads(models: Models) -> None:
    data, lm = golden("lm"), models.lm
    embedded = lm.text_embedding(data["in.a.text"])
    close(embedded, data["out.a.text_embedding"])
    close(lm.text_encoder(embedded), data["out.a.text_encoder_out"])
    read = prefix(models, script(data, "a"))
    close(read, data["out.a.lm_input"])
    hidden, cache = lm.llm.prefill(read)
    close(hidden, data["out.a.lm_hidden"])
    close(torch.stack([torch.cat(pair, dim=-1)[0] for pair in cache]), data["out.a.att_cache"])


@pytest.mark.parametrize("cases", ["a", "b", "c", "abc", "cba", "bbab"])
def test_the_language_model_alone_and_in_batches(models: Models, cases: str) -> None:
    """Rows of different lengths are read together, and end at different steps."""
    data, columns = golden("lm"), Columns(models.lm.llm)
    ours: list[list[Tensor]] = []
    for case in cases:
        scores, cache = models.lm.prefill(prefix(models, script(data, case)))
        columns.add(cache)
        ours.append([scores])
    forced = [data[f"in.{case}.forced"].tolist() for case in cases]
    rows = list(range(len(cases)))
    while rows:
        for place in reversed([place for place, row in enumerate(rows) if len(ours[row]) > len(forced[row])]):
            columns.remove(place)
            rows[place] = rows[-1]
            rows.pop()
        if rows:
            tokens = torch.tensor([forced[row][len(ours[row]) - 1] for row in rows])
            for row, scores in zip(rows, models.lm.step(tokens, columns).unbind(), strict=True):
                ours[row].append(scores.unsqueeze(0))
    for case, scores in zip(cases, ours, strict=True):
        close(torch.cat(scores), data[f"out.{case}.logp"])


def test_one_that_comes_later_joins_a_batch(models: Models) -> None:
    data, columns = golden("lm"), Columns(models.lm.llm)
    columns.add(models.lm.prefill(prefix(models, script(data, "c")))[1])
    for token in data["in.c.forced"]:
        models.lm.step(token.reshape(1), columns)
    columns.add(models.lm.prefill(prefix(models, script(data, "b")))[1])
    for index, token in enumerate(data["in.b.forced"]):
        scores = models.lm.step(torch.tensor([3, int(token)]), columns)
        close(scores[1], data["out.b.logp"][index + 1])


@pytest.mark.parametrize("case", ["a", "b"])
def test_the_likeliest_tokens(models: Models, case: str) -> None:
    data = golden("lm")
    greedy = SamplingConfig(top_k=1, repetition=2.0)
    decoder = Decoder(_with_sampling(models, greedy), Turns(), rows=4)
    utterance = decoder.say(script(data, case), seed=0)
    utterance.wait(10_000)
    assert utterance.tokens == data[f"out.{case}.greedy"].tolist()


def test_sampled_tokens(models: Models) -> None:
    """The draws are torch's own, in the same order as the original's."""
    data = golden("lm")
    decoder = Decoder(models.lm, Turns(), rows=4)
    alone = decoder.say(script(data, "a"), seed=1986)
    alone.wait(10_000)
    others = [decoder.say(script(data, case), seed=5) for case in "bc"]
    among = decoder.say(script(data, "a"), seed=1986)
    for each in (*others, among):
        each.wait(10_000)
    assert alone.tokens == among.tokens == data["out.a.sampled_seed1986_torch_cpu"].tolist()


def _with_sampling(models: Models, sampling: SamplingConfig) -> SpeechLM:
    lm = copy.copy(models.lm)
    lm.config = replace(lm.config, sampling=sampling)
    return lm


def test_sampling() -> None:
    cases = json.loads((GOLDEN / "ras_sampling.json").read_text())
    rows = golden("lm")["out.a.logp"]
    for case in cases["nucleus"]:
        weights, ids = nucleus(rows[case["row"]] * case["scores_multiplied_by"], SamplingConfig())
        assert ids.tolist() == case["nucleus_ids"]
        close(weights, torch.tensor(case["nucleus_probs"]))
    scores = torch.full((4097,), -20.0)
    scores[7], scores[9] = 5, 1
    generator = torch.Generator()
    for case in cases["repetition"]["cases"]:
        drawn = {draw(scores, case["decoded"], SamplingConfig(), generator.manual_seed(seed)) for seed in range(5)}
        assert (7 not in drawn) == case["redrawn"]


# Flow


@pytest.mark.parametrize("case", ["s", "l", "p"])
def test_flow(models: Models, case: str) -> None:
    data, flow = golden("flow"), models.flow
    prompt = None
    if data[f"in.{case}.prompt_token"].shape[1]:
        prompt = Prompt(data[f"in.{case}.prompt_token"], data[f"in.{case}.prompt_feat"])
    given = flow.encode(data[f"in.{case}.token"], data[f"in.{case}.embedding"], prompt)
    close(given.mu, data[f"out.{case}.mu"])
    close(given.speaker, data[f"out.{case}.spks"])
    noise = data[f"in.{case}.z"]
    steps = list(flow.steps(noise, given))
    close(torch.cat([noise, *steps[:-1]]), data[f"out.{case}.x_steps"])
    close(steps[-1][:, :, -data[f"out.{case}.mel"].shape[2] :], data[f"out.{case}.mel"])


@pytest.mark.parametrize("case", ["est", "estpad"])
def test_the_network_of_flow(models: Models, case: str) -> None:
    data = golden("flow")
    given = [data[f"in.{case}.{name}"] for name in ("x", "mu", "t", "spks", "cond", "mask")]
    close(models.flow.decoder.estimator(*given), data[f"out.{case}.out"])


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float16, 0.05), (torch.bfloat16, 0.3)])
def test_half_precision_is_near(dtype: torch.dtype, limit: float) -> None:
    folder = GOLDEN / "model"
    config = files.read_config(folder)
    models = files.load(folder, config, torch.device("cpu"), dtype, lambda _fraction, _note: None)
    data, columns = golden("lm"), Columns(models.lm.llm)
    scores, cache = models.lm.prefill(prefix(models, script(data, "a")))
    columns.add(cache)
    rows = [scores, *(models.lm.step(token.reshape(1), columns) for token in data["in.a.forced"])]
    close(torch.cat(rows), data["out.a.logp"], limit)
    data = golden("flow")
    *_, mel = models.flow.steps(data["in.l.z"], models.flow.encode(data["in.l.token"], data["in.l.embedding"]))
    close(mel, data["out.l.mel"], limit)


# The vocoder


def test_pitch_and_spectrum(models: Models) -> None:
    data, hift = golden("hift"), models.hift
    # In Hz, of several hundred: what float32 can say of that depends on the order of additions.
    assert_close(hift.f0_predictor(data["in.mel"]), data["out.f0"], rtol=1e-5, atol=1e-4)
    spectrum = hift.spectrum(data["in.s"])
    close(spectrum[:, :, :200], data["out.decode.s_stft"])
    close(hift.shape(data["in.mel"], spectrum)[:, :, :200], data["out.decode.conv_post_out"])
    close(hift.decode(data["in.mel"], data["in.s"]), data["out.decode.wav"])


def test_the_source(models: Models) -> None:
    data, hift = golden("hift"), models.hift
    pitch, none = data["out.f0"], (torch.zeros(1, 9, 1), torch.zeros(1, 9, 10240))
    close(hift.sines(pitch, *none).transpose(1, 2)[:, :2048], data["out.zero.sine_first2048"])
    source = hift.source(pitch, *none)
    close(source, data["out.zero.source"])
    close(hift.decode(data["in.mel"], source), data["out.zero.wav"], 2e-4)
    phase = data["in.phase"].clone()
    phase[:, 0] = 0  # as ``chance`` has it
    source = hift.source(pitch, phase, data["in.noise"])
    close(source, data["out.rec.source"])
    close(hift.decode(data["in.mel"], source), data["out.rec.wav"], 2e-4)


# The whole, with nothing left to chance but what is given


@pytest.fixture
def no_chance(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    def zeros(frames: int, _generator: torch.Generator) -> tuple[Tensor, Tensor]:
        return torch.zeros(1, 9, 1), torch.zeros(1, 9, frames * 256)

    monkeypatch.setattr(models.hift, "chance", zeros)


@pytest.mark.usefixtures("no_chance")
def test_a_known_source_goes_on(models: Models) -> None:
    data = golden("hift")
    wav, source = models.hift(data["in.mel"], torch.Generator(), data["in.cache_source"])
    close(source, data["out.cache.source"], 5e-4)
    close(wav, data["out.cache.wav"], 2e-3)


class Given(streaming.Sound):
    """A Sound that gets its noise from the golden data."""

    def __init__(self, models: Models, embedding: Tensor, speed: float, noises: list[Tensor]) -> None:
        super().__init__(models, Speaker(embedding, embedding), speed, seed=0)
        self._noises = noises
        self.mels: list[Tensor] = []

    def noise(self, frames: int) -> Tensor:
        noise = self._noises.pop(0)
        assert noise.shape == (1, 80, frames)
        return noise

    def mel(self, tokens: list[int], turn: Any) -> Tensor:
        self.mels.append(super().mel(tokens, turn))
        return self.mels[-1]


class Said:
    """An utterance that the language model has ended."""

    def __init__(self, tokens: Tensor) -> None:
        self.tokens = tokens[0].tolist()

    def wait(self, _count: int) -> int:
        return len(self.tokens)


@pytest.mark.usefixtures("no_chance")
def test_streaming(models: Models) -> None:
    data = golden("tts")
    sound = Given(models, data["in.embedding"], 1.0, [data[f"in.st.z{index}"] for index in range(3)])
    said: Any = Said(data["in.token"])
    wavs = list(streaming.chunks(said, streaming.CHUNK, sound, nullcontext))
    assert [wav.shape[0] for wav in wavs] == [38912, 44032, 31488]
    for index, (mel, wav) in enumerate(zip(sound.mels, wavs, strict=True)):
        close(mel, data[f"out.st.flow_mel{index}"])
        # Rounding of the pitch adds up in the phase, so that single samples of a long piece differ by more.
        close(wav.unsqueeze(0), data[f"out.st.wav{index}"], 2e-2)
        assert (wav - data[f"out.st.wav{index}"]).abs().mean() < 5e-4


@pytest.mark.usefixtures("no_chance")
@pytest.mark.parametrize(("case", "speed"), [("ns", 1.0), ("fast", 1.3)])
def test_whole_pieces(models: Models, case: str, speed: float) -> None:
    data = golden("tts")
    sound = Given(models, data["in.ns.embedding"], speed, [data[f"in.{case}.z0"]])
    said: Any = Said(data["in.ns.token"])
    (wav,) = streaming.chunks(said, streaming.CHUNK, sound, nullcontext)
    if case == "ns":
        close(sound.mels[0], data["out.ns.mel"])
    close(wav.unsqueeze(0), data[f"out.{case}.wav"], 1e-2)


# The front end


class Unchanged:
    def normalize(self, text: str) -> str:
        return text


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(find_ranks(GOLDEN / "model"))


def test_tokens(tokenizer: Tokenizer) -> None:
    cases = json.loads((GOLDEN / "frontend.json").read_text())
    assert tokenizer.size == 51866
    for case in cases["tokenize"]:
        assert tokenizer.encode(case["text"]) == case["ids"], case["text"]
    for name, number in cases["special_ids"].items():
        assert tokenizer.encode(name) == [number]


@pytest.mark.parametrize("name", ["none", "wetext"])
def test_normalised_and_split(tokenizer: Tokenizer, name: str) -> None:
    plain: Any = (Unchanged(), Unchanged()) if name == "none" else (Wetext("zh"), Wetext("en"))
    frontend = Frontend(*plain, lambda text: len(tokenizer.encode(text)))
    cases = json.loads((GOLDEN / "frontend.json").read_text())["normalise"]
    for case in (case for case in cases if case["frontend"] == name):
        if '\\"' in case["joined"]:
            # The original says the marks that wetext leaves before quotes; here they are taken away.
            assert frontend.normalized(case["text"]) == case["joined"].replace('\\"', '"')
            continue
        assert frontend.normalized(case["text"]) == case["joined"]
        assert frontend.pieces(case["text"]) == case["split"]
