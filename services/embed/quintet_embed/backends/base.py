"""What the engine asks of a loaded model."""

from __future__ import annotations

from typing import Any, Protocol

from quintet_embed.engine.job import Output, Tokens
from quintet_embed.protocol import Event, Request, Work


class DeviceLost(Exception):
    """The device can compute nothing more for this process; only a new process helps."""


class Backend(Protocol):
    """A loaded model, as the engine uses it. ``tokenise`` runs on one thread, ``forward`` and ``finish`` on another."""

    batch_tokens: int
    """Padded tokens of a batch beyond which more do not make the model faster."""
    waste_tokens: int
    """Padding that costs about what another forward pass costs."""
    info: dict[str, Any]

    def check(self, request: Request) -> None:
        """Raise ApiError for a request that this model cannot do; cheap."""

    def tokenise(self, request: Request, start: int, stop: int) -> list[Tokens]:
        """Texts ``start`` to ``stop`` of a request. Raises ApiError for one that the model cannot read."""

    def forward(self, batch: list[Tokens]) -> Output:
        """One row per text, and the extras that some ask for. Raises DeviceLost when the process is of no more use."""

    def finish(self, request: Request, output: Output, work: Work) -> Event:
        """The answer, from the output for all texts in their order."""
