"""Reads the documents: their parts, and where their links lead."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = [ROOT / "README.md", ROOT / "README.zh-CN.md", *sorted((ROOT / "docs").glob("*.md"))]
LINK = r"\]\(([^)\s]+)\)"


def parts(file: Path) -> list[str]:
    """Headings, paragraphs, items of lists, rows of tables, and blocks of code, in their order."""
    pieces = re.split(r"^(```.*?^```)$", file.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    found = []
    for piece in pieces:
        found += [piece] if piece.startswith("```") else re.split(r"\n\n+|\n(?=\||- |#)", piece)
    return [part for part in map(str.strip, found) if part]


def links(text: str) -> list[str]:
    """The targets of links to this repository's own files."""
    return [target for target in re.findall(LINK, text) if not re.match(r"https?:", target)]


def anchors(file: Path) -> list[str]:
    """What the headings are called in an address, as GitHub does it."""
    titles = [part.lstrip("# ") for part in parts(file) if part.startswith("#")]
    return [re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles]


def destination(file: Path, target: str) -> tuple[Path, int | None]:
    """The file that a link leads to, and the number of the heading in it, if it names one."""
    path, _, anchor = target.partition("#")
    there = (file.parent / path).resolve() if path else file
    assert there.exists(), target
    assert not anchor or anchor in anchors(there), target
    return there, anchors(there).index(anchor) if anchor else None
