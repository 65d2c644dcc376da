"""A pytest plugin for vLLM's tests of its server, where vLLM is not: they meet the server that runs."""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import os
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any
from unittest.mock import MagicMock

from openai import AsyncOpenAI, OpenAI

ABSENT = {"vllm", "torch"}
HELPERS = "tests.utils"


class RemoteOpenAIServer:
    """What their tests start a server with."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self.url_root = os.environ["QUINTET_URL"]

    def __enter__(self) -> RemoteOpenAIServer:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def url_for(self, *parts: str) -> str:
        return "/".join([self.url_root, *parts])

    def get_client(self, **how: Any) -> OpenAI:
        return OpenAI(base_url=self.url_for("v1"), **{"api_key": "none", "max_retries": 0, "timeout": 120} | how)

    def get_async_client(self, **how: Any) -> AsyncOpenAI:
        return AsyncOpenAI(base_url=self.url_for("v1"), **{"api_key": "none", "max_retries": 0, "timeout": 120} | how)


class Absent(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Lets what is not installed be imported; what is done with it fails."""

    def find_spec(
        self, fullname: str, _path: Sequence[str] | None, _target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname == HELPERS or fullname.partition(".")[0] in ABSENT:
            return importlib.machinery.ModuleSpec(fullname, self, is_package=True)
        return None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> Any:
        module = MagicMock(name=spec.name)
        module.__name__, module.__spec__, module.__path__ = spec.name, spec, []
        if spec.name == HELPERS:
            module.RemoteOpenAIServer, module.ROCM_EXTRA_ARGS = RemoteOpenAIServer, []
        return module

    def exec_module(self, module: ModuleType) -> None:
        pass


sys.meta_path.insert(0, Absent())
