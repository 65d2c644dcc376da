"""A request on its way through the engine, and the choices (sequences) that it asks for."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any, Literal

from quintet_common.worker.host import Emit

from quintet_chat.engine.pictures import Pictures
from quintet_chat.engine.seeded import Stream
from quintet_chat.protocol import Generate, Sampling, Started


@dataclass(eq=False)
class Request:
    """One Generate, prepared: its prompt as tokens, its grammar compiled, its limits known."""

    id: int
    body: Generate
    emit: Emit
    arrived: float
    """``time.monotonic()`` at submission."""
    prompt: list[int] = field(default_factory=list)
    pictures: Pictures | None = None
    """Those of the prompt, if it has any."""
    max_tokens: int = 0
    """New tokens per choice, within the context."""
    stop_ids: frozenset[int] = frozenset()
    """Tokens that end a choice and leave no text."""
    thinking: Literal["open", "closed"] | None = None
    """The tag of the model's thinking that the prompt ends with."""
    grammar: Any = None
    """A ``grammar.Compiled``, or None."""
    sequences: list[Sequence] = field(default_factory=list)
    cancelled: bool = False
    """Set by any thread; the scheduler drops the request at its next step."""
    started: bool = False
    """Whether its first prefill has begun; used by the model thread alone."""
    open_choices: int = 0
    """Choices without a Finished; used by the output thread alone."""
    ended: bool = False
    """Whether the service was told of the end; used by the output thread alone."""

    def start(self, cached: int) -> None:
        """Tell the service that the request's turn has come, and how many tokens of its prompt need no computing.

        Only the first time, when it was evicted in between.
        """
        if not self.started:
            self.started = True
            self.emit(Started(time.monotonic() - self.arrived, cached))

    @property
    def sampling(self) -> Sampling:
        return self.body.sampling


class Sequence:
    """One choice being generated. Used by the model thread alone, but for ``stopped``."""

    def __init__(self, request: Request, index: int, matcher: Any = None) -> None:
        seed = request.sampling.seed
        self.request = request
        self.index = index
        self.matcher = matcher
        """A ``grammar.Matcher`` or ``gate.GatedMatcher`` that has accepted ``tokens``, or None."""
        self.tokens: list[int] = []
        """What was generated so far."""
        self.counts: Counter[int] = Counter()
        """How often each generated token occurs; kept for penalties."""
        self.cached = 0
        """How many tokens of prompt + answer have their keys and values in the cache."""
        self.cuts: list[int] = []
        """Behind which of its tokens a prefill stops, for what is known then to be kept."""
        self.stopped = False
        """Set by any thread: the sequence takes no further step."""
        self.stream = Stream(seed, index) if seed is not None else None
        """Its own random numbers, when the request has a seed."""

    @property
    def context(self) -> list[int]:
        """Prompt and answer so far, which is what a prefill must compute."""
        return self.request.prompt + self.tokens if self.tokens else self.request.prompt

    @property
    def text(self) -> list[Hashable] | list[int]:
        """Prompt and answer so far as what tells them apart from others: pictures by their content."""
        pictures = self.request.pictures
        return self.context if pictures is None else pictures.text + self.tokens

    @property
    def shift(self) -> int:
        """What is added to the number of a generated token to get its position: pictures count for less, or more."""
        pictures = self.request.pictures
        return 0 if pictures is None else pictures.shift

    @property
    def length(self) -> int:
        return len(self.request.prompt) + len(self.tokens)

    @property
    def longest(self) -> int:
        """The tokens it may come to."""
        return len(self.request.prompt) + self.request.max_tokens

    @property
    def gone(self) -> bool:
        return self.stopped or self.request.cancelled

    def draw(self) -> float:
        """A number in [0, 1) for a sequence without a seed."""
        return random.random()
