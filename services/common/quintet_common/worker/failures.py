"""What the log says of a model that cannot be loaded and is tried again and again."""

from __future__ import annotations

import logging

log = logging.getLogger("quintet")


def named_once(note: str, name: str) -> str:
    """``note``, for where the model's ``name`` is said already."""
    return note.removeprefix(f"{name}: ")


class Failures:
    """Of one model. What fails for the same reason as before is told in few words, and not aloud."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._last: str | None = None
        self._level = logging.WARNING

    def tell(self, note: str) -> None:
        """Loading failed, for the reason in ``note``."""
        if note == self._last:
            self._level = logging.INFO
            log.info("%s failed to load as before", self._name)
        else:
            self._level = logging.WARNING
            log.error("%s failed to load: %s", self._name, named_once(note, self._name))
        self._last = note

    def tell_next(self, seconds: float) -> None:
        """It is tried again in so many ``seconds``."""
        log.log(self._level, "%s: worker ended, starting it again in %.1f s", self._name, seconds)

    def forget(self) -> None:
        """It could be loaded."""
        self._last, self._level = None, logging.WARNING
