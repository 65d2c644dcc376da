"""A tensor in a file of weights, and what it takes in memory."""

from __future__ import annotations

import math
from typing import NamedTuple

BITS = {
    "F64": 64, "F32": 32, "F16": 16, "BF16": 16, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F4": 4,
    "I64": 64, "U64": 64, "I32": 32, "U32": 32, "I16": 16, "U16": 16, "I8": 8, "U8": 8, "BOOL": 8,
}  # fmt: skip
"""By the types of safetensors."""

PLAIN = frozenset({"F64", "F32", "F16", "BF16"})
_CONVERTED = PLAIN | {"F8_E4M3", "F8_E5M2"}
"""Types that are converted to the type in which a model is loaded, where they are not a way of quantising it."""

LOADED_BITS = {"float32": 32, "bfloat16": 16, "float16": 16}


class Tensor(NamedTuple):
    """As the header of a safetensors file has it."""

    name: str
    dtype: str
    shape: list[int]

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def bits(self) -> int:
        return self.elements * BITS.get(self.dtype, 8)

    def as_type(self, dtype: str) -> int:
        """Bits in memory in the type ``dtype``; ``auto`` is the least that it may be: 16 where more are stored."""
        if self.dtype not in _CONVERTED:
            return self.bits
        return self.elements * (LOADED_BITS.get(dtype) or min(BITS[self.dtype], 16))
