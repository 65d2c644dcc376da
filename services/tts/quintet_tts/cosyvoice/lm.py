"""The language model: text in, speech tokens out, fifty for a second of sound.

What it reads is a row of vectors: a start mark, the speaker, the encoded text (with the prompt's before it), a task
mark, the prompt's speech tokens, and then token by token what it has said itself.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from quintet_tts.cosyvoice import encoder
from quintet_tts.cosyvoice.columns import Columns
from quintet_tts.cosyvoice.encoder import Encoder, EncoderConfig
from quintet_tts.cosyvoice.sampling import SamplingConfig
from quintet_tts.cosyvoice.settings import Section

START, TASK = 0, 1
"""Rows of the table of marks."""


@dataclass(frozen=True)
class LMConfig:
    text_tokens: int
    speech_tokens: int
    speaker_size: int
    text_encoder: EncoderConfig
    decoder: EncoderConfig
    sampling: SamplingConfig

    @property
    def end(self) -> int:
        """The id that ends a sentence."""
        return self.speech_tokens


def read_config(top: Section) -> LMConfig:
    """Raises LoadError."""
    section = top.section("llm", "TransformerLM")
    sampling = SamplingConfig()
    if section.has("sampling"):
        given = section.section("sampling", "ras_sampling")
        sampling = SamplingConfig(
            top_p=given.number("top_p", sampling.top_p),
            top_k=given.integer("top_k", sampling.top_k),
            window=given.integer("win_size", sampling.window),
            repetition=given.number("tau_r", sampling.repetition),
        )
    return LMConfig(
        text_tokens=section.integer("text_token_size"),
        speech_tokens=section.integer("speech_token_size"),
        speaker_size=section.integer("spk_embed_dim", 192),
        text_encoder=encoder.read_config(section.section("text_encoder", "ConformerEncoder"), legacy=False),
        decoder=encoder.read_config(section.section("llm", "TransformerEncoder"), legacy=True),
        sampling=sampling,
    )


class SpeechLM(nn.Module):
    def __init__(self, config: LMConfig) -> None:
        super().__init__()
        self.config = config
        text, width = config.text_encoder, config.decoder.width
        self.text_embedding = nn.Embedding(config.text_tokens, text.input_size)
        self.text_encoder = Encoder(text)
        self.text_encoder_affine_layer = nn.Linear(text.width, config.decoder.input_size)
        self.llm_embedding = nn.Embedding(2, config.decoder.input_size)
        self.llm = Encoder(config.decoder)
        self.llm_decoder = nn.Linear(width, config.speech_tokens + 1)
        self.speech_embedding = nn.Embedding(config.speech_tokens, config.decoder.input_size)
        self.spk_embed_affine_layer = nn.Linear(config.speaker_size, config.decoder.input_size)

    def prefix(self, text: Tensor, speaker: Tensor | None, prompt_speech: Tensor | None = None) -> Tensor:
        """What is read before the first token is said: [1, N, input].

        ``text`` [1, T] are ids, the prompt's before the text's; ``speaker`` [1, speaker_size], None leaves its place
        out; ``prompt_speech`` [1, S] are speech tokens.
        """
        encoded = self.text_encoder_affine_layer(self.text_encoder(self.text_embedding(text)))
        parts = [self._mark(START)]
        if speaker is not None:
            vector = functional.normalize(speaker.float(), dim=1).to(encoded.dtype)
            parts.append(self.spk_embed_affine_layer(vector).unsqueeze(1))
        parts += [encoded, self._mark(TASK)]
        if prompt_speech is not None and prompt_speech.shape[1]:
            parts.append(self.speech_embedding(prompt_speech))
        return torch.cat(parts, dim=1)

    def prefill(self, prefix: Tensor) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        """Log-probabilities [1, V] of the first token, and the keys and values of each block."""
        hidden, cache = self.llm.prefill(prefix)
        return self.scores(hidden[:, -1]), cache

    def step(self, tokens: Tensor, columns: Columns) -> Tensor:
        """Log-probabilities [B, V] of what follows ``tokens`` [B], the last token of each row of ``columns``."""
        x = self.llm.embed(self.speech_embedding(tokens).unsqueeze(1))
        mask = columns.open_column()
        for index, block in enumerate(self.llm.blocks):
            attention = block.self_attn
            query, key, value = attention.project(block.norm_mha(x))
            keys, values = columns.put(index, key, value)
            scores = attention.position_scores(query, columns.positions(index)) + mask
            x = x + attention.attend(query, keys, values, scores)
            x = x + block.feed_forward(block.norm_ff(x))
        return self.scores(self.llm.after_norm(x)[:, 0])

    def scores(self, hidden: Tensor) -> Tensor:
        """Log-probabilities [B, V] in float32 of hidden states [B, W]."""
        scores: Tensor = self.llm_decoder(hidden)
        return scores.float().log_softmax(dim=-1)

    def _mark(self, row: int) -> Tensor:
        return self.llm_embedding.weight[row].reshape(1, 1, -1)
