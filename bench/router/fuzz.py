"""Requests made from the router's own OpenAPI document, by schemathesis: no answer may be a server error, or other than
the document says.

    python bench/router/fuzz.py [--examples 100] [--url http://127.0.0.1:8000]

Without ``--url`` a router in front of the embedding service is started. schemathesis is installed apart from the
project at first use.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator

from machine import CACHE, HERE, running
from processes import free_port
from targets import bin_of

SCHEMATHESIS = "schemathesis==4.32.5"
# A service may refuse more than its schema does, and take "true" for true.
LEFT_OUT = "positive_data_acceptance,negative_data_rejection"


@contextlib.contextmanager
def router() -> Iterator[str]:
    """The URL of a router in front of the embedding service."""
    ports = [free_port(), free_port()]
    urls = [f"http://127.0.0.1:{port}" for port in ports]
    service = ["-m", "quintet_embed", str(HERE.parents[1] / "models.yml"), "--port", str(ports[0])]
    door = ["-m", "quintet_router", "--port", str(ports[1]), "--upstream", urls[0], "--log-level", "warning"]
    with (
        running("fuzz-embed", [sys.executable, *service], {}),
        running("fuzz-router", [sys.executable, *door], {}),
    ):
        for _ in range(120):
            with contextlib.suppress(OSError, ValueError):
                models = json.loads(urllib.request.urlopen(f"{urls[1]}/v1/models", timeout=5).read())["data"]
                if models and all(model["state"] == "ready" for model in models):
                    break
            time.sleep(1)
        else:
            raise SystemExit(f"The service is not ready; see {CACHE}/fuzz-*.log.")
        yield urls[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--examples", type=int, default=100, help="for each path")
    parser.add_argument("--url", help="of a router that runs already")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    CACHE.mkdir(parents=True, exist_ok=True)
    tool = bin_of("schemathesis", SCHEMATHESIS) / "schemathesis"
    with contextlib.nullcontext(options.url) if options.url else router() as url:
        command = [str(tool), "run", f"{url}/openapi.json", "--max-examples", str(options.examples)]
        command += ["--seed", str(options.seed), "--exclude-checks", LEFT_OUT, "--continue-on-failure", "--no-color"]
        sys.exit(subprocess.run(command, check=False).returncode)


if __name__ == "__main__":
    main()
