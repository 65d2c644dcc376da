"""GLM-4's calls: the name on a line of its own, then the arguments as an object. One call in an answer."""

from __future__ import annotations

from quintet_chat.tools.json_calls import JsonCalls
from quintet_chat.tools.scan import NAME

GLM4 = JsonCalls(
    name="glm4",
    begin=f"{NAME}\n",
    end="",
    opening=[NAME, "\n"],
    closing=[],
    trigger=f"{NAME}\n",
    only_offered=True,
)
