"""A small server that answers as the hub does."""

from __future__ import annotations

import hashlib
import http.server
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

COMMIT = "a" * 40
LARGE_FILE = "model.safetensors"
FILES = {
    "config.json": b'{"model_type": "llama"}',
    LARGE_FILE: bytes(range(256)) * 1000,
    "pytorch_model.bin": b"pickled",
    "README.md": b"# words",
}
LARGE = {LARGE_FILE, "pytorch_model.bin"}


class Hub(http.server.BaseHTTPRequestHandler):
    """Two calls of the hub's API, for one repository."""

    files: ClassVar[dict[str, bytes]]
    damaged: ClassVar[str | None]
    """A file whose bytes are not those it tells of."""
    ranges: ClassVar[bool]
    """Whether parts of files are given, as they are asked for."""
    tags: ClassVar[bool]
    """Whether a file's tag is its checksum."""
    breaks_after: ClassVar[int | None]
    """Bytes of a large file in one answer, which then breaks off."""
    stalled: ClassVar[threading.Event | None]
    """Set where such an answer breaks off: nothing more comes of it then, but it does not end."""
    end: ClassVar[threading.Event]
    asked: ClassVar[list[str]]

    @classmethod
    def reset(cls) -> None:
        cls.files, cls.asked, cls.end = dict(FILES), [], threading.Event()
        cls.damaged = cls.breaks_after = cls.stalled = None
        cls.ranges = cls.tags = True

    @classmethod
    def fetched(cls) -> list[str]:
        """Of each file that was asked for, the name, and from where on."""
        return [each.rpartition("/")[2] for each in cls.asked if each.startswith("GET") and "/resolve/" in each]

    def do_GET(self) -> None:
        self._answer(True)

    def do_HEAD(self) -> None:
        self._answer(False)

    def _answer(self, with_body: bool) -> None:
        type(self).asked.append(f"{self.command} {self.path} {self.headers['Range'] or ''}".rstrip())
        if self.path.startswith(f"/api/models/org/name/tree/{COMMIT}"):
            return self._send(200, json.dumps(self._tree()).encode(), {"Content-Type": "application/json"}, with_body)
        if self.path.startswith("/api/models/org/name"):
            return self._send(200, json.dumps(self._info()).encode(), {"Content-Type": "application/json"}, with_body)
        name = self.path.partition(f"/org/name/resolve/{COMMIT}/")[2]
        if name not in self.files:
            return self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"}, with_body)
        tag = checksum(name, self.files) if self.tags else f"tag-{name}"
        headers = {"ETag": f'"{tag}"', "X-Repo-Commit": COMMIT}
        content = self.files[name]
        if name == self.damaged:
            content = content[:-1] + b"?"
        if self.ranges and (part := re.match(r"bytes=(\d+)-", self.headers["Range"] or "")):
            return self._send_part(content, int(part[1]), headers, with_body)
        return self._send(200, content, headers, with_body)

    def _info(self) -> dict[str, Any]:
        siblings = []
        for name, content in self.files.items():
            tag = checksum(name, self.files)
            each: dict[str, Any] = {"rfilename": name, "size": len(content), "blobId": tag}
            if name in LARGE:
                each["lfs"] = {"sha256": tag, "oid": tag, "size": len(content), "pointerSize": 130}
            siblings.append(each)
        return {"id": "org/name", "sha": COMMIT, "siblings": siblings, "private": False, "tags": [], "downloads": 0}

    def _tree(self) -> list[dict[str, Any]]:
        made = self._info()["siblings"]
        return [each | {"type": "file", "path": each["rfilename"], "oid": each["blobId"]} for each in made]

    def _send_part(self, content: bytes, begin: int, headers: dict[str, str], with_body: bool) -> None:
        if begin >= len(content):
            return self._send(416, b"", headers | {"Content-Range": f"bytes */{len(content)}"}, with_body)
        told = headers | {"Content-Range": f"bytes {begin}-{len(content) - 1}/{len(content)}"}
        return self._send(206, content[begin:], told, with_body)

    def _send(self, status: int, body: bytes, headers: dict[str, str], with_body: bool) -> None:
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(body))}).items():
            self.send_header(name, value)
        self.end_headers()
        if not with_body:
            return
        broken = self.breaks_after is not None and self.path.endswith(LARGE_FILE)
        self.wfile.write(body[: self.breaks_after] if broken else body)
        if broken and self.stalled is not None:
            self.stalled.set()
            self.end.wait(60)

    def log_message(self, *_: Any) -> None:
        pass


def checksum(name: str, files: dict[str, bytes]) -> str:
    """As the hub tells it: of a large file SHA-256, else git's."""
    content = files[name]
    if name in LARGE:
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@contextmanager
def serving() -> Iterator[str]:
    """The address of a hub that has everything."""
    Hub.reset()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        Hub.end.set()
        server.shutdown()
        server.server_close()
