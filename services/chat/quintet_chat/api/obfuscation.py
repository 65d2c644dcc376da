"""Random characters beside a streamed piece, so that the sizes of a stream's packets tell less of its words."""

from __future__ import annotations

import secrets

_STEP = 32
"""Pieces with what is added are as long as a multiple of this, in characters."""


def obfuscation(length: int) -> str:
    """For a piece of ``length`` characters."""
    added = -length % _STEP
    return secrets.token_urlsafe(added)[:added]
