"""What the voices that run on onnxruntime share."""

from __future__ import annotations

import onnxruntime


def session(model: str | bytes) -> onnxruntime.InferenceSession:
    """A model on the calling thread alone, which gives its memory back after each sentence: onnxruntime's default keeps
    the peak of every thread. Raises onnxruntime's own errors for what is no model."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.enable_cpu_mem_arena = False
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
