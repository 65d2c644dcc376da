"""What a worker process runs: the engine for one model of kind chat or multimodal."""

from __future__ import annotations

from typing import Any

from quintet_common.models_yml import ModelSpec
from quintet_common.worker.host import Engine

OCR = "ppocr"
"""The embedded model that reads the text in pictures."""


def create_engine(spec: ModelSpec) -> Engine[Any]:
    """The engine for ``spec``, not loaded yet. Only what it needs is imported."""
    if spec.embedded == OCR:
        from quintet_chat.backends.ppocr import OcrEngine

        return OcrEngine(spec)
    from quintet_chat.vllm import facts

    if facts.needs_vllm(spec):
        from quintet_chat.vllm.engine import VllmEngine

        return VllmEngine(spec)
    from quintet_chat.engine.engine import ChatEngine

    return ChatEngine(spec)
