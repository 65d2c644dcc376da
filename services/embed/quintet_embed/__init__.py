"""Embeddings and reranking: any sentence-transformers model behind OpenAI's API."""
