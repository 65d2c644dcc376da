"""What docs/kubernetes.md and docs/monitoring.md show is right, and both languages say the same."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from helm.charts import CHART, ROOT, render

DOCUMENTS = [ROOT / "docs" / name for name in ("kubernetes.md", "monitoring.md")]


def chinese(file: Path) -> Path:
    return file.with_suffix(".zh-CN.md")


def blocks(file: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", file.read_text(), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("file", DOCUMENTS, ids=lambda file: file.stem)
def test_the_values_that_are_shown_are_taken(file: Path, tmp_path: Path) -> None:
    shown = blocks(file, "yaml")
    assert shown
    for number, block in enumerate(shown):
        values = tmp_path / f"{number}.yaml"
        values.write_text(block)
        assert len(render("-f", str(values))) > 10


@pytest.mark.parametrize("file", DOCUMENTS, ids=lambda file: file.stem)
def test_keys_that_are_named_exist(file: Path) -> None:
    """``router.keys.existingSecret`` and its like; with a value or without."""
    known = yaml.safe_load((CHART / "values.yaml").read_text())
    for named in set(re.findall(r"`((?:\w+\.)+\w+)(?:=[^`]*)?`", file.read_text())):
        parts = named.split(".")
        if parts[0] not in known:
            continue
        at = known
        for part in parts:
            assert part in at or at == {}, named  # what is empty here takes the keys of models.yml or of Kubernetes
            at = at.get(part, {})


def test_every_alert_is_explained() -> None:
    groups = yaml.safe_load((CHART / "files" / "rules" / "alerts.yml").read_text())["groups"]
    alerts = {rule["alert"]: rule["labels"]["severity"] for group in groups for rule in group["rules"]}
    for file in (DOCUMENTS[1], chinese(DOCUMENTS[1])):
        assert dict(re.findall(r"^\| `(Quintet\w+)` \| (\w+) \|", file.read_text(), re.MULTILINE)) == alerts


def test_pictures_are_small() -> None:
    pictures = list((ROOT / "docs" / "pictures").glob("*.png"))
    assert len(pictures) == 7
    assert all(file.stat().st_size < 150_000 for file in pictures)
