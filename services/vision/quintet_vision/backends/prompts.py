"""A cache of encoded prompts, put between a diffusers pipeline and its own ``encode_prompt``.

Each prompt of a batch is encoded by itself and the results are joined. So a text is read the same way alone or in
company, whatever its neighbours would have had it padded to, and what is kept of it serves any later batch. Text
encoders are large: behind a cache, one that waits in main memory need not travel to the GPU for a prompt seen before.
"""

from __future__ import annotations

import inspect
from collections import OrderedDict
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

Encoded = Any
"""What an ``encode_prompt`` returns: tensors, lists of them, None, and tuples of those."""


class PromptCache:
    """At most ``max_bytes`` of encoded prompts, in main memory; those not used for longest go first."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._rows: OrderedDict[Any, Encoded] = OrderedDict()
        self.bytes = 0
        self.hits = 0
        self.misses = 0
        self.variant: object = None
        """Part of every key: whatever else changes how texts are read, such as LoRAs."""

    def attach(self, pipe: Any) -> None:
        """Let ``pipe`` encode its prompts through this cache; a pipeline that has no such method stays as it is."""
        if hasattr(pipe, "encode_prompt"):
            encode = pipe.encode_prompt
            pipe.encode_prompt = partial(self._encode, type(pipe).__name__, encode, inspect.signature(encode))

    def _encode(self, pipe: str, encode: Callable[..., Encoded], signature: Any, *given: Any, **named: Any) -> Encoded:
        arguments = signature.bind(*given, **named).arguments
        prompts = arguments.get("prompt")
        if not isinstance(prompts, list) or not all(_is_plain(value) for value in arguments.values()):
            return encode(**arguments)  # made of pictures or of encoded prompts
        rows = [self._row(pipe, encode, _one(arguments, index, len(prompts))) for index in range(len(prompts))]
        try:
            joined = _join(rows, "prompt_embeds_mask" in signature.parameters)
        except _CannotJoinError:
            return encode(**arguments)
        return _moved(joined, arguments.get("device"))

    def _row(self, pipe: str, encode: Callable[..., Encoded], arguments: dict[str, Any]) -> Encoded:
        """One prompt, encoded now or earlier."""
        fixed = {name: tuple(value) if isinstance(value, list) else value for name, value in arguments.items()}
        key = (pipe, self.variant, tuple(sorted((name, str(value)) for name, value in fixed.items())))
        if key in self._rows:
            self.hits += 1
            self._rows.move_to_end(key)
            return self._rows[key]
        self.misses += 1
        row = _moved(encode(**arguments), "cpu")
        size = sum(tensor.nbytes for tensor in _tensors(row))
        if size <= self._max_bytes:
            self._rows[key] = row
            self.bytes += size
        while self.bytes > self._max_bytes:
            _, oldest = self._rows.popitem(last=False)
            self.bytes -= sum(tensor.nbytes for tensor in _tensors(oldest))
        return row


class _CannotJoinError(Exception):
    """Prompts of different lengths, and nothing in this family's answer says where each ends."""


def _is_plain(value: Any) -> bool:
    if isinstance(value, list):
        return all(isinstance(each, str) for each in value)
    return not isinstance(value, (Tensor, Image.Image))


def _one(arguments: dict[str, Any], index: int, count: int) -> dict[str, Any]:
    """The arguments for one of ``count`` prompts. The lists are new: some pipelines write into them."""
    return {
        name: [value[index]] if isinstance(value, list) and len(value) == count else value
        for name, value in arguments.items()
    }


def _join(rows: list[Encoded], masked: bool) -> Encoded:
    """Rows of one prompt each, as the batch that the pipeline goes on with.

    ``masked``: the second part of the answer marks the tokens of the first, None where all of them count.
    """
    first = rows[0]
    if isinstance(first, tuple):
        parts: list[list[Any]] = [list(part) for part in zip(*(row for row in rows if row is not None), strict=True)]
        if masked and len({part.shape[1] for part in parts[0]}) > 1:
            parts[1] = [
                embeds.new_ones(embeds.shape[:2], dtype=torch.long) if mask is None else mask
                for embeds, mask in zip(parts[0], parts[1], strict=True)
            ]
        return tuple(_join(part, masked) for part in parts)
    if isinstance(first, list):
        return [each for row in rows if isinstance(row, list) for each in row]
    if not isinstance(first, Tensor):
        return first
    tensors = [row for row in rows if isinstance(row, Tensor)]
    if first.shape[0] != 1:  # positions of text tokens and the like, the same for all
        return first
    longest = max(tensor.shape[1] for tensor in tensors) if first.dim() > 1 else 0
    if not masked and any(tensor.dim() > 1 and tensor.shape[1] != longest for tensor in tensors):
        raise _CannotJoinError
    return torch.cat([_padded(tensor, longest) for tensor in tensors])


def _padded(tensor: Tensor, length: int) -> Tensor:
    """``tensor`` with zeros to ``length`` in its second dimension."""
    if tensor.dim() < 2 or tensor.shape[1] == length:
        return tensor
    return functional.pad(tensor, (0, 0) * (tensor.dim() - 2) + (0, length - tensor.shape[1]))


def _moved(encoded: Encoded, device: Any) -> Any:
    if isinstance(encoded, Tensor):
        return encoded if device is None else encoded.to(device)
    if isinstance(encoded, (tuple, list)):
        return type(encoded)(_moved(part, device) for part in encoded)
    return encoded


def _tensors(encoded: Encoded) -> Iterator[Tensor]:
    if isinstance(encoded, Tensor):
        yield encoded
    elif isinstance(encoded, (tuple, list)):
        for part in encoded:
            yield from _tensors(part)
