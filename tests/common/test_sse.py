"""Events as clients of all kinds cut them."""

from __future__ import annotations

import json

from openai.types.chat import ChatCompletionMessage
from quintet_common.sse import event

TEXT = "one\u2028two\u2029three\u0085four\nfive \u4f60\u597d \U0001f600 \xc2 \u2027"


def test_an_event_is_one_line_for_every_client() -> None:
    written = event({"text": TEXT}).decode()
    assert len(written.splitlines()) == 2
    assert json.loads(written.removeprefix("data: ")) == {"text": TEXT}
    model = event(ChatCompletionMessage(role="assistant", content=TEXT), "message").decode()
    name, data, _ = model.splitlines()
    assert name == "event: message"
    assert json.loads(data.removeprefix("data: "))["content"] == TEXT
