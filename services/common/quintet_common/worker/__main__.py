"""``python -m quintet_common.worker FD package.module:factory MODEL``: a model's process, started by its service."""

import sys

from quintet_common.worker.host import main

main(int(sys.argv[1]), sys.argv[2])
