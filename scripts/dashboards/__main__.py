"""Write Quintet's dashboards: ``python scripts/dashboards [FOLDER]``, by default where chart and compose take them."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import chat
import embeddings
import gpu
import images
import overview
import router
import speech

FOLDER = Path(__file__).resolve().parents[2] / "helm" / "quintet" / "files" / "dashboards"

BOARDS = [each.BOARD for each in (overview, router, chat, images, speech, embeddings, gpu)]

if __name__ == "__main__":
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER
    for board in BOARDS:
        (folder / f"{board.name}.json").write_text(json.dumps(board.json(), indent=1) + "\n")
