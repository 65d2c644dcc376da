"""The chart's pods run on the lab's engine, from the images that tests/compose builds."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from helm.charts import EXAMPLES, lab_chart, tool

pytestmark = pytest.mark.docker

TAG = "test"


def test_the_chart_runs_outlives_a_pod_and_passes_its_own_tests() -> None:
    for image in ("router:" + TAG, *(f"{name}:{TAG}-cpu" for name in ("chat", "vision", "tts", "embed"))):
        known = subprocess.run(
            [tool("docker"), "image", "inspect", f"quintet/{image}"], capture_output=True, check=False
        )
        if known.returncode != 0:
            pytest.skip(f"the image quintet/{image} is not built here; tests/compose builds it")
    output = lab_chart(
        "-f", str(EXAMPLES / "cpu-only.yaml"),
        "--set", f"workload.image.tag={TAG}-cpu", "--set", f"router.image.tag={TAG}", "--set", "embed.replicas=2",
        "--run", "--timeout", "420", "--then", f"{sys.executable} {Path(__file__).with_name('kill_one.py')}",
        versions="1.37.0",
    )  # fmt: skip
    assert "answers while a pod was killed" in output
    for kind in ("chat", "multimodal", "image", "tts", "embedding"):
        assert f"q-quintet-test-{kind}/ask: ended with 0" in output, output
