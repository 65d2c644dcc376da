"""Which paths are forwarded, and which kinds of models answer there when a request names none."""

from __future__ import annotations

from dataclasses import dataclass

from quintet_common.errors import ApiError

_TEXT = ("chat", "multimodal")
_SCORE = ("rerank", "embedding")


@dataclass(frozen=True, slots=True)
class Path:
    """A path without ``/v1``. Listing what is forwarded keeps the upstreams' private paths private.

    ``standard`` paths are served under ``/v1`` by every OpenAI server; the others keep the form that the client used.
    ``ask_all`` is for what only one of several upstreams has: without a model, those that answer 404 are passed over.
    What ``open`` paths lead to has names that nobody can guess, and browsers open it without a key.
    """

    label: str
    method: str = "POST"
    kinds: tuple[str, ...] = ()
    standard: bool = True
    ask_all: bool = False
    open: bool = False

    @property
    def methods(self) -> tuple[str, ...]:
        """What it may be asked with. HEAD is asked as GET, and the answer's body is kept back."""
        return ("GET", "HEAD") if self.method == "GET" else (self.method,)


class NotAllowed(ApiError):
    """405, with what is allowed."""

    def __init__(self, method: str, path: Path) -> None:
        super().__init__(405, f"{method} is not allowed on this path.")
        self._allowed = ", ".join(path.methods)

    @property
    def headers(self) -> dict[str, str]:
        return super().headers | {"allow": self._allowed}


_EXACT = {
    path.label: path
    for path in (
        Path("/chat/completions", kinds=_TEXT),
        Path("/completions", kinds=_TEXT),
        Path("/responses", kinds=_TEXT),
        Path("/responses/input_tokens", kinds=_TEXT),
        Path("/messages", kinds=_TEXT),
        Path("/embeddings", kinds=("embedding",)),
        Path("/moderations", ask_all=True),
        Path("/rerank", kinds=_SCORE, standard=False),
        Path("/score", kinds=_SCORE, standard=False),
        Path("/classify", standard=False),
        Path("/pooling", standard=False),
        Path("/tokenize", kinds=(*_TEXT, "embedding"), standard=False),
        Path("/detokenize", kinds=(*_TEXT, "embedding"), standard=False),
        Path("/images/generations", kinds=("image",)),
        Path("/images/edits", kinds=("image",)),
        Path("/images/variations", kinds=("image",)),
        Path("/audio/speech", kinds=("tts",)),
        Path("/audio/voices", "GET", kinds=("tts",)),
        Path("/audio/models", "GET", kinds=("tts",)),
        Path("/audio/transcriptions"),
        Path("/audio/translations"),
    )
}
_FILES = "/images/files/"
_FILE = Path(_FILES + "{id}", "GET", kinds=("image",), ask_all=True, open=True)


_BY_PATH = {prefix + label: path for label, path in _EXACT.items() for prefix in ("", "/v1")}
FORWARDED = {path.encode(): entry for path, entry in _BY_PATH.items()}
"""The entries by what usually stands in a request line."""


def find_path(path: str) -> Path | None:
    """The entry for a request's path, with or without ``/v1``; None when the router does not forward it."""
    found = _BY_PATH.get(path)
    if found is not None:
        return found
    name = path.removeprefix("/v1").removeprefix(_FILES)
    return _FILE if path.endswith(_FILES + name) and name and "/" not in name and name not in (".", "..") else None
