"""docs/monitoring.md lists every metric that a service or the router has, and no other."""

from __future__ import annotations

import re
from collections.abc import Iterable

import pytest
from dashboards.exported import of_services, of_the_router
from docs.markdown import ROOT
from prometheus_client.core import Metric

LIST = (ROOT / "docs" / "monitoring.md").read_text().partition("\n## Metrics\n")[2]
SERVICES, ROUTER = LIST.split("\nThe router, with all its labels")
ROW = r"^\| `(\w+)` \| (\w+) \| (.*?) ?\| .+ \|$"


def listed(part: str) -> list[tuple[str, str]]:
    return sorted((name, kind) for name, kind, _ in re.findall(ROW, part, re.MULTILINE))


def made(families: Iterable[Metric]) -> list[tuple[str, str]]:
    ours = [family for family in families if family.name.startswith("quintet_")]
    return sorted((family.name + "_total" * (family.type == "counter"), family.type) for family in ours)


@pytest.mark.parametrize(("part", "families"), [(SERVICES, of_services()), (ROUTER, of_the_router())])
def test_every_metric_is_listed_once_with_its_type(part: str, families: tuple[Metric, ...]) -> None:
    assert listed(part) == made(families)


def test_the_router_s_labels_are_those_that_are_listed() -> None:
    labels = {name: set(re.findall(r"`(\w+)`", shown)) for name, _, shown in re.findall(ROW, ROUTER, re.MULTILINE)}
    for family in of_the_router():
        name = family.name + "_total" * (family.type == "counter")
        for sample in family.samples:
            assert sample.labels.keys() - {"le", "service"} == labels[name], name


def test_each_says_what_it_is() -> None:
    for family in (*of_services(), *of_the_router()):
        assert " " in family.documentation, family.name
        assert not family.documentation.endswith("of the engine"), family.name
