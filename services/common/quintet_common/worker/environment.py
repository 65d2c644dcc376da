"""The environment of a model's process; what the user has set goes before it."""

from __future__ import annotations

import os

from quintet_common.threads import cpu_quota

_TELLS_NOBODY = {
    "DO_NOT_TRACK": "1",  # vLLM and Hugging Face's libraries
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "ORT_DISABLE_TELEMETRY": "1",  # onnxruntime reports to its maker as soon as it is imported
}
"""Libraries that report on their use do not."""


def worker_environment() -> dict[str, str]:
    """Thread pools sleep when idle instead of spinning on a shared core, and no library reports on its use."""
    threads = os.environ.get("QUINTET_THREADS", str(cpu_quota()))
    return _TELLS_NOBODY | {
        "OMP_NUM_THREADS": threads,
        "OMP_WAIT_POLICY": "PASSIVE",
        "GOMP_SPINCOUNT": "0",
        "TOKENIZERS_PARALLELISM": "false",
    }
