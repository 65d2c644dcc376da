"""One request on its way through the engine, and the texts that it is made of."""

from __future__ import annotations

import time
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from quintet_common.worker.host import Emit

from quintet_embed.protocol import EmbedRequest, Request, RerankRequest, Work

Rows = npt.NDArray[np.float32]
"""What the model made of texts: float32, shape [texts, width]."""


class Extra(NamedTuple):
    """What else the model made of one text, as far as its request asked for it."""

    sparse: tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]] | None
    """Token ids, ascending, and their weights."""
    colbert: Rows | None
    """A vector for each token: shape [tokens, width]."""


class Output(NamedTuple):
    rows: Rows
    extras: Sequence[Extra | None] = ()
    """One per row, or nothing at all."""


@dataclass(slots=True)
class Tokens:
    """A text, or a query and a document, as the model reads it. ``types`` are BERT's segment ids, None when all 0.

    ``group`` is the length of the prompt where the model's pooling leaves it out, else 0: a batch has one of them.
    ``sparse`` and ``colbert`` ask for an Extra.
    """

    ids: Sequence[int]
    types: list[int] | None = None
    group: int = 0
    sparse: bool = False
    colbert: bool = False


@dataclass(slots=True)
class Item:
    job: Job
    index: int
    tokens: Tokens
    length: int
    group: int


@dataclass(slots=True, eq=False)
class Job:
    """A request's state. The queue's lock guards what both threads write."""

    id: int
    request: Request
    emit: Emit
    count: int
    """Texts in the request."""
    characters: list[int]
    """Of each text, roughly; what the tokeniser's turns are cut by."""
    arrived: float = field(default_factory=time.monotonic)
    open: bool = True
    """False once it was answered, has failed or was cancelled: its remaining texts are not computed."""
    tokenised: int = 0
    ready: list[Item] = field(default_factory=list)
    """Tokenised texts that wait for the model, the longest last."""
    rows: Rows | None = None
    extras: list[Extra | None] = field(default_factory=list)
    done: int = 0
    prompt_tokens: int = 0
    queue_seconds: float | None = None
    batch_sizes: list[int] = field(default_factory=list)
    token_ids: list[list[int]] = field(default_factory=list)
    """Filled for a TokenizeRequest only, which never reaches the model."""

    def accept(self, found: list[Tokens]) -> None:
        """Take the next tokenised texts."""
        start = self.tokenised
        self.tokenised += len(found)
        self.prompt_tokens += sum(len(tokens.ids) for tokens in found)
        for i, tokens in enumerate(found):
            tokens.ids = array("i", tokens.ids)  # a tenth of a list's memory, for what may wait long
            self.ready.append(Item(self, start + i, tokens, len(tokens.ids), tokens.group))
        self.ready.sort(key=lambda item: item.length)

    def store(self, index: int, row: Rows, extra: Extra | None = None) -> bool:
        """Keep what the model made of text ``index``; True when it was the last one."""
        if self.rows is None:
            self.rows = np.empty((self.count, len(row)), np.float32)
        self.rows[index] = row
        if extra is not None:
            self.extras = self.extras or [None] * self.count
            self.extras[index] = extra
        self.done += 1
        return self.done == self.count

    @property
    def output(self) -> Output:
        """Of all texts, once they are done."""
        assert self.rows is not None
        return Output(self.rows, self.extras)

    @property
    def work(self) -> Work:
        return Work(self.prompt_tokens, self.queue_seconds or 0.0, self.batch_sizes)


def new_job(job_id: int, request: Request, emit: Emit) -> Job:
    sizes: list[int]
    if isinstance(request, RerankRequest):
        sizes = [len(document) + len(request.query) for document in request.documents]
    elif isinstance(request, EmbedRequest) and request.token_ids:
        sizes = [len(ids) for ids in request.token_ids]
    else:
        sizes = [len(text) for text in request.texts]
    return Job(job_id, request, emit, len(sizes), sizes)


def field_of(request: Request) -> str:
    """The request field that holds the texts, for error messages."""
    return "documents" if isinstance(request, RerankRequest) else "input"
