"""One request as metrics and the access log see it. It travels in the ASGI scope."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

KEY = "quintet.observation"


@dataclass
class Observation:
    """What is known of a request so far. Routes fill in ``model`` once they know it."""

    service: str
    endpoint: str = ""
    model: str = ""
    code: int = 0
    started: float = field(default_factory=time.perf_counter)
    first_output: float | None = None
    usage: dict[str, float] = field(default_factory=dict)

    def use(self, unit: str, amount: float) -> None:
        """Add to what the request costs. Units: prompt_tokens, completion_tokens, images, characters, audio_seconds,
        vectors, scores."""
        self.usage[unit] = self.usage.get(unit, 0) + amount

    def mark_first_output(self) -> None:
        """Call when the first piece of the answer exists: a token, an image, an audio chunk."""
        if self.first_output is None:
            self.first_output = time.perf_counter() - self.started


def observation_of(scope: Any) -> Observation:
    """The observation of an ASGI scope or a Request; a loose one where the app is not instrumented."""
    found = scope.get(KEY)
    return found if isinstance(found, Observation) else Observation("")
