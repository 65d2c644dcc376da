"""The ``quintet`` command: serve, check, models, run."""

__version__ = "0.1.0"
