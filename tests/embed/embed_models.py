"""Tiny random models, written as sentence-transformers writes real ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

LINES = [
    "hello world embeddings are vectors",
    "你好 世界 向量",
    "the cat sat on the mat",
    "serving models on GPUs",
    "which query finds which document",
]


def tokenizer(**settings: Any) -> Any:
    """A unigram tokeniser of 300 pieces with XLM-R's special tokens."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    rust = Tokenizer(models.Unigram())
    rust.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    rust.train_from_iterator(
        LINES * 50, trainers.UnigramTrainer(vocab_size=300, special_tokens=special, unk_token="<unk>")
    )
    rust.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    names = {"bos": "<s>", "cls": "<s>", "eos": "</s>", "sep": "</s>", "unk": "<unk>", "pad": "<pad>", "mask": "<mask>"}
    tokens = {f"{name}_token": token for name, token in names.items()}
    return PreTrainedTokenizerFast(tokenizer_object=rust, model_max_length=8192, **tokens, **settings)


def _config(vocabulary: int, **settings: Any) -> Any:
    from transformers import XLMRobertaConfig

    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    ids = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
    return XLMRobertaConfig(
        vocab_size=vocabulary, max_position_embeddings=130, type_vocab_size=1, **shape, **ids, **settings
    )


def write_embedder(
    folder: Path,
    *,
    pooling: str = "cls",
    include_prompt: bool = True,
    normalize: bool = True,
    padding_side: str = "right",
    prompts: dict[str, str] | None = None,
) -> str:
    """An XLM-R of 32 numbers per vector that reads 128 tokens, pooled as told. Returns its directory."""
    import torch
    from transformers import XLMRobertaModel

    torch.manual_seed(0)
    tok = tokenizer(padding_side=padding_side)
    XLMRobertaModel(_config(len(tok)), add_pooling_layer=False).save_pretrained(folder)
    tok.save_pretrained(folder)
    _write_modules(folder, pooling, include_prompt, normalize, prompts or {})
    return str(folder)


def _write_modules(folder: Path, pooling: str, include_prompt: bool, normalize: bool, prompts: dict[str, str]) -> None:
    """What sentence-transformers writes beside a transformer."""
    parts = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")][: 3 if normalize else 2]
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{name}"}
        for i, (path, name) in enumerate(parts)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 128, "do_lower_case": false}')
    (folder / "config_sentence_transformers.json").write_text(json.dumps({"prompts": prompts}))
    (folder / "1_Pooling").mkdir()
    modes = {f"pooling_mode_{mode}": mode.startswith(pooling) for mode in ("cls_token", "mean_tokens", "lasttoken")}
    pooled = {"word_embedding_dimension": 32, "include_prompt": include_prompt, **modes}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooled))


def write_heads(folder: str) -> None:
    """bge-m3's two heads beside a model that ``write_embedder`` wrote."""
    import torch

    torch.manual_seed(2)
    for name, width in (("sparse_linear.pt", 1), ("colbert_linear.pt", 32)):
        torch.save(torch.nn.Linear(32, width).state_dict(), Path(folder) / name)


def write_qwen3_embedder(folder: Path) -> str:
    """Qwen3-Embedding in small: last token, left padding, an instruction before queries. Returns its directory."""
    import torch
    from tokenizers import processors
    from transformers import Qwen3Config, Qwen3Model

    torch.manual_seed(3)
    tok = tokenizer(padding_side="left")
    # As Qwen's: nothing before a text, one token behind it.
    tok.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 2)]
    )
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 64}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
    ids = {"pad_token_id": 1, "bos_token_id": None, "eos_token_id": 2}
    config = Qwen3Config(vocab_size=len(tok), max_position_embeddings=256, **shape, **heads, **ids)
    Qwen3Model(config).save_pretrained(folder)
    tok.save_pretrained(folder)
    prompts = {"query": "Instruct: which query finds which document\nQuery:", "document": ""}
    _write_modules(folder, "lasttoken", include_prompt=True, normalize=True, prompts=prompts)
    return str(folder)


def write_jina_embedder(folder: Path) -> str:
    """jina-embeddings-v3 in small, as transformers has it: rotary positions, mean. Returns its directory."""
    import torch
    from transformers import JinaEmbeddingsV3Config, JinaEmbeddingsV3Model

    torch.manual_seed(4)
    tok = tokenizer()
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    ids = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
    config = JinaEmbeddingsV3Config(vocab_size=len(tok), max_position_embeddings=256, type_vocab_size=1, **shape, **ids)
    JinaEmbeddingsV3Model(config, add_pooling_layer=False).save_pretrained(folder)
    tok.save_pretrained(folder)
    prompts = {"retrieval.query": "which query finds: ", "retrieval.passage": "which document: "}
    _write_modules(folder, "mean", include_prompt=True, normalize=True, prompts=prompts)
    return str(folder)


def write_reranker(folder: Path, labels: int = 1) -> str:
    """An XLM-R that gives one score to a pair, or a classifier of more labels. Returns its directory."""
    import torch
    from transformers import XLMRobertaForSequenceClassification

    torch.manual_seed(1)
    tok = tokenizer()
    tok.model_max_length = 128
    model = XLMRobertaForSequenceClassification(_config(len(tok), num_labels=labels))
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(4)  # from the usual small start all pairs would score alike
    model.save_pretrained(folder)
    tok.save_pretrained(folder)
    return str(folder)
