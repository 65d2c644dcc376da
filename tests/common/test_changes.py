"""Files that are watched: when they are said to have changed."""

from __future__ import annotations

import os
from pathlib import Path

from quintet_common.changes import settled, stamp


async def test_a_change_counts_once_two_looks_have_seen_the_same() -> None:
    looks = ["old", "half", "whole", "whole", "whole", "gone", "gone", "next", "whole", "whole"]
    seen: list[str] = []

    def look() -> str:
        seen.append(looks[len(seen)])
        return seen[-1]

    changes = settled(look, "old", 0)
    for change, after in (("whole", 4), ("gone", 7), ("whole", 10)):
        assert await anext(changes) == change
        assert len(seen) == after


async def test_what_changed_before_the_first_look_counts() -> None:
    assert await anext(settled(lambda: "new", "old", 0)) == "new"


def test_a_file_that_is_written_replaced_or_removed_has_another_stamp(tmp_path: Path) -> None:
    file, new = tmp_path / "a", tmp_path / "b"
    seen = [stamp(file)]
    assert seen == [None]
    file.write_text("a")
    seen.append(stamp(file))
    file.write_text("ab")
    seen.append(stamp(str(file)))
    new.write_text("cd")
    os.utime(new, ns=(file.stat().st_atime_ns, file.stat().st_mtime_ns))
    os.replace(new, file)
    seen.append(stamp(file))
    assert len(set(seen)) == 4
    assert stamp(file) == seen[-1]
