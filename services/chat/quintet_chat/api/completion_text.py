"""One prompt of a text completion request and the choices that continue it."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Literal

from openai.types.completion_choice import CompletionChoice, Logprobs
from quintet_common.observation import Observation
from quintet_common.worker.process import Worker

from quintet_chat.api.generation import accepted, generate
from quintet_chat.api.logprobs import characters, completion_logprobs
from quintet_chat.metrics import Meter
from quintet_chat.protocol import Delta, Event, Finished, Generate, TokenLogprob


@dataclass
class _Candidate:
    texts: list[str] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    reason: Literal["stop", "length"] = "length"
    offset: int = 0
    """Characters streamed so far."""

    @property
    def likelihood(self) -> float:
        """Mean logprob of the tokens: what ``best_of`` chooses by, so that short answers are not favoured."""
        return sum(each.logprob for each in self.logprobs) / max(1, len(self.logprobs))


class Prompt:
    """``first_choice`` is the index of its first choice in the whole answer."""

    def __init__(self, worker: Worker[Event], generation: Generate, seen: Observation, first_choice: int) -> None:
        self.meter = Meter(seen, generation.n)
        self.text: str | None = generation.prompt if isinstance(generation.prompt, str) else None
        self._generation = generation
        self._first_choice = first_choice
        self._events = generate(worker, generation, self.meter)
        self._candidates = [_Candidate() for _ in range(generation.n)]

    async def start(self) -> None:
        """Wait until the worker has taken the prompt."""
        event = await accepted(self._events)
        if self.text is None:
            self.text = event.prompt_text

    async def close(self) -> None:
        await self._events.aclose()

    async def read(self) -> None:
        """Take everything in, for an answer that is sent whole."""
        async for event in self._events:
            if isinstance(event, Delta):
                self._candidates[event.index].texts.append(event.text)
                self._candidates[event.index].logprobs += event.logprobs
            elif isinstance(event, Finished):
                self._candidates[event.index].reason = event.reason

    def choices(self, best: int, with_logprobs: bool) -> list[CompletionChoice]:
        """The ``best`` candidates; all of them in their order where there are no more."""
        ranked = self._candidates
        if len(ranked) > best:
            ranked = sorted(ranked, key=lambda candidate: candidate.likelihood, reverse=True)[:best]
        return [
            CompletionChoice(
                index=self._first_choice + index,
                text=self._echo() + "".join(candidate.texts),
                finish_reason=candidate.reason,
                logprobs=completion_logprobs(candidate.logprobs, 0) if with_logprobs else None,
            )
            for index, candidate in enumerate(ranked)
        ]

    async def stream(self) -> AsyncGenerator[CompletionChoice, None]:
        """The pieces of every choice as they come."""
        if self._generation.echo:
            for index in range(self._generation.n):
                yield self._piece(index, self._echo(), None)
        async for event in self._events:
            if isinstance(event, Delta) and (event.text or event.logprobs):
                yield self._piece(event.index, event.text, None, event.logprobs)
            elif isinstance(event, Finished):
                yield self._piece(event.index, "", event.reason)

    def _piece(
        self, index: int, text: str, reason: Literal["stop", "length"] | None, tokens: list[TokenLogprob] | None = None
    ) -> CompletionChoice:
        """OpenAI's type knows no unfinished choice, though its streams send them; hence no validation here."""
        candidate = self._candidates[index]
        logprobs: Logprobs | None = completion_logprobs(tokens, candidate.offset) if tokens else None
        candidate.offset += characters(tokens or [])
        return CompletionChoice.model_construct(
            index=self._first_choice + index, text=text, finish_reason=reason, logprobs=logprobs
        )

    def _echo(self) -> str:
        return (self.text or "") if self._generation.echo else ""
