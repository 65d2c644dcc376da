"""A CosyVoice of a few hundred kilobytes with random weights, saved in the layout of a release."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from quintet_tts.cosyvoice import files
from quintet_tts.cosyvoice.flow import Flow
from quintet_tts.cosyvoice.hift import Hift
from quintet_tts.cosyvoice.lm import SpeechLM
from torch import Tensor

VOICES = ["中文女", "中文男", "日语男", "粤语女", "英文女", "英文男", "韩语女"]

# The optional training sections of a release are hinted at by one of each kind of tag.
YAML = """
__set_seed1: !apply:random.seed [1986]
__set_seed2: !apply:torch.manual_seed [1986]
sample_rate: 22050
width: 16
llm: !new:cosyvoice.llm.llm.TransformerLM
    llm_input_size: !ref <width>
    text_token_size: 51866
    speech_token_size: 40
    spk_embed_dim: 192
    text_encoder: !new:cosyvoice.transformer.encoder.ConformerEncoder
        input_size: 4
        output_size: 8
        attention_heads: 2
        linear_units: 12
        num_blocks: 1
        normalize_before: True
        input_layer: 'linear'
        pos_enc_layer_type: 'rel_pos_espnet'
        selfattention_layer_type: 'rel_selfattn'
        use_cnn_module: False
        macaron_style: False
        static_chunk_size: 1
    llm: !new:cosyvoice.transformer.encoder.TransformerEncoder
        input_size: !ref <width>
        output_size: !ref <width>
        attention_heads: 2
        linear_units: 24
        num_blocks: 2
        input_layer: 'linear_legacy'
        pos_enc_layer_type: 'rel_pos_espnet'
        selfattention_layer_type: 'rel_selfattn'
        static_chunk_size: 1
    sampling: !name:cosyvoice.utils.common.ras_sampling
        top_p: 0.8
        top_k: 25
        win_size: 10
        tau_r: 0.1
flow: !new:cosyvoice.flow.flow.MaskedDiffWithXvec
    input_size: 8
    output_size: 80
    spk_embed_dim: 192
    vocab_size: 40
    input_frame_rate: 50
    encoder: !new:cosyvoice.transformer.encoder.ConformerEncoder
        input_size: 8
        output_size: 8
        attention_heads: 2
        linear_units: 12
        num_blocks: 1
    length_regulator: !new:cosyvoice.flow.length_regulator.InterpolateRegulator
        channels: 80
        sampling_ratios: [1, 1]
    decoder: !new:cosyvoice.flow.flow_matching.ConditionalCFM
        in_channels: 240
        cfm_params: !new:omegaconf.DictConfig
            content:
                sigma_min: 1e-06
                solver: 'euler'
                t_scheduler: 'cosine'
                inference_cfg_rate: 0.7
        estimator: !new:cosyvoice.flow.decoder.ConditionalDecoder
            in_channels: 320
            out_channels: 80
            channels: [8, 8]
            attention_head_dim: 4
            n_blocks: 1
            num_mid_blocks: 1
            num_heads: 2
            act_fn: 'gelu'
hift: !new:cosyvoice.hifigan.generator.HiFTGenerator
    in_channels: 80
    base_channels: 16
    nb_harmonics: 8
    sampling_rate: !ref <sample_rate>
    nsf_alpha: 0.1
    nsf_sigma: 0.003
    nsf_voiced_threshold: 10
    upsample_rates: [8, 8]
    upsample_kernel_sizes: [16, 16]
    istft_params:
        n_fft: 16
        hop_len: 4
    resblock_kernel_sizes: [3]
    resblock_dilation_sizes: [[1, 3]]
    source_resblock_kernel_sizes: [7, 11]
    source_resblock_dilation_sizes: [[1], [1]]
    lrelu_slope: 0.1
    audio_limit: 0.99
    f0_predictor: !new:cosyvoice.hifigan.f0_predictor.ConvRNNF0Predictor
        num_class: 1
        in_channels: 80
        cond_channels: 8
parquet_opener: !name:cosyvoice.dataset.processor.parquet_opener
data_pipeline: [
    !ref <parquet_opener>,
]
"""


def write(folder: Path) -> Path:
    """Write the model into ``folder``, which is made."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cosyvoice.yaml").write_text(YAML)
    config = files.read_config(folder)
    generator = torch.Generator().manual_seed(1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)  # biases are as the modules are made
        lm, flow, hift = SpeechLM(config.lm), Flow(config.flow), Hift(config.hift)
    for module in (lm, flow, hift):
        for parameter in module.parameters():
            if parameter.dim() > 1:
                parameter.data.normal_(0, 0.3, generator=generator)
    lm.llm_decoder.bias.data[config.lm.end] = 2.5  # so that sentences end, some sooner than others
    hift.f0_predictor.classifier.bias.data[:] = 200
    hift.conv_post.bias.data[:9] = -2
    torch.save({_released(name): tensor for name, tensor in lm.state_dict().items()}, folder / "llm.pt")
    torch.save(flow.state_dict(), folder / "flow.pt")
    torch.save(_normed(hift.state_dict()), folder / "hift.pt")
    speakers = {name: {"embedding": torch.randn(1, 192, generator=generator)} for name in VOICES}
    torch.save(speakers, folder / "spk2info.pt")
    return folder


def _released(name: str) -> str:
    if not name.startswith("llm.encoders."):
        return name
    return name.replace(".norm_mha.", ".norm1.").replace(".norm_ff.", ".norm2.")


_PLAIN = re.compile(r"m_source|source_downs|classifier")


def _normed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Convolutions as norm and direction, as torch saves them under weight norm."""
    saved = {}
    for name, tensor in state.items():
        if name.endswith(".weight") and not _PLAIN.search(name):
            stem = name.removesuffix("weight") + "parametrizations.weight.original"
            saved[stem + "0"] = tensor.flatten(1).norm(dim=1).reshape(-1, 1, 1)
            saved[stem + "1"] = 3 * tensor  # any length: the norm says how long it is
        else:
            saved[name] = tensor
    return saved
