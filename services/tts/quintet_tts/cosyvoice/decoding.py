"""Says many sentences at once: one thread, one step of the language model for all of them."""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass

import torch
from torch import Tensor

from quintet_tts.cosyvoice.columns import Columns
from quintet_tts.cosyvoice.lm import SpeechLM
from quintet_tts.cosyvoice.sampling import draw
from quintet_tts.cosyvoice.turns import Turns

SHORTEST, LONGEST = 2, 20
"""Speech tokens for a token of text, at least and at most."""


@dataclass(frozen=True)
class Script:
    """What the language model is to say: ids [1, T], the ``prompt_text`` before them; see ``SpeechLM.prefix``."""

    text: Tensor
    prompt_text: Tensor | None = None
    speaker: Tensor | None = None
    prompt_speech: Tensor | None = None


class Utterance:
    """A sentence on its way through the language model."""

    def __init__(self, script: Script, seed: int, changed: threading.Condition) -> None:
        self.script = script
        self.tokens: list[int] = []
        self.ended = False
        self.stopped = False
        self.generator = torch.Generator().manual_seed(seed)
        self.shortest = script.text.shape[1] * SHORTEST
        self.longest = script.text.shape[1] * LONGEST
        self._error: Exception | None = None
        self._changed = changed

    def wait(self, count: int) -> int:
        """How many tokens there are once there are ``count``, or all. Raises what made the language model fail."""
        with self._changed:
            self._changed.wait_for(lambda: self.ended or len(self.tokens) >= count)
            if self._error is not None:
                raise self._error
            return len(self.tokens)

    def stop(self, error: Exception | None = None) -> None:
        """Say no more; whoever waits goes on."""
        with self._changed:
            self.stopped = True
            if not self.ended:
                self.ended, self._error = True, error
                self._changed.notify_all()


class Decoder:
    """A thread that says what it is given, at most ``rows`` sentences at a time, the others in order."""

    def __init__(self, lm: SpeechLM, turns: Turns, rows: int) -> None:
        self._lm = lm
        self._turns = turns
        self._rows = rows
        self._changed = threading.Condition()
        self._waiting: deque[Utterance] = deque()
        self._said: list[Utterance] = []
        """Row by row, those of ``_columns``."""
        self._columns = Columns(lm.llm)
        threading.Thread(target=self._run, name="language model", daemon=True).start()

    def say(self, script: Script, seed: int) -> Utterance:
        utterance = Utterance(script, seed, self._changed)
        with self._changed:
            self._waiting.append(utterance)
            self._changed.notify_all()
        return utterance

    @property
    def rows(self) -> int:
        """Sentences that are being said now."""
        return len(self._said)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._said)
            try:
                self._drop_ended()
                while len(self._said) < self._rows and self._waiting:
                    self._begin(self._waiting.popleft())
                if self._said:
                    self._step()
            except Exception as error:  # of one of them, or the device is out of memory: all of the batch fail
                for utterance in self._said:
                    utterance.stop(error)
                self._said, self._columns = [], Columns(self._lm.llm)

    @torch.inference_mode()
    def _drop_ended(self) -> None:
        for row in reversed(range(len(self._said))):
            if self._said[row].ended:
                self._columns.remove(row)
                last = self._said.pop()
                if row < len(self._said):
                    self._said[row] = last

    def _begin(self, utterance: Utterance) -> None:
        if utterance.ended:
            return
        try:
            with self._turns.take(urgent=True):
                scores, cache = self._lm.prefill(self._prefix(utterance.script))
                self._append([utterance], scores)
                if not utterance.ended:
                    self._columns.add(cache)
                    self._said.append(utterance)
        except Exception as error:
            utterance.stop(error)
            raise

    def _prefix(self, script: Script) -> Tensor:
        text = script.text if script.prompt_text is None else torch.cat([script.prompt_text, script.text], dim=1)
        device = self._lm.llm_embedding.weight.device
        rest = [None if each is None else each.to(device) for each in (script.speaker, script.prompt_speech)]
        return self._lm.prefix(text.to(device), *rest)

    def _step(self) -> None:
        with self._turns.take(urgent=True):
            last = torch.tensor([utterance.tokens[-1] for utterance in self._said])
            scores = self._lm.step(last.to(self._lm.llm_embedding.weight.device), self._columns)
            self._append(self._said, scores)

    def _append(self, utterances: list[Utterance], scores: Tensor) -> None:
        """Choose the next token of each from the log-probabilities [B, V]."""
        config = self._lm.config
        # Chance is drawn on the CPU, so that a seed means the same on every device.
        chosen = []
        for utterance, row in zip(utterances, scores.cpu(), strict=True):
            if len(utterance.tokens) < utterance.shortest:
                row[config.end] = -torch.inf
            chosen.append(draw(row, utterance.tokens, config.sampling, utterance.generator))
        with self._changed:
            for utterance, token in zip(utterances, chosen, strict=True):
                if token != config.end:
                    utterance.tokens.append(token)
                if token == config.end or len(utterance.tokens) >= utterance.longest:
                    utterance.ended = True
            self._changed.notify_all()
