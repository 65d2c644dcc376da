"""What exists in Chinese says what the English document says, part by part, as far as names, figures and links tell."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest
from docs.markdown import DOCUMENTS, LINK, destination, links, parts

CHINESE = [file for file in DOCUMENTS if file.name.endswith(".zh-CN.md")]


def english(file: Path) -> Path:
    return file.with_name(file.name.replace(".zh-CN.md", ".md"))


def kind(part: str) -> str:
    """What a part is, which for code is all that it says but its comments."""
    return re.sub(r"# .*", "#", part) if part.startswith("```") else re.findall(r"^(?:#+ |- |\||!|)", part)[0]


def names(part: str) -> set[str]:
    """What stands in backquotes is code in both languages, but for the placeholder in a path."""
    return {name.replace("端口/", "PORT/") for name in re.findall(r"`([^`\n]+)`", part)}


def figures(part: str) -> set[str]:
    plain = re.sub(rf"`[^`\n]+`|{LINK}", "", part).replace(",", "")
    return set(re.findall(r"\d+(?:\.\d+)?", plain))


def leads_to(file: Path, part: str) -> Counter[tuple[Path, int | None]]:
    """The English documents, and the numbers of their headings: both languages have the same."""
    places = (destination(file, target) for target in links(part))
    return Counter((english(there), heading) for there, heading in places)


@pytest.mark.parametrize("file", CHINESE, ids=lambda file: file.name)
def test_both_languages_say_the_same(file: Path) -> None:
    original = english(file)
    for there, here in zip(parts(original), parts(file), strict=False):
        assert kind(there) == kind(here), f"{there}\n\n{here}"
        if there.startswith("```"):
            continue
        assert names(there) == names(here), f"{there}\n\n{here}"
        assert figures(there) == figures(here), f"{there}\n\n{here}"
        assert leads_to(original, there) == leads_to(file, here), f"{there}\n\n{here}"
    assert len(parts(original)) == len(parts(file))


@pytest.mark.parametrize("file", CHINESE, ids=lambda file: file.name)
def test_each_language_begins_with_a_link_to_the_other(file: Path) -> None:
    assert f"[English]({english(file).name})" in parts(file)[:3]
    assert f"[中文]({file.name})" in parts(english(file))[:3]


@pytest.mark.parametrize("file", CHINESE, ids=lambda file: file.name)
def test_links_of_chinese_documents_lead_to_chinese_ones_where_there_are(file: Path) -> None:
    text = file.read_text(encoding="utf-8").replace(f"[English]({english(file).name})", "")
    in_chinese = {english(other) for other in CHINESE}
    assert not [target for target in links(text) if destination(file, target)[0] in in_chinese]


def test_the_chinese_readme_says_which_documents_are_chinese() -> None:
    (row,) = [part for part in parts(CHINESE[0]) if part.startswith("| `docs/`")]
    linked = dict(re.findall(r"\[([^\]]+)\]\(([^)]+)\)", row))
    titles = [title for title, target in linked.items() if target.endswith(".zh-CN.md")]
    assert len(titles) == len(CHINESE) - 1
    assert row.endswith(f"；其中 {'、'.join(titles)}是中文，其余是英文 |")
