"""Every panel of every dashboard shows something while the stack has a little of everything to do."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import quote
from urllib.request import urlopen

import pytest
from dashboards.mixed_load import load
from dashboards.scraping import prometheus
from helm.charts import LAB, tool
from stack import ROOT, Stack

SECONDS = 15
CLIENTS = 16
"""More than the models can do at a time: what is scraped must come all the same."""


def test_panels_have_data_under_a_mixed_load(stack: Stack, tmp_path: Path) -> None:
    """The lab's check also holds the files against Grafana's own types. With QUINTET_PICTURES they are drawn there."""
    program, check = tool("prometheus"), LAB / "check-dashboard"
    if not check.exists() or shutil.which("node") is None:
        pytest.skip("what checks dashboards is part of the container lab, which is not here")
    targets = {
        name: stack.service_url(name).removeprefix("http://")
        for name in ("chat", "multimodal", "vision", "tts", "embed")
    }
    targets["router"] = stack.url.removeprefix("http://")
    seconds = float(os.environ.get("QUINTET_LOAD_SECONDS", SECONDS))
    with prometheus(program, tmp_path, targets) as url:
        assert asyncio.run(load(stack.url, seconds, CLIENTS)) > 20
        _every_scrape_came(url)
        options = ["--prometheus", url, "--since", str(int(seconds) + 5)]
        if pictures := os.environ.get("QUINTET_PICTURES"):
            options += ["--render", pictures]
        files = sorted(str(file) for file in (ROOT / "helm" / "quintet" / "files" / "dashboards").glob("*.json"))
        done = subprocess.run(
            [sys.executable, str(check), *options, *files], capture_output=True, text=True, timeout=120, check=False
        )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count(", 0 problems") == len(files)


def _every_scrape_came(url: str) -> None:
    missed = 'count_over_time((up{job="quintet"} == 0)[1m:1s])'
    query = f'{missed} or max_over_time(scrape_duration_seconds{{job="quintet"}}[1m]) > 1.5'
    with urlopen(f"{url}/api/v1/query?query={quote(query)}", timeout=10) as answer:
        assert json.load(answer)["data"]["result"] == []
