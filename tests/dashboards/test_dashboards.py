"""The dashboards and the rules as files: fresh, well formed, and about metrics that exist."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, cast

import pytest
import yaml
from quintet_common.models_yml import ModelSpec
from quintet_common.worker.process import Worker

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
    import quintet_chat.metrics
    import quintet_embed.metrics
    import quintet_tts.metrics
    import quintet_vision.api.results
    from quintet_common import metrics
    from quintet_router.configuration import Reloads
    from quintet_router.metrics import Metrics

    assert all((quintet_chat.metrics, quintet_embed.metrics, quintet_tts.metrics, quintet_vision.api.results))
    worker: Worker[Any] = Worker(ModelSpec(id="m", kind="chat", path="p"), "none:none", dict)
    worker.stats = dict.fromkeys(_engine_stats(), 0.0)
    router = Metrics(list)
    router.cell("m", "/e", "u").codes[200] = 1
    router.use("key", "m", {"requests": 1})
    families = [
        *metrics.registry.collect(),
        *metrics.WorkerCollector("test", [worker]).collect(),
        *router.collect(),
        *Reloads.metrics(cast(Reloads, _Reloaded())),
    ]
    suffixes = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"], "gauge": [""]}
    names = {family.name + suffix for family in families for suffix in suffixes.get(family.type, [""])}
    recorded = {rule["record"] for rule in _rules() if "record" in rule}
    return frozenset(names | recorded | {"up", "ALERTS"})


class _Reloaded:
    successful, succeeded_at = True, 0.0


def _engine_stats() -> set[str]:
    """What engines report beside the metrics that are declared: read in their source, for to run them needs models."""
    found: set[str] = set()
    for file in ROOT.glob("services/*/quintet_*/**/*.py"):
        text = file.read_text()
        found |= {f"{name}_total" for name in re.findall(r'counters\["(\w+)"\]', text)}
        if stats := re.search(r"def stats\(self\).*?(?=\n    def |\n    # |\Z)", text, re.DOTALL):
            found |= set(re.findall(r'"(\w+)":', stats[0]))
    return found


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
