"""Qwen3-Coder's calls: ``<tool_call>``, the function with its parameters on lines of their own, ``</tool_call>``."""

from __future__ import annotations

from quintet_chat.tools.scan import NAME
from quintet_chat.tools.xml_calls import XmlCalls
from quintet_chat.tools.xml_reader import Markup

QWEN3_CODER = XmlCalls(
    name="qwen3_coder",
    begin=f"<tool_call>\n<function={NAME}>\n",
    end="</function>\n</tool_call>",
    opening=["<tool_call>", "<function=", NAME, ">"],
    closing=["</function>", "</tool_call>"],
    trigger="<tool_call>",
    separator="\n",
    markup=Markup(opening="<parameter=", key_end=">", closing="</parameter>", frame="\n"),
    marks=["<tool_call>", "</tool_call>"],
    forgotten="<tool_call>\n",
)
