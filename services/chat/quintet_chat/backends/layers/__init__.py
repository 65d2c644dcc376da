"""Decoder layers computed with fewer operations: bfloat16 on a CPU.

With one sequence a small model's decode step is, beside reading weights, hundreds of calls of microseconds each. So
queries, keys and values become one matrix product and are normed and turned together, gate and up become one, and a
norm takes six operations in place of eight. A layer is put together of such parts, in the order that the names of its
own parts tell (``layer.py``); it is only replaced after it was shown to compute the same (``fuse.py``), and everything
else stays as transformers made it.
"""

from quintet_chat.backends.layers.fuse import fuse as fuse
from quintet_chat.backends.layers.layer import FusedLayer as FusedLayer
