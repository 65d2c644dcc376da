"""The tokenizer of GLM-4: a file of byte strings with their ranks, made into one that transformers can use.

A line of ``tokenizer.model`` is a token's bytes in base64, a blank, and its rank. Of neighbours whose bytes
together are a token, those whose token has the lowest rank are joined first (byte pair encoding as tiktoken does it).
"""

from __future__ import annotations

import base64
import binascii
import json
from pathlib import Path
from typing import Any

from quintet_common.worker.host import LoadError
from tokenizers import AddedToken, Regex, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""Tokens do not reach across the bounds of these: the pattern that tiktoken calls cl100k."""

_SPECIAL = (
    "<|endoftext|>", "[MASK]", "[gMASK]", "[sMASK]", "<sop>", "<eop>", "<|system|>", "<|user|>", "<|assistant|>",
    "<|observation|>", "<|begin_of_image|>", "<|end_of_image|>", "<|begin_of_video|>", "<|end_of_video|>",
)  # fmt: skip
"""They follow the ranks in this order."""

_ROLES_ONLY = (
    "[gMASK]<sop>{% for item in messages %}<|{{ item['role'] }}|>{{ item['metadata'] }}\n{{ item['content'] }}"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
"""For the earliest revisions, which had their template in code. Tools are then described in words."""


def load_tokenizer(model_id: str, folder: Path) -> Any:
    """Raises LoadError when ``tokenizer.model`` is missing or is none."""
    ranks = _ranks(model_id, folder / "tokenizer.model")
    letters = bytes_to_unicode()
    words = {token: "".join(letters[byte] for byte in token) for token in ranks}
    model = BPE({words[token]: rank for token, rank in ranks.items()}, _merges(ranks, words), ignore_merges=True)
    tokenizer = Tokenizer(model)
    split = pre_tokenizers.Split(Regex(_WORDS), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text, normalized=False, special=True) for text in _SPECIAL])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
        clean_up_tokenization_spaces=False,
        chat_template=_template(folder / "tokenizer_config.json"),
    )


def _ranks(model_id: str, file: Path) -> dict[bytes, int]:
    try:
        lines = (line.split() for line in file.read_bytes().splitlines() if line.strip())
        ranks = {base64.b64decode(token, validate=True): int(rank) for token, rank in lines}
    except OSError:
        raise LoadError(f"{model_id}: {file} is missing; the tokenizer is made from it.") from None
    except (ValueError, binascii.Error):
        raise LoadError(f"{model_id}: {file} is no file of tokens and ranks.") from None
    if sorted(ranks.values()) != list(range(len(ranks))) or any(bytes((byte,)) not in ranks for byte in range(256)):
        raise LoadError(f"{model_id}: {file} is no whole vocabulary: ranks or single bytes are missing.")
    return ranks


def _merges(ranks: dict[bytes, int], words: dict[bytes, str]) -> list[tuple[str, str]]:
    """Every way to join two tokens to a third, those of the lowest third first."""
    merges: list[tuple[str, str]] = []
    for token in sorted((token for token in ranks if len(token) > 1), key=ranks.__getitem__):
        halves = ((token[:at], token[at:]) for at in range(1, len(token)))
        joins = [(left, right) for left, right in halves if left in ranks and right in ranks]
        joins.sort(key=lambda join: (ranks[join[0]], ranks[join[1]]))
        merges += [(words[left], words[right]) for left, right in joins]
    return merges


def _template(file: Path) -> str:
    """The chat template that came with the model."""
    try:
        found = json.loads(file.read_text()).get("chat_template")
    except (OSError, ValueError, AttributeError):
        found = None
    return found if isinstance(found, str) else _ROLES_ONLY
