"""``python -m quintet_vision [models.yml]``: the vision service alone."""

from quintet_common.server import main

from quintet_vision.api.results import SERVICE
from quintet_vision.app import KINDS, create

main(SERVICE, KINDS, create)
