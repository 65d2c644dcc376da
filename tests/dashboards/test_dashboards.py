"""The dashboards and the rules as files: fresh, well formed, and about metrics that exist."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from dashboards.exported import SUFFIXES, of_services, of_the_router

ROOT = Path(__file__).resolve().parents[2]
FILES = ROOT / "helm" / "quintet" / "files"
DASHBOARDS = sorted((FILES / "dashboards").glob("*.json"))
RULES = sorted((FILES / "rules").glob("*.yml"))


def dashboard(file: Path) -> dict[str, Any]:
    return dict(json.loads(file.read_text()))


def panels(file: Path) -> list[dict[str, Any]]:
    return [panel for panel in dashboard(file)["panels"] if panel["type"] != "row"]


@cache
def exported() -> frozenset[str]:
    """Every name that a service or the router has on ``/metrics``, and those that the rules record."""
    families = (*of_services(), *of_the_router())
    names = {family.name + suffix for family in families for suffix in SUFFIXES.get(family.type, [""])}
    recorded = {rule["record"] for rule in _rules() if "record" in rule}
    return frozenset(names | recorded | {"up", "ALERTS"})


def _rules() -> list[dict[str, Any]]:
    return [rule for file in RULES for group in yaml.safe_load(file.read_text())["groups"] for rule in group["rules"]]


def names_in(expression: str) -> Iterator[str]:
    """The metrics of a query: what is left without strings, selectors, ranges, and labels that are grouped by."""
    bare = re.sub(r'"[^"]*"', '""', expression)
    bare = re.sub(r"\{[^}]*\}|\[[^\]]*\]|\b(by|without|on)\s*\([^)]*\)", " ", bare)
    yield from re.findall(r"\b(?:quintet|process|up\b|ALERTS)[\w:]*", bare)


def test_the_dashboards_are_what_their_source_makes(tmp_path: Path) -> None:
    subprocess.run([sys.executable, str(ROOT / "scripts" / "dashboards"), str(tmp_path)], check=True)
    made = {file.name: file.read_text() for file in tmp_path.iterdir()}
    assert made == {file.name: file.read_text() for file in DASHBOARDS}, "run python scripts/dashboards"


def test_the_command_tells_its_usage_and_where_it_cannot_write(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "scripts" / "dashboards")]
    told = subprocess.run([*command, "--help"], capture_output=True, text=True, check=True)
    assert "FOLDER" in told.stdout
    missing = subprocess.run([*command, str(tmp_path / "no")], capture_output=True, text=True, check=False)
    assert missing.returncode == 2
    assert missing.stderr.endswith(f"{tmp_path / 'no'} is not a folder\n")


def test_there_is_one_for_each_kind_and_one_for_all() -> None:
    names = {file.stem for file in DASHBOARDS}
    assert names == {"overview", "router", "chat", "images", "speech", "embeddings", "gpu"}
    assert len({dashboard(file)["uid"] for file in DASHBOARDS}) == len(names)


@pytest.mark.parametrize("file", DASHBOARDS, ids=lambda file: file.stem)
def test_a_dashboard_is_whole(file: Path) -> None:
    data = dashboard(file)
    variables = [each["name"] for each in data["templating"]["list"]]
    assert variables[0] == "datasource"
    text = json.dumps([data["panels"], data["templating"]])
    used = set(re.findall(r"\$\{?(\w+)", text)) - {"__rate_interval", "__range", "__all"}
    assert used == set(variables)
    taken: set[tuple[int, int]] = set()
    for panel in data["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24, panel["title"]
        taken |= cells
    assert len({panel["id"] for panel in data["panels"]}) == len(data["panels"])


@pytest.mark.parametrize("file", DASHBOARDS, ids=lambda file: file.stem)
def test_a_panel_has_a_unit_and_says_what_to_make_of_it(file: Path) -> None:
    found = panels(file)
    assert 8 <= len(found) <= 20, "few enough to be read"
    for panel in found:
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        assert panel["description"].endswith("."), panel["title"]
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        assert panel["targets"], panel["title"]


@pytest.mark.parametrize("file", [file for file in DASHBOARDS if file.stem != "gpu"], ids=lambda file: file.stem)
def test_a_panel_names_metrics_that_exist(file: Path) -> None:
    for panel in panels(file):
        for target in panel["targets"]:
            names = list(names_in(target["expr"]))
            assert names, target["expr"]
            assert not set(names) - exported(), panel["title"]


def test_rules_name_metrics_that_exist() -> None:
    for rule in _rules():
        names = list(names_in(rule["expr"]))
        assert names or re.search("DCGM_|kubelet_", rule["expr"]), rule
        assert not set(names) - exported(), rule


def test_the_chart_scales_by_metrics_that_exist() -> None:
    text = (ROOT / "helm" / "quintet" / "templates" / "autoscaling.yaml").read_text()
    (pattern,) = re.findall(r'__name__=~"([^"]+)"', text)
    assert sum(bool(re.fullmatch(pattern, name)) for name in exported()) == 3
    assert "quintet_num_requests_running" in exported()


def test_the_gpu_dashboard_and_its_alerts_agree_with_the_made_up_exporter() -> None:
    from dashboards.scraping import GPUS

    (file,) = [file for file in DASHBOARDS if file.stem == "gpu"]
    asked = set(re.findall(r"DCGM_\w+", file.read_text() + "".join(rule["expr"] for rule in _rules())))
    assert asked == GPUS.keys()


def test_an_alert_says_how_urgent_it_is_what_is_wrong_and_what_to_do() -> None:
    for rule in _rules():
        if "alert" in rule:
            assert rule["labels"]["severity"] in ("critical", "warning")
            assert rule["annotations"].keys() == {"summary", "description"}
            assert rule["annotations"]["description"].endswith(".")
