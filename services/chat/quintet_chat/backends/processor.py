"""The processor of an image-text model, which makes its pictures into numbers."""

from __future__ import annotations

import importlib
import sys
from typing import Any

import transformers
from transformers import AutoImageProcessor, AutoProcessor, AutoTokenizer, ProcessorMixin
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING
from transformers.utils import is_torchvision_available
from transformers.utils.import_utils import DummyObject
from transformers.video_processing_utils import BaseVideoProcessor


def load(path: str, config: Any) -> Any:
    """The processor at ``path``. Raises OSError, ValueError or ImportError, which name a package that is missing."""
    try:
        return _load(path, config)
    except (ImportError, ValueError) as error:
        if "torchvision" not in str(error).lower():
            raise
        raise ImportError("it needs the package 'torchvision', in the version that goes with this torch") from error


def _load(path: str, config: Any) -> Any:
    kind = _kind(config)
    if kind is not None and not is_torchvision_available() and _needs_parts(kind):
        return _by_parts(kind, path)
    processor = AutoProcessor.from_pretrained(path)
    if not isinstance(processor, ProcessorMixin):
        raise ValueError("its files describe no processor for pictures")
    return processor


def _kind(config: Any) -> Any:
    """The class of the processor for a model, or None."""
    kind = PROCESSOR_MAPPING.get(type(config), None)
    if kind is None:
        return None
    name = kind.__module__
    if isinstance(kind, DummyObject):
        # The real one takes a function from the module of its image processor for torchvision; that for Pillow has it.
        sister = name.replace(".processing_", ".image_processing_")
        sys.modules[sister] = importlib.import_module(name.replace(".processing_", ".image_processing_pil_"))
        kind = getattr(importlib.import_module(name), kind.__name__)
        del sys.modules[sister]
    module = sys.modules[name]
    if getattr(module, "num2words", module) is None:
        # SmolVLM's asks for this package at once, and writes with it how many frames a video has.
        module.num2words = str  # type: ignore[attr-defined]
    return kind


def _needs_parts(kind: Any) -> bool:
    """Whether transformers does not put such a processor together without torchvision, and we do."""
    return "video_processor" in kind.get_attributes() or kind is not getattr(transformers, kind.__name__, kind)


def _by_parts(kind: Any, path: str) -> Any:
    """A processor of ``kind`` for pictures alone: the part for videos needs torchvision, the one for pictures does not.

    The parts are checked by looking their classes up in lists that torchvision has to be there for; not here.
    """
    lenient: Any = type(kind.__name__, (kind,), {"check_argument_for_proper_class": lambda *_: None})
    readers = {"image_processor": AutoImageProcessor, "tokenizer": AutoTokenizer}
    parts = [
        readers[name].from_pretrained(path) if name in readers else BaseVideoProcessor()
        for name in kind.get_attributes()
    ]
    settings, _ = kind.get_processor_dict(path)
    return lenient.from_args_and_dict(parts, settings)
