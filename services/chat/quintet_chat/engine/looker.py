"""The vision tower beside the steps of the model: on a CPU it takes as long as many, and answers go on meanwhile."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor, wait

from quintet_chat.engine.pictures import Picture
from quintet_chat.engine.runner import Runner


class Looker:
    """Has pictures looked at, one at a time. For the model thread.

    On a GPU a picture takes milliseconds, and what is recorded there (padded.py) allows no other thread.
    """

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._thread = ThreadPoolExecutor(1, "vision") if runner.device.type == "cpu" else None
        self._under_way: tuple[Picture, Future[None]] | None = None

    def look(self, picture: Picture, patience: float) -> None:
        """Begin with a picture, or wait for it, at most ``patience`` seconds. It is done when the picture is ``seen``.

        Raises RuntimeError, as ``Runner.look`` does.
        """
        if self._thread is None:
            self._runner.look(picture)
            return
        if self._under_way is None or self._under_way[0] is not picture:
            self._under_way = (picture, self._thread.submit(self._runner.look, picture))
        future = self._under_way[1]
        wait([future], patience)
        if future.done():
            self._under_way = None
            future.result()

    def close(self) -> None:
        """End the thread."""
        if self._thread is not None:
            self._thread.shutdown()
