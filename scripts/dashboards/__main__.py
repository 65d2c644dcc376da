"""Write Quintet's dashboards: ``python scripts/dashboards [FOLDER]``, by default where chart and compose take them."""

from __future__ import annotations

import argparse
import json
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


def main() -> None:
    parser = argparse.ArgumentParser(prog="python scripts/dashboards", description="Write Quintet's dashboards.")
    where = "where they go (default: helm/quintet/files/dashboards, where chart and compose take them)"
    parser.add_argument("folder", nargs="?", type=Path, default=FOLDER, metavar="FOLDER", help=where)
    folder = parser.parse_args().folder
    if not folder.is_dir():
        parser.error(f"{folder} is not a folder")
    for board in BOARDS:
        (folder / f"{board.name}.json").write_text(json.dumps(board.json(), indent=1) + "\n")


if __name__ == "__main__":
    main()
