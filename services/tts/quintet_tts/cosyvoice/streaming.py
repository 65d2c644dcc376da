"""From the tokens of a sentence to its sound, chunk by chunk, while the language model still speaks.

Each chunk of tokens overlaps the next, and so do their mel frames and their samples; where they overlap, one is faded
into the other. Noise and condition of the overlap are those of the chunk before, and so is the source of the vocoder,
so that both sides of the seam are alike.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Protocol

import torch
from quintet_common.engine_args import LONGEST_CHUNK
from torch import Tensor
from torch.nn import functional

from quintet_tts.cosyvoice.decoding import Utterance
from quintet_tts.cosyvoice.files import Models, Speaker
from quintet_tts.cosyvoice.flow import HOP, STEPS, Condition, Prompt

OVERLAP = 20
"""Tokens that a chunk shares with the next."""

CHUNK = LONGEST_CHUNK
"""Tokens of a chunk beside the overlap: two seconds."""

VOCODER_OVERLAP = 20
"""Mel frames that the vocoder reads again, and whose samples are faded."""


class Turn(Protocol):
    def __call__(self) -> AbstractContextManager[None]:
        """The right to compute one step; raises to give up between two."""


def chunks(utterance: Utterance, first: int, sound: Sound, turn: Turn) -> Iterator[Tensor]:
    """The sound [N] of ``utterance``. The first chunk has ``first`` tokens, each later one up to twice as many."""
    start, size = 0, first
    while utterance.wait(start + size + OVERLAP) >= start + size + OVERLAP:
        yield sound.chunk(utterance.tokens[start : start + size + OVERLAP], turn)
        start += size
        size = min(2 * size, CHUNK)
    yield sound.chunk(utterance.tokens[start:], turn, final=True)


class Sound:
    """What becomes of the chunks of one sentence. ``speed`` is the pace: frames are stretched, the pitch is not."""

    def __init__(self, models: Models, speaker: Speaker, speed: float, seed: int) -> None:
        self._models = models
        self._device = models.hift.conv_pre.weight.device
        self._speaker = speaker.flow_embedding.to(self._device)
        prompt = speaker.prompt
        self._prompt = None if prompt is None else Prompt(prompt.tokens.to(self._device), prompt.mel.to(self._device))
        self._prompt_frames = 0 if self._prompt is None else self._prompt.mel.shape[1]
        self._speed = speed
        self._generator = torch.Generator().manual_seed(seed)
        self._overlap = models.flow.config.frames(OVERLAP)
        self._known: tuple[Tensor, Tensor] | None = None
        """Noise and ``mu`` of the prompt and of the overlap with the chunk before."""
        self._held_mel: Tensor | None = None
        self._heard: tuple[Tensor, Tensor, Tensor] | None = None
        """Mel frames and source that the vocoder has used last, and the samples of them that are held back."""

    def chunk(self, tokens: list[int], turn: Turn, final: bool = False) -> Tensor:
        """The sound [N] that these tokens bring, on the CPU; ``final`` gives all there is."""
        mel = self._faded(self.mel(tokens, turn), final)
        with turn():
            return self._voiced(mel, final)[0].cpu()

    def mel(self, tokens: list[int], turn: Turn) -> Tensor:
        """The frames [1, mel, T] of these tokens, those of the prompt not among them."""
        flow = self._models.flow
        ids = torch.tensor([tokens], device=self._device)
        with turn():
            given = flow.encode(ids, self._speaker, self._prompt)
            noise, given = self._as_before(self.noise(given.mu.shape[2]), given)
        steps = flow.steps(noise, given)
        for _ in range(STEPS):
            with turn():
                mel = next(steps)
        return mel[:, :, self._prompt_frames :]

    def noise(self, frames: int) -> Tensor:
        """[1, mel, frames], standard normal."""
        shape = (1, self._models.flow.config.mel, frames)
        return torch.randn(shape, generator=self._generator).to(self._device)

    def _as_before(self, noise: Tensor, given: Condition) -> tuple[Tensor, Condition]:
        """With the noise and the ``mu`` that the chunk before had where the two overlap."""
        mu = given.mu
        if self._known is not None:
            size = self._known[0].shape[2]
            noise, mu = (
                torch.cat([old, new[:, :, size:]], dim=2) for old, new in zip(self._known, (noise, mu), strict=True)
            )
        self._known = (self._ends(noise), self._ends(mu))
        return noise, Condition(mu, given.speaker, given.prompt)

    def _ends(self, frames: Tensor) -> Tensor:
        return torch.cat([frames[:, :, : self._prompt_frames], frames[:, :, -self._overlap :]], dim=2)

    def _faded(self, mel: Tensor, final: bool) -> Tensor:
        """The frames for the vocoder: the held ones faded into the first, the last held for the next chunk."""
        if self._held_mel is not None:
            mel = _fade(self._held_mel, mel)
        if not final:
            mel, self._held_mel = mel[:, :, : -self._overlap], mel[:, :, -self._overlap :]
        if self._speed != 1:
            mel = functional.interpolate(mel, size=max(1, int(mel.shape[2] / self._speed)), mode="linear")
        return mel

    def _voiced(self, mel: Tensor, final: bool) -> Tensor:
        """The sound [1, N] of the frames; see ``_faded``."""
        sound: Tensor
        if self._heard is None:
            sound, source = self._models.hift(mel, self._generator)
        else:
            old_mel, old_source, old_sound = self._heard
            mel = torch.cat([old_mel, mel], dim=2)
            sound, source = self._models.hift(mel, self._generator, old_source)
            sound = _fade(old_sound, sound)
        if final:
            return sound
        samples = VOCODER_OVERLAP * HOP
        self._heard = (mel[:, :, -VOCODER_OVERLAP:], source[:, :, -samples:], sound[:, -samples:])
        return sound[:, :-samples]


def _fade(old: Tensor, new: Tensor) -> Tensor:
    """``new`` with its beginning faded in over ``old``, along the last axis, by the halves of a Hamming window."""
    size = old.shape[-1]
    window = torch.hamming_window(2 * size, periodic=False, device=new.device)
    begin = new[..., :size] * window[:size] + old * window[size:]
    return torch.cat([begin, new[..., size:]], dim=-1)
