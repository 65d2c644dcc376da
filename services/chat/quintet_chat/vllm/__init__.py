"""``engine: vllm``: vLLM's own server behind our API, for what transformers cannot load or one GPU cannot hold."""
