"""Stands in for vLLM's server in tests of what we make of its answers and its failures.

    python vllm_double.py [flags of vLLM]

It prints what vLLM prints while it loads, then answers at ``--host`` and ``--port``: every request is answered with the
words of its last message, one a chunk. What the words say is done: ``crash``, ``sleep``, ``error``, ``break``.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

FLAGS = sys.argv[1:]
seen: dict[str, Any] = {"flags": FLAGS, "running": 0, "environment": os.environ.get("CUDA_VISIBLE_DEVICES")}


def flag(name: str, default: str = "") -> str:
    return FLAGS[FLAGS.index(name) + 1] if name in FLAGS else default


async def models(request: Request) -> Response:
    if request.headers.get("authorization") != f"Bearer {os.environ['VLLM_API_KEY']}":
        return JSONResponse({"error": "Unauthorized"}, 401)
    length = int(flag("--max-model-len", "512"))
    return JSONResponse({"data": [{"id": flag("--served-model-name"), "max_model_len": length}]})


async def answer(request: Request) -> Response:
    body = seen["last"] = await request.json()
    chat = "messages" in body
    text = body["messages"][-1]["content"] if chat else body["prompt"]
    words = (text if isinstance(text, str) else "pictures").split()
    if "long" in words:
        message = "This model's maximum context length is 512 tokens. However, your request has 600 input tokens."
        return JSONResponse({"error": {"message": message, "type": "BadRequestError", "param": None, "code": 400}}, 400)
    return StreamingResponse(chunks(words, chat, body), media_type="text/event-stream")


async def chunks(words: list[str], chat: bool, body: dict[str, Any]) -> AsyncIterator[str]:
    seen["running"] += 1
    try:
        usage = {"prompt_tokens": 7, "prompt_tokens_details": {"cached_tokens": 4}}
        if chat:
            roles = [{"index": index, "delta": {"role": "assistant", "content": ""}} for index in range(body["n"])]
            yield line({"choices": roles, "usage": usage})
        for at, word in enumerate(words):
            if word == "crash":
                os._exit(3)
            if word == "sleep":
                await asyncio.sleep(60)
            if word == "error":
                yield line({"error": {"message": "EngineCore encountered an issue.", "code": 500}})
                return
            if word == "break":
                return
            for index in range(body["n"]):
                piece = f"{word} "
                choice: dict[str, Any] = {"index": index, "token_ids": [at], "logprobs": None}
                choice |= {"delta": {"content": piece}} if chat else {"text": piece}
                if body.get("logprobs"):
                    one = {"token": piece, "logprob": -0.5, "bytes": list(piece.encode()), "top_logprobs": []}
                    of_text = {"tokens": [piece], "token_logprobs": [-0.5], "top_logprobs": [{piece: -0.5, "x": -2.0}]}
                    choice["logprobs"] = {"content": [one]} if chat else of_text
                yield line({"choices": [choice], "usage": usage})
        reason = "length" if len(words) >= body.get("max_tokens", 99) else "stop"
        for index in range(body["n"]):
            end: dict[str, Any] = {"index": index, "finish_reason": reason, "token_ids": []}
            yield line({"choices": [end | ({"delta": {}} if chat else {"text": ""})], "usage": usage})
        yield line({"choices": [], "usage": usage})
        yield "data: [DONE]\n\n"
    finally:
        seen["running"] -= 1


def line(chunk: dict[str, Any]) -> str:
    return f"data: {json.dumps(chunk)}\n\n"


async def tokenize(request: Request) -> Response:
    """A token a word, and its length is its number."""
    body = await request.json()
    words = (body["messages"][-1]["content"] if "messages" in body else body["prompt"]).split()
    return JSONResponse({"count": len(words), "tokens": [len(word) for word in words], "token_strs": words})


async def detokenize(request: Request) -> Response:
    """The numbers; a template that opens the thinking ends with its tag."""
    text = " ".join(map(str, (await request.json())["tokens"]))
    return JSONResponse({"prompt": text + ("<think>\n" if flag("--served-model-name") == "thinker" else "")})


async def metrics(_request: Request) -> Response:
    return PlainTextResponse(
        "# TYPE vllm:num_requests_running gauge\n"
        f'vllm:num_requests_running{{engine="0"}} {seen["running"]}\n'
        "# TYPE vllm:prefix_cache_queries_total counter\n"
        'vllm:prefix_cache_queries_total{engine="0"} 7\nvllm:prefix_cache_queries_created{engine="0"} 1.7e9\n'
    )


async def last(_request: Request) -> Response:
    return JSONResponse(seen)


def say(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def main() -> None:
    say("(EngineCore pid=12) INFO 01-01 Starting to load model tiny...\n")
    say("\rLoading shards:  50% Completed | 1/2\rLoading shards: 100% Completed | 2/2\n")
    if "--fail" in FLAGS:
        say("(EngineCore pid=12) ERROR [core.py:1] ValueError: No room for 3 GiB of keys and values.\n")
        say("Exception: WorkerProc initialization failed due to an exception in a background process.\n")
        say("RuntimeError: Engine core initialization failed. See root cause above.\n")
        raise SystemExit(1)
    routes = [
        Route("/v1/models", models),
        Route("/v1/chat/completions", answer, methods=["POST"]),
        Route("/v1/completions", answer, methods=["POST"]),
        Route("/tokenize", tokenize, methods=["POST"]),
        Route("/detokenize", detokenize, methods=["POST"]),
        Route("/metrics", metrics),
        Route("/last", last),
    ]
    uvicorn.run(Starlette(routes=routes), host=flag("--host"), port=int(flag("--port")), log_level="error")


if __name__ == "__main__":
    main()
