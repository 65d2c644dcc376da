"""CosyVoice of full size with random weights: the device's numbers against the CPU's, and how fast it speaks.

Sentences never end by themselves here, so that all have the same length: twenty speech tokens for each token of text.
"""

from __future__ import annotations

import copy
import statistics
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from check import Setup, Table
from quintet_common.engine_args import FIRST_CHUNK
from quintet_tts.backends.cosyvoice import CosyVoiceBackend, default_dtype
from quintet_tts.cosyvoice.columns import Columns
from quintet_tts.cosyvoice.encoder import EncoderConfig
from quintet_tts.cosyvoice.estimator import EstimatorConfig
from quintet_tts.cosyvoice.files import Models, Speaker
from quintet_tts.cosyvoice.flow import Flow, FlowConfig
from quintet_tts.cosyvoice.hift import Hift, HiftConfig
from quintet_tts.cosyvoice.lm import LMConfig, SpeechLM
from quintet_tts.cosyvoice.sampling import SamplingConfig
from quintet_tts.cosyvoice.tokenizer import Tokenizer, find_ranks
from torch import Tensor

TEXT = "今天天气很好。"
CLIENTS = {"cuda": (1, 8, 32), "cpu": (1, 4)}
DILATIONS = ((1, 3, 5),) * 3
HIFT = HiftConfig(
    80, 512, 22050, 9, 0.1, 0.003, 10, (8, 8), (16, 16), 16, 4,
    (3, 7, 11), DILATIONS, (7, 11), DILATIONS[:2], 0.1, 0.99, 512,
)  # fmt: skip
LIMITS = {torch.float32: 1e-3, torch.float16: 0.1, torch.bfloat16: 0.5}
"""Of what log-probabilities and mel frames may differ by from the CPU's in float32."""


def check(setup: Setup) -> Iterator[Table]:
    torch.backends.cudnn.allow_tf32 = False  # as where a model is loaded
    models = random_models(1 if setup.tiny else 8)
    yield correctness(setup, models)
    yield speed(setup, models)


def random_models(scale: int) -> Models:
    """On the CPU in float32; at ``scale`` 8 in CosyVoice-300M's widths."""
    torch.manual_seed(0)
    width, flow = 128 * scale, 64 * scale
    text = EncoderConfig(flow, width, 2 * scale, 4 * width, 6, True, False, "silu")
    decoder = EncoderConfig(width, width, 2 * scale, 4 * width, 14, True, True, "relu")
    encoder = EncoderConfig(flow, flow, scale, 4 * flow, 6, False, False, "silu")
    estimator = EstimatorConfig(320, 80, (32 * scale, 32 * scale), 8, 8 * scale, 4, 12)
    lm = SpeechLM(LMConfig(51866, 4096, 192, text, decoder, SamplingConfig()))
    lm.llm_decoder.bias.data[-1] = -1e4
    hift = Hift(replace(HIFT, channels=64 * scale, pitch_channels=64 * scale))
    hift.f0_predictor.classifier.bias.data[:] = 200
    made = Models(lm, Flow(FlowConfig(flow, 80, 192, 4096, 50, 4, 0.7, encoder, estimator)), hift)
    for model in (made.lm, made.flow, made.hift):
        model.requires_grad_(False).eval()
    return made


def moved(models: Models, setup: Setup, dtype: torch.dtype) -> Models:
    lm, flow = (copy.deepcopy(model).to(setup.device, dtype) for model in (models.lm, models.flow))
    return Models(lm, flow, copy.deepcopy(models.hift).to(setup.device))


def correctness(setup: Setup, models: Models) -> Table:
    table = Table("Speech: CosyVoice against the CPU in float32", ["type", "log-probabilities", "mel", "pitch, Hz", ""])
    expected = stages(models, torch.device("cpu"))
    for dtype in dict.fromkeys((torch.float32, default_dtype(setup.device), torch.bfloat16)):
        found = stages(moved(models, setup, dtype), setup.device)
        differences = [float((ours - theirs).abs().max()) for ours, theirs in zip(found, expected, strict=True)]
        good = max(differences[:2]) < LIMITS[dtype] and differences[2] < 0.01
        verdict = table.verdict(good, f"{dtype} differs by {differences}")
        table.add(str(dtype).removeprefix("torch."), *(f"{each:.1e}" for each in differences), verdict)
    return table


@torch.inference_mode()
def stages(models: Models, device: torch.device) -> list[Tensor]:
    """Log-probabilities of 40 given tokens, mel frames of 70, and the pitch of given frames, on the CPU."""
    generator = torch.Generator().manual_seed(1)
    text, tokens = (torch.randint(0, 4096, (1, size), generator=generator).to(device) for size in (20, 70))
    voice, noise = (torch.randn(shape, generator=generator).to(device) for shape in ((1, 192), (1, 80, 120)))
    scores, cache = models.lm.prefill(models.lm.prefix(text, voice))
    columns, rows = Columns(models.lm.llm), [scores]
    columns.add(cache)
    rows += [models.lm.step(tokens[:, place], columns) for place in range(40)]
    *_, mel = models.flow.steps(noise, models.flow.encode(tokens, voice))
    pitch = models.hift.f0_predictor(noise)
    return [torch.cat(rows)[:, :-1].cpu(), mel.cpu(), pitch.cpu()]


def speed(setup: Setup, models: Models) -> Table:
    dtype = default_dtype(setup.device)
    columns = ["at once", "first sound, s", "sound per second", "CPU s per s of sound"]
    table = Table(f"Speech: CosyVoice in {str(dtype).removeprefix('torch.')} on {setup.where}", columns)
    clients = CLIENTS["cpu" if setup.tiny else setup.device.type]
    speaker = Speaker(*torch.randn(2, 1, 192))
    tokenizer = Tokenizer(find_ranks(Path()))
    backend = CosyVoiceBackend(moved(models, setup, dtype), {"中文女": speaker}, tokenizer, max(clients), FIRST_CHUNK)
    together(backend, 1)  # what is set up at first use
    for count in clients:
        begun = time.process_time()
        seconds, (first, sound) = setup.timed(lambda count=count: together(backend, count))  # type: ignore[misc]
        work = (time.process_time() - begun) / sound
        table.add(count, f"{first:.2f}", f"{sound / seconds:.1f}", f"{work:.2f}")
    return table


def together(backend: CosyVoiceBackend, count: int) -> tuple[float, float]:
    """``count`` requests at once: seconds to the first sound (median), and seconds of sound of all."""
    (voice,) = backend.voices()
    firsts: list[float] = []
    samples: list[int] = []

    def speak(seed: int) -> None:
        begun = time.perf_counter()
        synthesis = backend.synthesize(TEXT, voice, 1.0, [seed])
        samples.append(next(synthesis).size)
        firsts.append(time.perf_counter() - begun)
        samples.extend(chunk.size for chunk in synthesis)

    threads = [threading.Thread(target=speak, args=(seed,)) for seed in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return statistics.median(firsts), sum(samples) / backend.sample_rate
