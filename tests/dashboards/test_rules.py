"""The rules before Prometheus' own promtool, which also runs their cases."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import yaml
from helm.charts import tool

HERE = Path(__file__).parent
RULES = HERE.parents[1] / "helm" / "quintet" / "files" / "rules"
CASES = HERE / "rules_test.yml"


def promtool(*arguments: str) -> None:
    done = subprocess.run([tool("promtool"), *arguments], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_promtool_takes_the_rules() -> None:
    promtool("check", "rules", *map(str, sorted(RULES.glob("*.yml"))))


def test_alerts_are_sent_when_they_must_be_and_not_else(tmp_path: Path) -> None:
    for file in [*RULES.glob("*.yml"), CASES]:
        shutil.copy(file, tmp_path)
    promtool("test", "rules", str(tmp_path / CASES.name))


def test_every_alert_has_both_cases() -> None:
    groups = yaml.safe_load((RULES / "alerts.yml").read_text())["groups"]
    alerts = {rule["alert"] for group in groups for rule in group["rules"]}
    cases = [case for test in yaml.safe_load(CASES.read_text())["tests"] for case in test["alert_rule_test"]]
    assert {case["alertname"] for case in cases if case.get("exp_alerts")} == alerts
    assert {case["alertname"] for case in cases if not case.get("exp_alerts")} == alerts
