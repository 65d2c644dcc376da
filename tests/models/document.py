"""``docs/models.md`` as the families say it. ``python -m models.document`` in ``tests`` writes it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from models.chat_families import FAMILIES, Family
from models.other_families import OTHERS, Other

CHAT = "kind: {kind}, path: {example}"
FILE = Path(__file__).parents[2] / "docs" / "models.md"
_HEAD = """\
# Models

Which families of models are known to work, and what to write into models.yml for them. The tests in `tests/models`
write this file (`make docs-models`), and fail when it says something else than they find. What is tried is a small
random model of the same architecture, in the layout in which the family is published. None of the published weights
were at hand, so nothing is said here about how good answers are.

**Memory** is an estimate of the weights alone: about as many parameters as the makers state, times two bytes
(bfloat16). Chat models need room for keys and values besides (`kv_memory` in [config.md](config.md#engine_args)),
images for what is drawn. `quintet check` says what the files on your disk need.

## Chat

Each loads, and its greedy answers in float32 are token by token those of transformers' own `generate()`. *Tool calls*
is how the model writes them and *thinking* how it sets its thinking apart ([chat.md](chat.md#tools)), as its template
is known; `-` is none that is read.

"""
_REFUSED = """\

Refused by name at load are models with layers that read anything but keys and values of all tokens before, or of a
window of them. Run these with [`engine: vllm`](vllm.md).

"""
_OTHERS = {
    "multimodal": "Pictures",
    "image": "Images",
    "tts": "Speech",
    "embedding": "Embeddings",
    "rerank": "Reranking",
}


def render() -> str:
    loaded = [family for family in FAMILIES if family.refused is None]
    refused = [family for family in FAMILIES if family.refused is not None]
    text = _HEAD + _table(("family", "memory", "tool calls", "thinking", "entry"), map(_chat_row, loaded)) + _REFUSED
    text += _table(("family", "why", "entry"), map(_refused_row, refused))
    for kind, title in _OTHERS.items():
        text += f"\n## {title}\n\n"
        rows = (_other_row(other) for other in OTHERS if other.kind == kind)
        text += _table(("family", "memory", "entry", "remarks"), rows)
    return text


def _chat_row(family: Family) -> tuple[str, ...]:
    return (
        family.name, _memory(family.parameters), _or_none(family.tools), _or_none(family.thinking),
        _entry(family.example),
    )  # fmt: skip


def _refused_row(family: Family) -> tuple[str, ...]:
    return family.name, f"layers of the kind `{family.refused}`", _entry(family.example, f"{CHAT}, engine: vllm")


def _other_row(other: Other) -> tuple[str, ...]:
    return other.name, _memory(other.parameters), _entry(other.example, other.entry, other.kind), other.note


def _entry(example: str, form: str = CHAT, kind: str = "chat") -> str:
    return f"`- {{id: {example.rpartition('/')[2]}, {form.format(kind=kind, example=example)}}}`"


def _memory(parameters: float) -> str:
    size = parameters * 2
    return f"{size:.0f} GB" if size >= 10 else f"{size:.1f} GB" if size >= 1 else f"{size * 1000:.0f} MB"


def _or_none(name: str | None) -> str:
    return "-" if name is None else f"`{name}`"


def _table(head: Iterable[str], rows: Iterable[tuple[str, ...]]) -> str:
    head = tuple(head)
    lines = [head, ("---",) * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


if __name__ == "__main__":
    FILE.write_text(render(), encoding="utf-8")
