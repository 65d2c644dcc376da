"""Flow matching: speech tokens and a speaker in, mel frames out.

An encoder gives a first idea of the frames (``mu``), and ten Euler steps lead from noise to the frames themselves, each
led away from what the network would do without tokens and speaker (classifier-free guidance).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from quintet_tts.cosyvoice import encoder, estimator
from quintet_tts.cosyvoice.encoder import Encoder, EncoderConfig
from quintet_tts.cosyvoice.estimator import Estimator, EstimatorConfig
from quintet_tts.cosyvoice.settings import Section

SAMPLE_RATE = 22050
HOP = 256
"""Samples of a mel frame."""

STEPS = 10
EDGE = 20
"""Tokens at each end of a piece that are stretched to frames on their own, so that pieces of a stream fit together."""


@dataclass(frozen=True)
class FlowConfig:
    input_size: int
    mel: int
    """Bands of a mel frame."""
    speaker_size: int
    tokens: int
    token_rate: int
    """Tokens of a second."""
    regulator: int
    """Convolutions of the length regulator."""
    guidance: float
    encoder: EncoderConfig
    estimator: EstimatorConfig

    def frames(self, tokens: int) -> int:
        return int(tokens / self.token_rate * SAMPLE_RATE / HOP)


def read_config(top: Section) -> FlowConfig:
    """Raises LoadError."""
    section = top.section("flow", "MaskedDiffWithXvec")
    section.require("input_frame_rate", [50])
    mel = section.integer("output_size")
    regulator = section.section("length_regulator", "InterpolateRegulator")
    regulator.require("channels", [mel])
    ratios = regulator.integers("sampling_ratios")
    if set(ratios) != {1}:
        raise regulator.error("sampling_ratios", f"is {ratios}; this version supports only ones")
    decoder = section.section("decoder", "ConditionalCFM")
    flow = decoder.section("cfm_params").section("content")
    flow.require("solver", ["euler"])
    flow.require("t_scheduler", ["cosine"])
    return FlowConfig(
        input_size=section.integer("input_size"),
        mel=mel,
        speaker_size=section.integer("spk_embed_dim"),
        tokens=section.integer("vocab_size"),
        token_rate=section.integer("input_frame_rate", 50),
        regulator=len(ratios),
        guidance=flow.number("inference_cfg_rate"),
        encoder=encoder.read_config(section.section("encoder", "ConformerEncoder"), legacy=False),
        estimator=estimator.read_config(decoder.section("estimator", "ConditionalDecoder")),
    )


class LengthRegulator(nn.Module):
    """Stretches what the encoder says of tokens to mel frames."""

    def __init__(self, channels: int, layers: int) -> None:
        super().__init__()
        convolutions: list[nn.Module] = []
        for _ in range(layers):
            convolutions += [nn.Conv1d(channels, channels, 3, padding=1), nn.GroupNorm(1, channels), nn.Mish()]
        self.model = nn.Sequential(*convolutions, nn.Conv1d(channels, channels, 1))

    def forward(self, parts: list[tuple[Tensor, int]]) -> Tensor:
        """Each part [1, C, tokens] stretched to its number of frames, joined, smoothed: [1, C, frames]."""
        stretched = [functional.interpolate(part, size=size, mode="linear") for part, size in parts if size]
        out: Tensor = self.model(torch.cat(stretched, dim=2))
        return out


class _Decoder(nn.Module):
    """``decoder.estimator`` is its name in the files."""

    def __init__(self, config: EstimatorConfig) -> None:
        super().__init__()
        self.estimator = Estimator(config)


@dataclass(frozen=True)
class Prompt:
    """A piece of the speaker's own speech: ``tokens`` [1, S] and the ``mel`` frames [1, P, mel] of the same sound."""

    tokens: Tensor
    mel: Tensor


@dataclass(frozen=True)
class Condition:
    """What the steps go by: ``mu`` and ``prompt`` [1, mel, T], ``speaker`` [1, mel]."""

    mu: Tensor
    speaker: Tensor
    prompt: Tensor


class Flow(nn.Module):
    def __init__(self, config: FlowConfig) -> None:
        super().__init__()
        self.config = config
        self.input_embedding = nn.Embedding(config.tokens, config.input_size)
        self.spk_embed_affine_layer = nn.Linear(config.speaker_size, config.mel)
        self.encoder = Encoder(config.encoder)
        self.encoder_proj = nn.Linear(config.encoder.width, config.mel)
        self.decoder = _Decoder(config.estimator)
        self.length_regulator = LengthRegulator(config.mel, config.regulator)

    def encode(self, tokens: Tensor, speaker: Tensor, prompt: Prompt | None = None) -> Condition:
        """The condition for ``tokens`` [1, N] and a voice [1, speaker_size]; the prompt's frames come first."""
        everything = tokens if prompt is None else torch.cat([prompt.tokens, tokens], dim=1)
        encoded = self.encoder_proj(self.encoder(self.input_embedding(everything.clamp(min=0)))).transpose(1, 2)
        mu = self.length_regulator(self._parts(encoded, tokens.shape[1], prompt))
        vector = functional.normalize(speaker.float(), dim=1).to(mu.dtype)
        known = torch.zeros_like(mu)
        if prompt is not None:
            known[:, :, : prompt.mel.shape[1]] = prompt.mel.transpose(1, 2)
        return Condition(mu, self.spk_embed_affine_layer(vector), known)

    def steps(self, noise: Tensor, condition: Condition) -> Iterator[Tensor]:
        """The frames [1, mel, T] on their way from ``noise``, float32, after each step; the last are the result."""
        times = [1 - math.cos(math.pi / 2 * step / STEPS) for step in range(STEPS + 1)]
        span = torch.tensor(times, dtype=torch.float32)
        x, time = noise.float(), span[0]
        for step in range(STEPS):
            change = span[step + 1] - time
            x = x + change.item() * self._direction(x, time, condition)
            time = time + change
            yield x

    def _direction(self, x: Tensor, time: Tensor, condition: Condition) -> Tensor:
        """With guidance: both answers come of one call, the first row with the condition and the second without."""

        def pair(given: Tensor) -> Tensor:
            return torch.cat([given, torch.zeros_like(given)])

        kind = condition.mu.dtype
        answer: Tensor = self.decoder.estimator(
            x.to(kind).expand(2, -1, -1),
            pair(condition.mu),
            time.to(x.device).expand(2),
            pair(condition.speaker),
            pair(condition.prompt),
        )
        answer = answer.float()
        rate = self.config.guidance
        return (1 + rate) * answer[:1] - rate * answer[1:]

    def _parts(self, encoded: Tensor, count: int, prompt: Prompt | None) -> list[tuple[Tensor, int]]:
        """What is stretched apart: the prompt, and of a long piece its ends, so that they come out alike everywhere."""
        before = encoded.shape[2] - count
        own = encoded[:, :, before:]
        frames = self.config.frames(count)
        edge = self.config.frames(EDGE)
        parts = [] if prompt is None else [(encoded[:, :, :before], prompt.mel.shape[1])]
        if count <= 2 * EDGE:
            return [*parts, (own, frames)]
        middle = (own[:, :, EDGE : count - EDGE], frames - 2 * edge)
        return [*parts, (own[:, :, :EDGE], edge), middle, (own[:, :, count - EDGE :], edge)]
