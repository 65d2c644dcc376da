"""The peer that most people write: FastAPI around sentence-transformers, each request encoded in a thread.

python bench/embed/naive_server.py MODEL_DIRECTORY PORT
"""

from __future__ import annotations

import asyncio
import base64
import sys
from typing import Any

import torch
import uvicorn
from fastapi import FastAPI
from sentence_transformers import SentenceTransformer

torch.set_num_threads(1)
model = SentenceTransformer(sys.argv[1], device="cpu", local_files_only=True)
app = FastAPI()


@app.post("/v1/embeddings")
async def embeddings(body: dict[str, Any]) -> dict[str, Any]:
    texts = [body["input"]] if isinstance(body["input"], str) else body["input"]
    rows = await asyncio.to_thread(model.encode, texts, show_progress_bar=False)
    data = [
        {"object": "embedding", "index": index, "embedding": base64.b64encode(row.tobytes()).decode()}
        for index, row in enumerate(rows)
    ]
    return {"object": "list", "data": data, "model": "naive", "usage": {"prompt_tokens": 0, "total_tokens": 0}}


uvicorn.run(app, port=int(sys.argv[2]), log_level="error")
