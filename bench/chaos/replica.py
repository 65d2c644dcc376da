"""A small server that speaks OpenAI, to be killed, frozen and made to misbehave: python replica.py PORT.

``POST /mood`` with one of ``MOODS`` as its body changes what it does with requests; polls of its models are answered
whatever the mood. ``leave`` ends it as good servers end: what is open goes on, what is idle is closed.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys

MOODS = ("well", "slow", "garbage", "cut", "errors", "refuse", "leave")
MODELS = json.dumps({"object": "list", "data": [{"id": "m", "object": "model", "kind": "chat"}]}).encode()
ANSWER = json.dumps({"object": "chat.completion", "choices": [{"message": {"content": "hello"}}]}).encode()
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
EVENTS = 8


class Replica:
    def __init__(self) -> None:
        self.mood = "well"
        self.leaving = asyncio.Event()
        self._busy: dict[asyncio.StreamWriter, bool] = {}

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, request after request."""
        try:
            while True:
                self._busy[writer] = False
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                self._busy[writer] = True
                length = int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0] or 0)
                body = await reader.readexactly(length)
                if b"/models" in head:
                    writer.write(_whole(200, MODELS))
                elif b"/mood" in head:
                    self.mood = body.decode()
                    writer.write(_whole(200, b"{}"))
                    if self.mood == "leave":
                        self.leaving.set()
                elif not await self._answer(b'"stream": true' in body, writer):
                    break
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self._busy.pop(writer, None)
            writer.close()

    async def leave(self) -> None:
        """Close what is idle, again and again, until nothing is open."""
        for _ in range(200):
            for writer, busy in list(self._busy.items()):
                if not busy:
                    writer.close()
            if not self._busy:
                return
            await asyncio.sleep(0.02)

    async def _answer(self, streams: bool, writer: asyncio.StreamWriter) -> bool:
        """False when the connection is to be closed."""
        mood = self.mood
        if mood == "garbage":
            writer.write(random.randbytes(60))
            await writer.drain()
            return False
        if mood in ("errors", "refuse"):
            writer.write(_whole(502 if mood == "errors" else 503, b'{"error": {"message": "no"}}'))
            return True
        await asyncio.sleep(random.uniform(0.4, 1.0) if mood == "slow" else random.uniform(0.0, 0.02))
        if not streams:
            if mood == "cut":
                return False
            writer.write(_whole(200, ANSWER))
            return True
        writer.write(HEAD)
        for number in range(EVENTS):
            if mood == "cut" and number == EVENTS // 2:
                return False
            event = b'data: {"n": %d}\n\n' % number
            writer.write(b"%x\r\n%b\r\n" % (len(event), event))
            await writer.drain()
            await asyncio.sleep(0.01)
        event = b"data: [DONE]\n\n"
        writer.write(b"%x\r\n%b\r\n0\r\n\r\n" % (len(event), event))
        return True


def _whole(status: int, body: bytes) -> bytes:
    head = b"HTTP/1.1 %d X\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % (status, len(body))
    return head + body


async def main() -> None:
    replica = Replica()
    server = await asyncio.start_server(replica.serve, "127.0.0.1", int(sys.argv[1]))
    await replica.leaving.wait()
    server.close()
    await replica.leave()


if __name__ == "__main__":
    asyncio.run(main())
