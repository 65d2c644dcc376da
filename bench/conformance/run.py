"""Other projects' suites and clients against the services of models.yml and the router before them.

    python bench/conformance/run.py [--url http://127.0.0.1:8000] [--only langchain] [--write]

Without ``--url`` they are started. The clients are installed apart from the project at first use, those of npm where it
is, and the tests of openai-python and vLLM fetched; what of these fails here for a reason is listed in ``suites``. The
models are small, so what is judged is the protocol. ``--write`` puts the table into docs/chat.md.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.request
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path.append(str(HERE.parent))
import borrowed  # noqa: E402
from processes import environment_with, free_port, serving  # noqa: E402

CACHE = ROOT / "build" / "conformance"
DOCS = ROOT / "docs" / "chat.md"
SUITES = {
    "langchain": ("langchain-tests", "LangChain's standard suite for chat models"),
    "instructor": ("instructor", "typed answers by tools, strict tools, JSON schema, Responses; parallel; growing"),
    "litellm": ("litellm", "chat, streams, tools, completions, Responses, types of errors"),
    "pydantic_ai": ("pydantic-ai-slim[openai]", "text, streams, typed answers, tools; by chat and by Responses"),
    "openai_agents": ("openai-agents", "text, typed answers, tools, streams; by chat and by Responses"),
}
"""What a file of ``suites`` tries: a package of requirements.txt, in words."""
NODE = {
    "openai_node": ("openai", "OpenAI's package for Node", "each of its helpers; pictures, speech, errors, aborts"),
    "vercel": ("ai", "Vercel's ai", "text, objects, tools and their streams; chat, Responses, compatible"),
}
"""What a file of ``suites`` tries that Node runs: a package of package.json, its name and what, in words."""
READY_SECONDS = 240
SUITE_SECONDS = 3600
"""A suite that takes longer has failed; on two busy cores the longest takes twenty minutes."""


class Count(NamedTuple):
    passed: int
    expected: int
    """Failures that are listed, with their reasons."""
    skipped: int
    failed: int


@contextlib.contextmanager
def service() -> Iterator[str]:
    """The URL of the router of models.yml, whose models answer to the names that others ask for."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"

    def wait(process: subprocess.Popen[bytes]) -> None:
        for _ in range(READY_SECONDS):
            if process.poll() is not None:
                break
            with contextlib.suppress(OSError, ValueError):
                models = json.loads(urllib.request.urlopen(f"{url}/v1/models", timeout=5).read())["data"]
                if models and all(model["state"] == "ready" for model in models):
                    return
            time.sleep(1)
        raise RuntimeError("the service is not ready")

    models_yml = CACHE / "models.yml"
    models_yml.write_text(borrowed.with_aliases((ROOT / "models.yml").read_text()))
    quintet = Path(sys.executable).with_name("quintet")
    command = [str(quintet), "serve", str(models_yml), "--port", str(port), "--logs", str(CACHE / "logs")]
    with serving(command, {}, wait):
        yield url


def run_pytest(
    python: Path, name: str, environment: Mapping[str, str], folder: Path, arguments: Sequence[str]
) -> Count:
    report = CACHE / f"{name}.xml"
    command = [str(python), "-m", "pytest", "-q", "--tb=short", f"--junit-xml={report}"]
    report.unlink(missing_ok=True)
    try:
        asked = [*command, *arguments]
        ended = subprocess.run(asked, cwd=folder, env=environment, check=False, timeout=SUITE_SECONDS)
    except subprocess.TimeoutExpired:
        print(f"{name} has not ended within {SUITE_SECONDS} seconds.")
        return Count(0, 0, 0, 1)
    found = ElementTree.parse(report).getroot().find("testsuite")
    assert found is not None
    failed = int(found.get("failures", 0)) + int(found.get("errors", 0))
    expected = len(found.findall("testcase/skipped[@type='pytest.xfail']"))
    skipped = int(found.get("skipped", 0)) - expected
    passed = int(found.get("tests", 0)) - failed - expected - skipped
    return Count(passed, expected, skipped, failed or int(ended.returncode != 0))


def run_borrowed(name: str, environment: Mapping[str, str]) -> Count | None:
    """None where its source distribution cannot be had."""
    python = environment_with(CACHE / "borrowed", ["-r", str(HERE / "requirements-borrowed.txt")])
    folder = borrowed.fetch(name, CACHE)
    if folder is None or python is None:
        return None
    ours = {
        "CONFORMANCE_EXPECTED": str(HERE / "suites" / f"{name}_expected.toml"),
        "PYTHONPATH": str(HERE / "suites"),
        "TEST_API_BASE_URL": f"{environment['QUINTET_URL']}/v1",
    }
    return run_pytest(python, name, {**environment, **ours}, folder, borrowed.arguments(name, folder))


def npm_packages(environment: Mapping[str, str]) -> dict[str, Count]:
    """The suites of npm's packages; none where there is no npm."""
    npm, node = shutil.which("npm"), shutil.which("node")
    if npm is None or node is None:
        return {}
    folder = CACHE / "npm"
    folder.mkdir(parents=True, exist_ok=True)
    for file in (HERE / "package.json", *(HERE / "suites").glob("*.mjs")):
        shutil.copy(file, folder)
    subprocess.run([npm, "install", "--silent", "--no-audit", "--no-fund"], cwd=folder, check=True)
    found = {name: _node(node, name, folder, environment) for name in NODE}
    return {**found, "compatcanary": _canary(folder, environment["QUINTET_URL"])}


def _node(node: str, name: str, folder: Path, environment: Mapping[str, str]) -> Count:
    how: dict[str, Any] = {"cwd": folder, "env": environment, "capture_output": True, "text": True}
    said = subprocess.run([node, f"{name}.mjs"], check=False, timeout=SUITE_SECONDS, **how).stdout
    print(said)
    passed, total = map(int, said.split()[-2:])
    return Count(passed, 0, 0, total - passed)


def _canary(folder: Path, url: str) -> Count:
    report = folder / "compatcanary.json"
    asked = ["--base-url", f"{url}/v1", "--model", "smollm2-135m-instruct", "--format", "json", "--output", str(report)]
    subprocess.run([str(folder / "node_modules" / ".bin" / "compatcanary"), "scan", *asked], check=False)
    found = json.loads(report.read_text())["summary"]
    return Count(found["passes"], 0, 0, found["warnings"] + found["failures"])


def versions() -> dict[str, str]:
    pinned = dict(line.split("==") for line in (HERE / "requirements.txt").read_text().split())
    return pinned | json.loads((HERE / "package.json").read_text())["dependencies"]


def table(found: Mapping[str, Count]) -> str:
    version = versions()
    rows = {name: (f"{package.partition('[')[0]} {version[package]}", what) for name, (package, what) in SUITES.items()}
    rows |= {name: (f"{words} {version[package]}", what) for name, (package, words, what) in NODE.items()}
    what = "a scan: models, chat, streams, a forced call, strict structured output, Responses and their events"
    rows["compatcanary"] = (f"CompatCanary {version['compatcanary']}", what)
    for name, each in borrowed.SUITES.items():
        rows[name] = (f"{each.package.replace('==', ' ')}: its own tests", each.what)
    lines = ["| suite | what | passed | failed as listed | skipped | failed |", "|---|---|---|---|---|---|"]
    lines += [f"| {' | '.join(rows[name])} | {' | '.join(map(str, count))} |" for name, count in found.items()]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--url", help="of a service that runs already")
    parser.add_argument("--only", choices=[*SUITES, *borrowed.SUITES, "npm"])
    parser.add_argument("--write", action="store_true", help="put the whole table into docs/chat.md")
    options = parser.parse_args()
    CACHE.mkdir(parents=True, exist_ok=True)
    python = environment_with(CACHE / "venv", ["-r", str(HERE / "requirements.txt")])
    if python is None:
        raise SystemExit("The clients cannot be installed.")
    found: dict[str, Count] = {}
    with contextlib.nullcontext(options.url) if options.url else service() as url:
        environment = {**os.environ, "QUINTET_URL": url, "OPENAI_API_KEY": "none", "LANGSMITH_TRACING": "false"}
        for name in SUITES if options.only is None else {options.only} & SUITES.keys():
            found[name] = run_pytest(python, name, environment, HERE / "suites", [f"test_{name}.py"])
        for name in borrowed.SUITES if options.only is None else {options.only} & borrowed.SUITES.keys():
            if (count := run_borrowed(name, environment)) is not None:
                found[name] = count
        if options.only in (None, "npm"):
            found |= npm_packages(environment)
    print(table(found))
    if options.write and options.only is None:
        text = DOCS.read_text(encoding="utf-8")
        marked = re.compile(r"(<!-- conformance: begin -->\n).*?(\n<!-- conformance: end -->)", re.DOTALL)
        DOCS.write_text(marked.sub(lambda match: f"{match[1]}{table(found)}{match[2]}", text), encoding="utf-8")
    sys.exit(any(count.failed for count in found.values()))


if __name__ == "__main__":
    main()
