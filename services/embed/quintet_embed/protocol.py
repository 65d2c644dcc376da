"""What the service asks of a model's process, and what comes back: one event per request.

Vectors travel as one blob of little-endian float32, so that the service can hand them on without touching a number.
"""

from __future__ import annotations

from typing import Literal

import msgspec

Side = Literal["left", "right"]


class EmbedRequest(msgspec.Struct, tag="embed"):
    """Texts, or the token ids of texts, to turn into vectors; one of the two lists is filled."""

    texts: list[str] = []
    token_ids: list[list[int]] = []
    alone: bool = False
    """The client sent one text, not a list of one; errors name ``input``, not ``input[0]``."""
    dimensions: int | None = None
    truncate: bool = False
    truncation_side: Side = "right"
    """The side that loses tokens when ``truncate`` is set."""
    prompt_name: str | None = None
    normalize: bool | None = None
    """None leaves it to the model's own modules."""
    sparse: bool = False
    """Also a weight for each token id that is in the text."""
    colbert: bool = False
    """Also a vector for each token."""


class RerankRequest(msgspec.Struct, tag="rerank"):
    """Documents to score by how well they answer a query."""

    query: str
    documents: list[str]
    truncate: bool = True


class TokenizeRequest(msgspec.Struct, tag="tokenize"):
    texts: list[str]
    add_special_tokens: bool = True


Request = EmbedRequest | RerankRequest | TokenizeRequest


class Work(msgspec.Struct):
    """How a request went through the queue, for the service's metrics."""

    prompt_tokens: int
    queue_seconds: float
    batch_sizes: list[int]
    """Sizes of the batches that this request was the first of; over all requests each batch is told once."""


class Sparse(msgspec.Struct, array_like=True):
    """The token ids of a text, ascending, and what each weighs."""

    indices: bytes
    """int32, little-endian."""
    values: bytes
    """float32, little-endian, all above 0."""


class Vectors(msgspec.Struct, tag="vectors"):
    data: bytes
    """float32, little-endian, shape [inputs, dimensions], in the order of the inputs."""
    dimensions: int
    work: Work
    sparse: list[Sparse] = []
    """One per input; empty when not asked for."""
    colbert: list[bytes] = []
    """One per input: float32, little-endian, shape [tokens, colbert_dimensions]; empty when not asked for."""
    colbert_dimensions: int = 0


class Scores(msgspec.Struct, tag="scores"):
    scores: list[float]
    """One per document, in their order; the higher the better."""
    work: Work


class TokenLists(msgspec.Struct, tag="tokens"):
    token_ids: list[list[int]]


Event = Vectors | Scores | TokenLists
