"""Half characters: JSON can write one half of a surrogate pair alone (``"\\ud800"``), which is no text in any encoding.

No tokenizer reads it, no answer can repeat it and no worker can be sent it, so a body with one is refused where it is
read, whatever the field.
"""

from __future__ import annotations

from typing import Any

from quintet_common.errors import ApiError, bad_request, param_path

_Trail = tuple["_Trail", str | int] | None
"""The way to a value: that to what holds it, and its key or index there."""


def half_in(body: Any) -> ApiError | None:
    """The refusal of a JSON value in which a string or a key has half a character; None where there is none."""
    todo: list[tuple[Any, _Trail]] = [(body, None)]
    while todo:
        value, trail = todo.pop()
        if isinstance(value, str):
            if not is_text(value):
                return _refused(trail, "half a character is in it")
        elif isinstance(value, dict):
            if not all(map(is_text, value)):
                return _refused(trail, "half a character is in the name of a field")
            todo += [(each, (trail, key)) for key, each in value.items()]
        elif isinstance(value, list):
            todo += [(each, (trail, index)) for index, each in enumerate(value)]
    return None


def is_text(text: str) -> bool:
    """Whether ``text`` consists of whole characters."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _refused(trail: _Trail, what: str) -> ApiError:
    path: list[str | int] = []
    while trail is not None:
        trail, part = trail
        path.insert(0, part)
    param = param_path(path)
    return bad_request(f"{param or 'The body'}: {what}: a lone surrogate is not text.", param or None, "invalid_value")
