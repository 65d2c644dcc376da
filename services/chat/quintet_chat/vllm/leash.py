"""Becomes the command in its arguments, which then ends when its parent ends, however that comes about.

    python -m quintet_chat.vllm.leash PARENT COMMAND…

The parent is the thread that started it (Linux counts threads here), which has to live as long as the command.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main(parent: int, command: list[str]) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() == parent:  # else it has died meanwhile, and no signal will come
        os.execvp(command[0], command)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
