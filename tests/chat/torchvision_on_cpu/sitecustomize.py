"""Lets vLLM see pictures on a CPU, in tests alone.

A torchvision that was built for CUDA describes operators to torch that its own library, which cannot be loaded beside a
torch without CUDA, would have brought. They are declared here before it does so; transforms of pictures need none of
them. And vLLM's MiniCPM-V asks torch whether CUDA captures a graph, which such a torch cannot say.
"""

import sys

_OPERATORS = (
    "nms", "qnms", "roi_align", "qroi_align", "_roi_align_backward", "roi_pool", "_roi_pool_backward", "ps_roi_align",
    "_ps_roi_align_backward", "ps_roi_pool", "_ps_roi_pool_backward", "deform_conv2d", "_deform_conv2d_backward",
)  # fmt: skip


def _declare():
    import torch

    library = torch.library.Library("torchvision", "DEF")
    for operator in _OPERATORS:
        library.define(f"{operator}(Tensor input) -> Tensor")
    sys.torchvision_operators = library  # they go with it


def _capture_nothing():
    import torch

    torch.cuda.is_current_stream_capturing = lambda: False


_todo = {"torchvision": _declare, "vllm.model_executor.models.minicpmv": _capture_nothing}


class _Before:
    """Finds nothing, but notices what is imported."""

    def find_spec(self, name, *_):
        if name in _todo:
            _todo.pop(name)()


sys.meta_path.insert(0, _Before())
