"""``python -m quintet_embed [models.yml]``: the embed service alone."""

from quintet_common.server import main

from quintet_embed.app import KINDS, create_app
from quintet_embed.metrics import SERVICE

main(SERVICE, KINDS, create_app)
