"""Qwen3-Coder's calls: ``<tool_call>``, the function with its parameters on lines of their own, ``</tool_call>``.

Those of Seed-OSS have ``<seed:tool_call>`` around them instead.
"""

from __future__ import annotations

from quintet_chat.tools.scan import NAME
from quintet_chat.tools.xml_calls import XmlCalls
from quintet_chat.tools.xml_reader import Markup


def _family(name: str, outer: str) -> XmlCalls:
    return XmlCalls(
        name=name,
        begin=f"<{outer}>\n<function={NAME}>\n",
        end=f"</function>\n</{outer}>",
        opening=[f"<{outer}>", "<function=", NAME, ">"],
        closing=["</function>", f"</{outer}>"],
        trigger=f"<{outer}>",
        separator="\n",
        markup=Markup(opening="<parameter=", key_end=">", closing="</parameter>", frame="\n"),
        marks=[f"<{outer}>", f"</{outer}>"],
        forgotten=f"<{outer}>\n",
    )


QWEN3_CODER = _family("qwen3_coder", "tool_call")
SEED_OSS = _family("seed_oss", "seed:tool_call")
