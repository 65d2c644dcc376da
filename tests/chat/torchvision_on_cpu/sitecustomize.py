"""Lets a torchvision that was built for CUDA be imported beside a torch without it, in tests alone.

Such a torchvision describes operators to torch that its own library, which cannot be loaded then, would have brought.
They are declared here before it does so. Transforms of pictures need none of them.
"""

import sys

_OPERATORS = (
    "nms", "qnms", "roi_align", "qroi_align", "_roi_align_backward", "roi_pool", "_roi_pool_backward", "ps_roi_align",
    "_ps_roi_align_backward", "ps_roi_pool", "_ps_roi_pool_backward", "deform_conv2d", "_deform_conv2d_backward",
)  # fmt: skip


class _Declares:
    def find_spec(self, name, *_):
        if name == "torchvision":
            sys.meta_path.remove(self)
            import torch

            self.library = torch.library.Library("torchvision", "DEF")
            for operator in _OPERATORS:
                self.library.define(f"{operator}(Tensor input) -> Tensor")
            sys.torchvision_operators = self.library  # they go with it


sys.meta_path.insert(0, _Declares())
