"""``python -m quintet_chat``: the chat service alone."""

from functools import partial

from quintet_common.server import main

from quintet_chat.app import create_app

if __name__ == "__main__":
    main("chat", {"chat"}, partial(create_app, "chat"))
