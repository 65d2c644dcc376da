"""The vocoder: mel frames in, sound out. A source of harmonics at the pitch is shaped by a network in the spectrum.

After HiFTNet (arXiv:2309.09493). Everything is float32, since an error of the pitch adds up along the phase.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from quintet_tts.cosyvoice.settings import Section

LARGEST_MAGNITUDE = 100.0


@dataclass(frozen=True)
class HiftConfig:
    mel: int
    channels: int
    sample_rate: int
    harmonics: int
    """Sines of the source, the one at the pitch included."""
    loudness: float
    """Of each sine."""
    noise: float
    """Standard deviation of what is added to a voiced source."""
    voiced: float
    """Hz, above which there is a voice."""
    rates: tuple[int, ...]
    kernels: tuple[int, ...]
    window: int
    hop: int
    block_kernels: tuple[int, ...]
    block_dilations: tuple[tuple[int, ...], ...]
    source_kernels: tuple[int, ...]
    source_dilations: tuple[tuple[int, ...], ...]
    slope: float
    limit: float
    """Of the absolute value of a sample."""
    pitch_channels: int

    @property
    def frame(self) -> int:
        """Samples of a mel frame."""
        return math.prod(self.rates) * self.hop


def read_config(top: Section) -> HiftConfig:
    """Raises LoadError."""
    section = top.section("hift", "HiFTGenerator")
    spectrum = section.section("istft_params")
    pitch = section.section("f0_predictor", "ConvRNNF0Predictor")
    pitch.require("num_class", [1])
    return HiftConfig(
        mel=section.integer("in_channels"),
        channels=section.integer("base_channels"),
        sample_rate=section.integer("sampling_rate"),
        harmonics=section.integer("nb_harmonics") + 1,
        loudness=section.number("nsf_alpha"),
        noise=section.number("nsf_sigma"),
        voiced=section.number("nsf_voiced_threshold"),
        rates=tuple(section.integers("upsample_rates")),
        kernels=tuple(section.integers("upsample_kernel_sizes")),
        window=spectrum.integer("n_fft"),
        hop=spectrum.integer("hop_len"),
        block_kernels=tuple(section.integers("resblock_kernel_sizes")),
        block_dilations=tuple(tuple(each) for each in section.integer_lists("resblock_dilation_sizes")),
        source_kernels=tuple(section.integers("source_resblock_kernel_sizes")),
        source_dilations=tuple(tuple(each) for each in section.integer_lists("source_resblock_dilation_sizes")),
        slope=section.number("lrelu_slope"),
        limit=section.number("audio_limit"),
        pitch_channels=pitch.integer("cond_channels"),
    )


class _Snake(nn.Module):
    """x + sin^2(a x) / a, with an ``alpha`` for each channel (arXiv:2006.08195)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        alpha = self.alpha.reshape(1, -1, 1)
        return x + torch.sin(x * alpha) ** 2 / (alpha + 1e-9)


class _Residual(nn.Module):
    def __init__(self, channels: int, kernel: int, dilations: tuple[int, ...]) -> None:
        super().__init__()

        def convolution(dilation: int) -> nn.Module:
            return nn.Conv1d(channels, channels, kernel, dilation=dilation, padding=dilation * (kernel - 1) // 2)

        self.convs1 = nn.ModuleList(convolution(dilation) for dilation in dilations)
        self.convs2 = nn.ModuleList(convolution(1) for _ in dilations)
        self.activations1 = nn.ModuleList(_Snake(channels) for _ in dilations)
        self.activations2 = nn.ModuleList(_Snake(channels) for _ in dilations)

    def forward(self, x: Tensor) -> Tensor:
        for layers in zip(self.activations1, self.convs1, self.activations2, self.convs2, strict=True):
            change = x
            for layer in layers:
                change = layer(change)
            x = x + change
        return x


class _Pitch(nn.Module):
    """The pitch [1, T] in Hz of mel frames [1, mel, T]; 0 where there is no voice."""

    def __init__(self, config: HiftConfig) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for index in range(5):
            before = config.pitch_channels if index else config.mel
            layers += [nn.Conv1d(before, config.pitch_channels, 3, padding=1), nn.ELU()]
        self.condnet = nn.Sequential(*layers)
        self.classifier = nn.Linear(config.pitch_channels, 1)

    def forward(self, mel: Tensor) -> Tensor:
        out: Tensor = self.classifier(self.condnet(mel).transpose(1, 2)).squeeze(-1)
        return out.abs()


class _Source(nn.Module):
    """Mixes the sines; ``l_linear`` is its name in the files."""

    def __init__(self, harmonics: int) -> None:
        super().__init__()
        self.l_linear = nn.Linear(harmonics, 1)

    def forward(self, sines: Tensor) -> Tensor:
        return torch.tanh(self.l_linear(sines.transpose(1, 2)).transpose(1, 2))


class Hift(nn.Module):
    def __init__(self, config: HiftConfig) -> None:
        super().__init__()
        self.config = config
        base, stages = config.channels, len(config.rates)
        bins = config.window + 2
        self.m_source = _Source(config.harmonics)
        self.f0_predictor = _Pitch(config)
        self.conv_pre = nn.Conv1d(config.mel, base, 7, padding=3)
        self.ups = nn.ModuleList()
        self.source_downs = nn.ModuleList()
        self.source_resblocks = nn.ModuleList()
        self.resblocks = nn.ModuleList()
        for stage, (rate, kernel) in enumerate(zip(config.rates, config.kernels, strict=True)):
            width = base >> (stage + 1)
            self.ups.append(nn.ConvTranspose1d(base >> stage, width, kernel, rate, padding=(kernel - rate) // 2))
            # The source comes in the resolution of the last stage.
            down = math.prod(config.rates[stage + 1 :])
            shape = (1, 1, 0) if down == 1 else (2 * down, down, down // 2)
            self.source_downs.append(nn.Conv1d(bins, width, shape[0], shape[1], padding=shape[2]))
            self.source_resblocks.append(_Residual(width, config.source_kernels[stage], config.source_dilations[stage]))
            for block, dilations in zip(config.block_kernels, config.block_dilations, strict=True):
                self.resblocks.append(_Residual(width, block, dilations))
        self.conv_post = nn.Conv1d(base >> stages, bins, 7, padding=3)

    def forward(self, mel: Tensor, generator: torch.Generator, known: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Sound [1, N] and its source [1, 1, N] of ``mel`` [1, mel, T], N = T x frame.

        ``known`` is the source of the first samples, of the piece before: with it the phase goes on without a break.
        """
        source = self.source(self.f0_predictor(mel), *self.chance(mel.shape[2], generator))
        if known is not None:
            source[:, :, : known.shape[2]] = known[:, :, : source.shape[2]]
        return self.decode(mel, source), source

    def chance(self, frames: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """The random phases [1, harmonics, 1] and the noise [1, harmonics, N] of a source."""
        weight, count = self.conv_pre.weight, self.config.harmonics
        phase = (torch.rand(1, count, 1, generator=generator) * 2 - 1) * math.pi
        phase[:, 0] = 0
        noise = torch.randn(1, count, frames * self.config.frame, generator=generator)
        return phase.to(weight.device), noise.to(weight.device)

    def source(self, pitch: Tensor, phase: Tensor, noise: Tensor) -> Tensor:
        """The source [1, 1, N] for ``pitch`` [1, T]: harmonics where there is a voice, noise everywhere."""
        out: Tensor = self.m_source(self.sines(pitch, phase, noise))
        return out

    def sines(self, pitch: Tensor, phase: Tensor, noise: Tensor) -> Tensor:
        """[1, harmonics, N]; see ``source``."""
        config = self.config
        pitch = pitch.repeat_interleave(config.frame, dim=1).unsqueeze(1)
        multiples = torch.arange(1, config.harmonics + 1, device=pitch.device).reshape(1, -1, 1)
        turns = torch.cumsum(pitch * multiples / config.sample_rate, dim=2) % 1
        sines = config.loudness * torch.sin(2 * math.pi * turns + phase)
        voiced = (pitch > config.voiced).float()
        amount = voiced * config.noise + (1 - voiced) * config.loudness / 3
        return sines * voiced + amount * noise

    def decode(self, mel: Tensor, source: Tensor) -> Tensor:
        """Sound [1, N] of mel frames and their source."""
        shape = self.shape(mel, self.spectrum(source))
        bins = self.config.window // 2 + 1
        magnitude = shape[:, :bins].exp().clamp(max=LARGEST_MAGNITUDE)
        # The network gives the sine of an angle, which is then taken for the angle: so it was trained.
        angle = shape[:, bins:].sin()
        spectrum = torch.complex(magnitude * angle.cos(), magnitude * angle.sin())
        sound = torch.istft(spectrum, self.config.window, self.config.hop, window=self._window(mel))
        return sound.clamp(-self.config.limit, self.config.limit)

    def spectrum(self, source: Tensor) -> Tensor:
        """Real, then imaginary parts [1, window + 2, columns] of a source's short-time spectrum."""
        config = self.config
        result = torch.stft(
            source[:, 0], config.window, config.hop, window=self._window(source), return_complex=True, center=True
        )
        return torch.cat([result.real, result.imag], dim=1)

    def shape(self, mel: Tensor, source: Tensor) -> Tensor:
        """Logarithms of magnitudes, then angles [1, window + 2, columns], of mel frames and the source's spectrum."""
        config, last = self.config, len(self.ups) - 1
        count = len(config.block_kernels)
        x = self.conv_pre(mel)
        for stage, up in enumerate(self.ups):
            x = up(functional.leaky_relu(x, config.slope))
            if stage == last:
                x = functional.pad(x, (1, 0), mode="reflect")
            x = x + self.source_resblocks[stage](self.source_downs[stage](source))
            blocks = self.resblocks[stage * count : (stage + 1) * count]
            x = torch.stack([block(x) for block in blocks]).mean(dim=0)
        out: Tensor = self.conv_post(functional.leaky_relu(x))
        return out

    def _window(self, like: Tensor) -> Tensor:
        return torch.hann_window(self.config.window, device=like.device)
