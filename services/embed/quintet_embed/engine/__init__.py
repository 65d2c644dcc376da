"""Scheduling inside a model's process: a fair queue, batches by token budget, one tokeniser and one model thread."""
