"""A model's linear layers, packed once it has the shape in which it runs."""

from __future__ import annotations

import logging
from collections.abc import Callable

from quintet_common.packing import pack, put_back
from torch import nn

from quintet_chat.backends import hugepages
from quintet_chat.engine.runner import UnsupportedModel

log = logging.getLogger("quintet.chat")


def finish(model: nn.Module, trial: Callable[[], object]) -> None:
    """Pack what can be packed of ``model``, in place, and give it memory in which it is read fastest.

    ``trial`` raises UnsupportedModel where the model does not run like this: then its layers stay what they were.
    """
    replaced = pack(model)
    try:
        trial()
    except UnsupportedModel as error:
        log.info("its layers are not packed: %s", error)
        put_back(replaced)
    products = [product for module in model.modules() for product in getattr(module, "products", [])]
    if products:
        # The weights' file stays mapped, all of it, as long as any tensor lies in it.
        for parameter in model.parameters():
            parameter.data = parameter.data.clone()
        hugepages.advise(product.stretch for product in products)
