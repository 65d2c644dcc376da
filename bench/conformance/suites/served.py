"""What is tried: the URL of a running chat service, and its model."""

from __future__ import annotations

import os

from pydantic import BaseModel, Field

URL = f"{os.environ['QUINTET_URL']}/v1"
MODEL = os.environ.get("QUINTET_MODEL", "smollm2-135m-instruct")
TOKENS = 300
USER = [{"role": "user", "content": "John is 30 years old."}]
WEATHER = "What is the weather in Paris?"


class Person(BaseModel):
    name: str = Field(max_length=30)
    age: int = Field(ge=0, le=120)
