"""Ask one model through the router, as a client would, and look at what comes: ``ask.py KIND MODEL``.

Run by ``helm test`` in a pod of the router's image; nothing but Python's own library is needed.
"""

import base64
import json
import os
import struct
import sys
import time
import urllib.error
import urllib.request
import zlib

PATIENCE = float(os.environ.get("TIMEOUT_SECONDS", "300"))


def ask(path, body):
    """The answer's bytes. A model that still loads is asked again, until the time is up."""
    headers = {"content-type": "application/json", "authorization": "Bearer " + os.environ.get("API_KEY", "none")}
    request = urllib.request.Request(os.environ["ROUTER"] + path, json.dumps(body).encode(), headers)
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE) as response:
                return response.read()
        except urllib.error.HTTPError as error:
            reason = error.read().decode(errors="replace")
            if error.code != 503 or time.monotonic() > deadline:
                sys.exit(f"{path}: {error.code} {reason}")
        except urllib.error.URLError as error:
            if time.monotonic() > deadline:
                sys.exit(f"{path}: {error.reason}")
        time.sleep(2)


def white_png(side=64):
    """A white square."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    rows = zlib.compress((b"\0" + b"\xff" * side) * side)
    head = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def chat(model):
    messages = [{"role": "user", "content": "Say hello."}]
    answer = json.loads(ask("/v1/chat/completions", {"model": model, "messages": messages, "max_tokens": 8}))
    return answer["choices"][0]["message"]["content"].strip()


def multimodal(model):
    picture = "data:image/png;base64," + base64.b64encode(white_png()).decode()
    content = [{"type": "text", "text": "What is this?"}, {"type": "image_url", "image_url": {"url": picture}}]
    body = {"model": model, "messages": [{"role": "user", "content": content}], "max_tokens": 8}
    answer = json.loads(ask("/v1/chat/completions", body))
    # A blank picture has no text to read, so the answer itself is what counts.
    return answer["choices"][0]["finish_reason"]


def image(model):
    body = {"model": model, "prompt": "a red apple", "response_format": "b64_json"}
    answer = json.loads(ask("/v1/images/generations", body))
    return base64.b64decode(answer["data"][0]["b64_json"])[:4].strip(b"\x89").decode(errors="replace")


def tts(model):
    sound = ask("/v1/audio/speech", {"model": model, "input": "Hello.", "voice": "alloy", "response_format": "wav"})
    return sound[:4].decode() if len(sound) > 1000 else ""


def embedding(model):
    answer = json.loads(ask("/v1/embeddings", {"model": model, "input": "Hello."}))
    return len(answer["data"][0]["embedding"])


def rerank(model):
    answer = json.loads(ask("/v1/rerank", {"model": model, "query": "a fruit", "documents": ["an apple", "a car"]}))
    return len(answer["results"])


if __name__ == "__main__":
    kind, name = sys.argv[1:]
    found = globals()[kind](name)
    sys.stdout.write(f"{name}: {found}\n")
    sys.exit(not found and f"{name}: the answer is empty")
