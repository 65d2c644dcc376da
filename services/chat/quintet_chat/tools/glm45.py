"""GLM-4.5's and 4.6's calls: ``<tool_call>`` and the name, then keys and values on lines. 4.7 writes no line breaks."""

from __future__ import annotations

from quintet_chat.tools.scan import NAME
from quintet_chat.tools.xml_calls import XmlCalls
from quintet_chat.tools.xml_reader import Markup

_MARKS = ["<tool_call>", "</tool_call>", "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"]

GLM45 = XmlCalls(
    name="glm45",
    begin=f"<tool_call>{NAME}\n",
    end="</tool_call>",
    opening=["<tool_call>", NAME],
    closing=["</tool_call>"],
    trigger="<tool_call>",
    separator="\n",
    markup=Markup(opening="<arg_key>", key_end="</arg_key>", value="<arg_value>", closing="</arg_value>"),
    marks=_MARKS,
)

GLM47 = XmlCalls(
    name="glm47",
    begin=f"<tool_call>{NAME}",
    end="</tool_call>",
    opening=["<tool_call>", NAME],
    closing=["</tool_call>"],
    trigger="<tool_call>",
    separator="",
    markup=Markup(opening="<arg_key>", key_end="</arg_key>", value="<arg_value>", closing="</arg_value>", gap=""),
    marks=_MARKS,
)
