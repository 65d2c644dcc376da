"""While the chart runs: ask for vectors all the time, kill one of the two pods that make them, and count what fails.

Run by ``lab/chart --then``, which says in SERVICE_Q_QUINTET_ROUTER where the router is. The lab has one address for
both pods, so for the router they are one upstream that breaks for a moment, and a few requests may fail; in a cluster
it knows each and asks the other.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import Counter

URL = f"http://{os.environ['SERVICE_Q_QUINTET_ROUTER']}/v1/embeddings"
DOCKER = os.environ.get("DOCKER", "docker")
SECONDS = 12


def ask() -> int:
    body = json.dumps({"model": "all-minilm-l6-v2", "input": "Still there?"}).encode()
    request = urllib.request.Request(URL, body, {"content-type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        failures.append(error.read().decode(errors="replace"))
        return error.code


def kill_one() -> None:
    """What the kernel does when memory is short: the container's first process gets SIGKILL."""
    names = subprocess.check_output([DOCKER, "ps", "-q", "--filter", "label=quintet.lab=chart"], text=True).split()
    found = json.loads(subprocess.check_output([DOCKER, "inspect", *names], text=True))
    embed = [each for each in found if each["Config"]["Image"].startswith("quintet/embed")]
    assert len(embed) == 2, len(embed)
    os.kill(embed[0]["State"]["Pid"], signal.SIGKILL)


codes: Counter[int] = Counter()
failures: list[str] = []
timer = threading.Timer(SECONDS / 3, kill_one)
timer.start()
end = time.monotonic() + SECONDS
while time.monotonic() < end:
    codes[ask()] += 1
timer.join()
sys.stdout.write(f"answers while a pod was killed: {dict(codes)} {Counter(failures)}\n")
sys.exit(codes[200] < 10 or codes.total() - codes[200] > 0.1 * codes.total() or not codes.keys() <= {200, 502, 503})
