"""How the router leaves: first it says so, then it listens no more, and refuses what still comes."""

from __future__ import annotations

from quintet_common.errors import ApiError
from starlette.types import Message, Send

CLOSE = (b"connection", b"close")


class Departure:
    def __init__(self) -> None:
        self.begun = False
        """SIGTERM came: whoever asks whether the router is ready gets 503, and answers close their connections."""
        self.closed = False
        """Nobody new is let in."""

    def begin(self) -> None:
        self.begun = True

    def close(self) -> None:
        self.begun = self.closed = True

    def refusal(self) -> ApiError:
        return ApiError(503, "The router is stopping. Try again.", code="stopping", retry_after=1)


def closing(send: Send) -> Send:
    """``send`` that ends the connection after the answer, so that the client's next request goes elsewhere."""

    async def send_and_close(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message["headers"], CLOSE]}
        await send(message)

    return send_and_close
