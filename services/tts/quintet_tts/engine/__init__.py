"""Scheduling inside a speech worker: whose sentence is spoken next."""
