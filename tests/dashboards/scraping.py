"""A Prometheus that scrapes a ``quintet serve``, with Quintet's rules, and an exporter of made-up GPUs beside it."""

from __future__ import annotations

import json
import math
import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.request import urlopen

RULES = Path(__file__).resolve().parents[2] / "helm" / "quintet" / "files" / "rules"
GPUS = {
    "DCGM_FI_DEV_GPU_UTIL": 60,
    "DCGM_FI_PROF_PIPE_TENSOR_ACTIVE": 0.4,
    "DCGM_FI_DEV_FB_USED": 60_000,
    "DCGM_FI_DEV_FB_FREE": 20_000,
    "DCGM_FI_DEV_GPU_TEMP": 62,
    "DCGM_FI_DEV_POWER_USAGE": 410,
    "DCGM_FI_DEV_SM_CLOCK": 1_755,
    "DCGM_FI_DEV_XID_ERRORS": 0,
    "DCGM_FI_PROF_PCIE_TX_BYTES": 2e8,
    "DCGM_FI_PROF_PCIE_RX_BYTES": 5e8,
}
"""Names of the DCGM exporter with values that a GPU could have: they prove that queries fit names and labels."""


class _Gpus(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        waves = [1 + 0.05 * math.sin(time.time() / 10 + gpu) for gpu in range(2)]
        lines = [
            f'{name}{{gpu="{gpu}",Hostname="node-1",modelName="H100"}} {value * wave}'
            for name, value in GPUS.items()
            for gpu, wave in enumerate(waves)
        ]
        body = "\n".join([*lines, ""]).encode()
        self.send_response(200)
        self.send_header("content-type", "text/plain; version=0.0.4")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None: ...


def configuration(targets: Mapping[str, str], gpus: str) -> str:
    """The scrapes of compose's prometheus.yml, with addresses in place of names. ``targets`` are by service."""
    jobs = [{"targets": [address], "labels": {"service": service}} for service, address in targets.items()]
    quintet = {"job_name": "quintet", "honor_labels": True, "static_configs": jobs}
    dcgm = {"job_name": "dcgm", "static_configs": [{"targets": [gpus]}]}
    times = {"scrape_interval": "2s", "scrape_timeout": "2s", "evaluation_interval": "2s"}
    return json.dumps({"global": times, "rule_files": [f"{RULES}/*.yml"], "scrape_configs": [quintet, dcgm]})


@contextmanager
def prometheus(program: str, folder: Path, targets: Mapping[str, str]) -> Iterator[str]:
    """The URL of a running Prometheus that keeps its data in ``folder``."""
    gpus = ThreadingHTTPServer(("127.0.0.1", 0), _Gpus)
    threading.Thread(target=gpus.serve_forever, daemon=True).start()
    with socket.create_server(("127.0.0.1", 0)) as probe:
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    file = folder / "prometheus.yml"
    file.write_text(configuration(targets, f"127.0.0.1:{gpus.server_port}"))
    options = [f"--config.file={file}", f"--storage.tsdb.path={folder}/data", f"--web.listen-address={address}"]
    process = subprocess.Popen([program, *options, "--log.level=error"])
    try:
        _wait(f"http://{address}/-/ready")
        yield f"http://{address}"
    finally:
        process.terminate()
        process.wait(20)
        gpus.shutdown()


def _wait(url: str) -> None:
    deadline = time.monotonic() + 30
    while True:
        try:
            with urlopen(url, timeout=2):
                return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)
