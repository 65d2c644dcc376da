"""Conversations as applications hold them: a few system prompts that all share, many turns, people who think between.

Made from a seed, so that every run sees the same ones. The shapes are those of three kinds of applications: a help desk
(long system prompt, short turns), a chat (short one, longer turns), and an agent (tools, and their long results).
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

WORDS = """
the of and to in a is that for it as was with be by on not he this are or his from at which but have an had they you
were their one all we can her has there been if more when will would who so no out up into them then she my order
account refund invoice shipping address battery screen update error login password reset contract delivery function
class return value test branch merge commit deploy cluster memory tensor kernel cache queue request
""".split()  # noqa: SIM905
BYTES_PER_TOKEN = 4


@dataclass(frozen=True)
class Shape:
    """Sizes are ranges in words, ``turns`` a range of requests, ``pause`` the mean seconds between them."""

    systems: int
    system: tuple[int, int]
    turns: tuple[int, int]
    said: tuple[int, int]
    answered: tuple[int, int]
    pause: float
    tools: int = 0


HELP_DESK = Shape(systems=12, system=(800, 2500), turns=(2, 8), said=(10, 60), answered=(60, 200), pause=25)
CHAT = Shape(systems=4, system=(20, 200), turns=(1, 12), said=(15, 300), answered=(100, 500), pause=30)
AGENT = Shape(systems=4, system=(600, 1500), turns=(6, 30), said=(80, 900), answered=(30, 150), pause=3, tools=12)
MIX = ((HELP_DESK, 0.5), (CHAT, 0.35), (AGENT, 0.15))


@dataclass(frozen=True)
class Turn:
    """One request: when it comes after the conversation's start if every answer came at once, and its body."""

    conversation: int
    pause: float
    body: bytes
    answer_tokens: int


class Recording:
    """``conversations`` of them, from ``seed``."""

    def __init__(self, conversations: int, seed: int = 1) -> None:
        self._random = random.Random(seed)
        self._count = conversations
        self._systems = {id(shape): [self._text(shape.system) for _ in range(shape.systems)] for shape, _ in MIX}
        self._tools = {id(shape): [self._tool(n) for n in range(shape.tools)] for shape, _ in MIX}

    def __iter__(self) -> Iterator[list[Turn]]:
        shapes, shares = zip(*MIX, strict=True)
        for number in range(self._count):
            yield list(self._turns(number, self._random.choices(shapes, shares)[0]))

    def _turns(self, number: int, shape: Shape) -> Iterator[Turn]:
        systems = self._systems[id(shape)]
        # A few applications have most of the users.
        system = self._random.choices(systems, [1 / (rank + 1) for rank in range(len(systems))])[0]
        messages: list[dict[str, Any]] = [{"role": "system", "content": system}]
        for turn in range(self._random.randint(*shape.turns)):
            role = "tool" if shape.tools and turn else "user"
            messages.append({"role": role, "content": self._text(shape.said)})
            body: dict[str, Any] = {"model": "m", "messages": messages, "stream": True}
            if shape.tools:
                body["tools"] = self._tools[id(shape)]
            answer = self._text(shape.answered)
            pause = self._random.expovariate(1 / shape.pause) if turn else 0.0
            yield Turn(number, pause, json.dumps(body).encode(), len(answer) // BYTES_PER_TOKEN)
            messages.append({"role": "assistant", "content": answer})

    def _text(self, size: tuple[int, int]) -> str:
        return " ".join(self._random.choices(WORDS, k=self._random.randint(*size)))

    def _tool(self, number: int) -> dict[str, Any]:
        parameters = {
            "type": "object",
            "properties": {"query": {"type": "string", "description": self._text((20, 60))}},
        }
        function = {"name": f"tool_{number}", "description": self._text((20, 60)), "parameters": parameters}
        return {"type": "function", "function": function}
