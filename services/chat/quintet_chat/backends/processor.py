"""The processor of an image-text model, which makes its pictures into numbers."""

from __future__ import annotations

from typing import Any

from transformers import AutoImageProcessor, AutoProcessor, AutoTokenizer, ProcessorMixin
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING
from transformers.utils import is_torchvision_available
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
    kind = PROCESSOR_MAPPING.get(type(config), None)
    if kind is not None and "video_processor" in kind.get_attributes() and not is_torchvision_available():
        return _without_videos(kind, path)
    processor = AutoProcessor.from_pretrained(path)
    if not isinstance(processor, ProcessorMixin):
        raise ValueError("its files describe no processor for pictures")
    return processor


def _without_videos(kind: Any, path: str) -> Any:
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
