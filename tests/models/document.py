"""``docs/models.md`` and its Chinese sister as the families say them. ``python -m models.document`` in ``tests`` writes
both."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from models.chat_families import FAMILIES, Family
from models.other_families import OTHERS, Other
from models.wordings import WORDINGS, Wording

CHAT = "kind: {kind}, path: {example}"
DOCS = Path(__file__).parents[2] / "docs"


def render(wording: Wording) -> str:
    loaded = [family for family in FAMILIES if family.refused is None]
    refused = [family for family in FAMILIES if family.refused is not None]
    chat, why, others = wording.columns
    text = wording.head + _table(chat, (_chat_row(family, wording) for family in loaded)) + wording.refused
    text += _table(why, (_refused_row(family, wording) for family in refused))
    for kind, title in wording.titles.items():
        text += f"\n## {title}\n\n"
        text += _table(others, (_other_row(other, wording) for other in OTHERS if other.kind == kind))
    return text


def _chat_row(family: Family, wording: Wording) -> tuple[str, ...]:
    return (
        wording.of(family.name), _memory(family.parameters), _or_none(family.tools), _or_none(family.thinking),
        _entry(family.example),
    )  # fmt: skip


def _refused_row(family: Family, wording: Wording) -> tuple[str, ...]:
    entry = _entry(family.example, f"{CHAT}, engine: vllm")
    return wording.of(family.name), wording.why(family.refused or ""), entry


def _other_row(other: Other, wording: Wording) -> tuple[str, ...]:
    entry = _entry(other.example, other.entry, other.kind)
    return wording.of(other.name), _memory(other.parameters, other.width), entry, wording.of(other.note)


def _entry(example: str, form: str = CHAT, kind: str = "chat") -> str:
    name = example.rpartition("/")[2].removesuffix(".onnx")
    return f"`- {{id: {name}, {form.format(kind=kind, example=example)}}}`"


def _memory(parameters: float, width: int = 2) -> str:
    size = parameters * width
    return f"{size:.0f} GB" if size >= 10 else f"{size:.1f} GB" if size >= 1 else f"{size * 1000:.0f} MB"


def _or_none(name: str | None) -> str:
    return "-" if name is None else f"`{name}`"


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


if __name__ == "__main__":
    for each in WORDINGS:
        (DOCS / each.file).write_text(render(each), encoding="utf-8")
