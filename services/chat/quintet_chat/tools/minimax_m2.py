"""MiniMax-M2's calls: a list of ``<invoke>`` with the name, each parameter on a line of its own."""

from __future__ import annotations

from quintet_chat.tools.scan import NAME
from quintet_chat.tools.xml_calls import XmlCalls
from quintet_chat.tools.xml_reader import Markup

MINIMAX_M2 = XmlCalls(
    name="minimax_m2",
    begin=f'<invoke name="{NAME}">\n',
    end="</invoke>\n",
    opening=['<invoke name="', NAME, '">'],
    closing=["</invoke>"],
    trigger="<minimax:tool_call>",
    separator="",
    list_open="<minimax:tool_call>\n",
    list_close="</minimax:tool_call>",
    markup=Markup(opening='<parameter name="', key_end='">', closing="</parameter>"),
    marks=["<minimax:tool_call>", "</minimax:tool_call>"],
)
