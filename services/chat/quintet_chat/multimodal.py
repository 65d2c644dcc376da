"""``python -m quintet_chat.multimodal``: the multimodal service alone; the chat service's code with models that see."""

from functools import partial

from quintet_common.server import main

from quintet_chat.app import create_app

if __name__ == "__main__":
    main("multimodal", {"multimodal"}, partial(create_app, "multimodal"))
