"""What a person sees: columns that line up, bars, lines."""

from __future__ import annotations

import contextlib
import io
import os
from typing import Any

import pytest
from quintet.supervisor import welcome
from quintet.supervisor.states import ModelState
from quintet.terminal.screen import Progress, Screen
from quintet.terminal.table import columns_of, cut, pad, table, width, wrap


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_wide_characters_count_twice_and_marks_not_at_all() -> None:
    assert width("中文女") == 6
    assert width("e\u0301") == 1
    assert width("❤\ufe0f\u200d") == 1
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


@pytest.mark.parametrize(
    ("text", "columns", "lines"),
    [
        ("Qwen/Qwen2-7B-Instruct", 12, ["Qwen/Qwen2-", "7B-Instruct"]),
        ("it ends: no memory", 8, ["it ends:", "no", "memory"]),
        ("abcdefghij", 4, ["abcd", "efgh", "ij"]),
        ("中文女声中", 5, ["中文", "女声", "中"]),
        ("", 4, [""]),
    ],
)
def test_text_is_wrapped_between_its_parts_where_that_can_be(text: str, columns: int, lines: list[str]) -> None:
    assert wrap(text, columns) == lines


LONG = [
    ("一个名字很长的中文模型用来看表格会不会乱掉", "chat", "", "failed"),
    ("a-model-with-a-name-as-long-as-people-make-them", "embedding", "", "ready"),
]
REASON = "the folder /模型/某个目录 has no config.json, so it is no folder of a model, or not all of one."


@pytest.mark.parametrize("columns", [100, 80, 50])
def test_a_table_fits_into_its_terminal_and_reasons_are_below(columns: int) -> None:
    lines = table(("model", "kind", "weights", "state"), LONG, columns, {0: REASON})
    assert max(map(width, lines)) <= columns
    kinds = [
        width(line[: line.index(word)]) for line in lines for word in ("kind", "chat", "embedding") if word in line
    ]
    assert len(kinds) == 3
    assert len(set(kinds)) == 1
    below = [line for line in lines if line.startswith("  ")]
    assert "".join(below).replace(" ", "") == REASON.replace(" ", "")
    assert "".join(line.split(" ")[0] for line in lines[2:] if not line[0].isascii()) == LONG[0][0]


def test_columns_without_a_word_are_left_out_only_where_there_is_no_room() -> None:
    header = ("model", "kind", "weights", "state")
    assert "weights" in table(header, LONG, 200)[0]
    assert "weights" not in table(header, LONG, 60)[0]


def test_without_a_terminal_a_row_is_one_line_of_any_length() -> None:
    assert columns_of(io.StringIO()) is None
    lines = table(("model", "kind", "weights", "state"), LONG, None, {0: REASON})
    assert len(lines) == 4
    assert lines[2].endswith(f"failed: {REASON}")
    assert width(lines[1]) < width(lines[2]), "the rule is as long as the columns"


@pytest.mark.parametrize("columns", [None, 80])
def test_a_reason_names_its_model_once(columns: int | None) -> None:
    states = [ModelState("m", "chat", "auto", "failed", 0, "m: /a has no config.json.")]
    told = "\n".join(welcome.lines("http://h:1", states, {}, None, False, columns))
    assert ("failed: /a has no config.json." if columns is None else "failed\n  /a has no config.json.") in told


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


def test_why_a_model_failed_is_left_to_its_service_and_the_table() -> None:
    out = io.StringIO()
    screen = Screen(out)
    for reason in ("no hub answers", "still none"):
        screen.progress([Progress("m", "failed", 0, reason)])
    assert out.getvalue() == "m: failed\n"


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
