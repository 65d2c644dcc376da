"""Grafana's JSON, as little of it as a dashboard needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Json = dict[str, Any]
SOURCE: Json = {"type": "prometheus", "uid": "${datasource}"}
WIDE = 24


@dataclass(frozen=True)
class Panel:
    """One panel. ``queries`` maps a legend to its PromQL; ``steps`` are (value, colour) from which the colour holds.

    ``what`` says what is seen and what to do about it; people on call read it by hovering over the panel's title.
    """

    title: str
    unit: str
    what: str
    queries: Mapping[str, str]
    kind: str = "timeseries"
    width: int = 8
    height: int = 8
    steps: Sequence[tuple[float, str]] = ()
    stacked: bool = False
    most: float | None = None

    def json(self, number: int, x: int, y: int) -> Json:
        defaults: Json = {"unit": self.unit, "min": 0}
        if self.most is not None:
            defaults["max"] = self.most
        if self.kind == "timeseries":
            defaults["custom"] = self._lines()
        return {
            "id": number,
            "type": self.kind,
            "title": self.title,
            "description": self.what,
            "datasource": SOURCE,
            "gridPos": {"x": x, "y": y, "w": self.width, "h": self.height},
            "fieldConfig": {"defaults": defaults, "overrides": self._thresholds()},
            "options": self._options(),
            "targets": [self._target(chr(65 + n), *item) for n, item in enumerate(self.queries.items())],
        } | (_COLUMNS if self.kind == "table" else {})

    def _thresholds(self) -> list[Json]:
        """As an override of all fields: among the defaults Grafana's own types take no ``mode`` that is plain JSON."""
        if not self.steps:
            return []
        steps: list[Json] = [{"color": "green", "value": None}]
        steps += [{"color": colour, "value": value} for value, colour in self.steps]
        properties = [{"id": "thresholds", "value": {"mode": "absolute", "steps": steps}}]
        return [{"matcher": {"id": "byRegexp", "options": "/.*/"}, "properties": properties}]

    def _lines(self) -> Json:
        lines: Json = {"lineWidth": 1, "fillOpacity": 10, "showPoints": "never"}
        if self.stacked:
            lines |= {"stacking": {"mode": "normal", "group": "A"}, "fillOpacity": 40}
        if self.steps:
            lines["thresholdsStyle"] = {"mode": "dashed"}
        return lines

    def _options(self) -> Json:
        if self.kind == "timeseries":
            legend = {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []}
            return {"legend": legend, "tooltip": {"mode": "multi", "sort": "desc"}}
        if self.kind == "table":
            return {"showHeader": True}
        calculated = {"calcs": ["lastNotNull"], "fields": "", "values": False}
        colours = "background" if self.steps else "none"
        return {"reduceOptions": calculated, "colorMode": colours, "graphMode": "area", "textMode": "auto"}

    def _target(self, letter: str, legend: str, expr: str) -> Json:
        target: Json = {"refId": letter, "datasource": SOURCE, "expr": expr, "legendFormat": legend}
        if self.kind == "table":
            target |= {"instant": True, "format": "table"}
        return target


_COLUMNS: Json = {
    "transformations": [{"id": "organize", "options": {"excludeByName": {"Time": True}}}],
}


@dataclass(frozen=True)
class Board:
    """A dashboard: rows of panels by their titles. ``variables`` maps a name to the query for its values."""

    name: str
    title: str
    rows: Mapping[str, Sequence[Panel]]
    variables: Mapping[str, str] = field(default_factory=dict)

    def json(self) -> Json:
        return {
            "uid": f"quintet-{self.name}",
            "title": self.title,
            "tags": ["quintet"],
            "schemaVersion": 41,
            "version": 1,
            "editable": True,
            "refresh": "30s",
            "time": {"from": "now-1h", "to": "now"},
            "timezone": "browser",
            "annotations": {"list": []},
            "links": [_LINKS],
            "templating": {"list": [_DATASOURCE, *(_variable(*item) for item in self.variables.items())]},
            "panels": self._panels(),
        }

    def _panels(self) -> list[Json]:
        panels: list[Json] = []
        y = 0
        for title, row in self.rows.items():
            place = {"x": 0, "y": y, "w": WIDE, "h": 1}
            panels.append({"id": len(panels) + 1, "type": "row", "title": title, "gridPos": place, "panels": []})
            x, y, height = 0, y + 1, 0
            for panel in row:
                if x + panel.width > WIDE:
                    x, y, height = 0, y + height, 0
                panels.append(panel.json(len(panels) + 1, x, y))
                x, height = x + panel.width, max(height, panel.height)
            y += height
        return panels


_LINKS: Json = {
    "asDropdown": True,
    "icon": "external link",
    "includeVars": False,
    "keepTime": True,
    "tags": ["quintet"],
    "targetBlank": False,
    "title": "Quintet",
    "tooltip": "",
    "type": "dashboards",
    "url": "",
}
_DATASOURCE: Json = {"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus"}


def _variable(name: str, query: str) -> Json:
    return {
        "name": name,
        "label": name.capitalize(),
        "type": "query",
        "datasource": SOURCE,
        "query": {"query": query, "refId": name},
        "refresh": 2,
        "sort": 1,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"text": "All", "value": "$__all"},
    }
