"""What a person sees: columns that line up, bars, lines."""

from __future__ import annotations

import contextlib
import io
import os
from typing import Any

import pytest
from quintet.terminal.screen import Progress, Screen
from quintet.terminal.table import cut, pad, table, width


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_wide_characters_count_twice_and_marks_not_at_all() -> None:
    assert width("中文女") == 6
    assert width("e\u0301") == 1
    assert pad("模型", 6) == "模型  "


@pytest.mark.parametrize(
    ("text", "columns", "result"), [("abcdef", 4, "abc…"), ("中文女声", 6, "中文…"), ("ab", 2, "ab")]
)
def test_cut_never_takes_more_than_the_columns(text: str, columns: int, result: str) -> None:
    assert cut(text, columns) == result
    assert width(result) <= columns


def test_table_columns_start_at_the_same_place_with_chinese_names() -> None:
    lines = table(("model", "kind"), [("小模型", "chat"), ("small", "tts")])
    assert [width(line[: line.index(word)]) for line, word in zip(lines[2:], ("chat", "tts"), strict=True)] == [8, 8]
    assert lines[0].index("kind") == 8


def loading(fraction: float, note: str = "") -> list[Progress]:
    return [Progress("m", "loading", fraction, note)]


def test_bars_are_drawn_over_and_lines_stay_above_them() -> None:
    out = Terminal()
    screen = Screen(out)
    screen.progress(loading(0.25))
    screen.say("news")
    screen.progress(loading(0.5))
    screen.end_progress()
    screen.say("done")
    assert visible(out.getvalue()) == ["news", "done"]
    assert "25%" in out.getvalue()
    assert "50%" in out.getvalue()


def test_a_bar_is_not_wider_than_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """A line that wraps could not be drawn over."""
    monkeypatch.setenv("COLUMNS", "40")
    out = Terminal()
    Screen(out).progress(loading(0.5, "a note that says far more than fits into forty columns"))
    assert width(out.getvalue().rstrip("\n")) < 40


def test_without_a_terminal_only_news_is_printed() -> None:
    out = io.StringIO()
    screen = Screen(out)
    for step in range(101):
        screen.progress(loading(step / 100, f"layer {step} of 100"))
    lines = out.getvalue().splitlines()
    assert [line.split("  ")[0] for line in lines] == [f"m: loading {percent}%" for percent in (0, 25, 50, 75, 100)]
    assert "\x1b" not in out.getvalue()


def test_a_reader_that_has_left_stops_nothing() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    out = open(writer, "w")  # noqa: SIM115  # closing it fails, as its last flush does
    screen = Screen(out)
    screen.say("nobody reads this")
    screen.progress(loading(0.5))
    screen.say("nor this")
    with contextlib.suppress(BrokenPipeError):
        out.close()


def visible(output: str) -> list[str]:
    """The lines that a terminal shows in the end; it knows the two movements that are used."""
    lines: list[Any] = [""]
    for part in output.replace("\x1b[J", "\x00").split("\n"):
        lines[-1] += part
        while "\x1b[" in lines[-1]:
            text, _, rest = lines[-1].partition("\x1b[")
            up, _, rest = rest.partition("A")
            assert text == ""
            lines = lines[: -1 - int(up)]
            lines.append(rest.replace("\x00", ""))
        lines.append("")
    return [line for line in lines if line]
