"""The engine of a speech worker."""

from quintet_tts.engine.engine import create_engine

__all__ = ["create_engine"]
