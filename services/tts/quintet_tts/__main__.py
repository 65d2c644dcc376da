"""``python -m quintet_tts [models.yml]``: the speech service alone."""

from quintet_common.server import main

from quintet_tts.app import KINDS, create

main("tts", KINDS, create)
