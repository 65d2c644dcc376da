"""Tiny random models that see, with a processor of their own, and pictures to show them."""

from __future__ import annotations

import atexit
import functools
import importlib
import io
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from chat.engine_kit import RECURRENT, SHAPE, SPECIAL
from PIL import Image
from quintet_chat.backends import processor
from quintet_common.models_yml import ModelSpec
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

TILES = [f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)]
MARKS = [
    "<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>", "<|vision_start|>", "<|vision_end|>",
    "<|image_pad|>", "<|video_pad|>", "<|begin_of_image|>", "<|image|>", "<|end_of_image|>", "<|begin_of_video|>",
    "<|video|>", "<|end_of_video|>", "<start_of_image>", "<image_soft_token>", "<end_of_image>",
    "[IMG]", "[IMG_BREAK]", "[IMG_END]",
]  # fmt: skip
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.content is string %}{{ m.content }}{% else %}"
    "{% for part in m.content %}{% if part.type == 'image' %}PICTURE{% else %}{{ part.text }}{% endif %}{% endfor %}"
    "{% endif %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PARTS_TEMPLATE = TEMPLATE.replace("{% if m.content is string %}{{ m.content }}{% else %}", "").replace(
    "{% endfor %}{% endif %}<|im_end|>", "{% endfor %}<|im_end|>"
)
"""One that takes parts alone, like LLaVA's."""

TOWER = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
SQUARE = {**TOWER, "image_size": 56, "patch_size": 14}
ROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}}
QWEN_MARKS = {"image_token_id": "<|image_pad|>", "video_token_id": "<|video_pad|>"} | {
    f"vision_{end}_token_id": f"<|vision_{end}|>" for end in ("start", "end")
}
QWEN_TOWER = {"depth": 2, "num_heads": 2, "patch_size": 14}
GLM_TOWER = {**QWEN_TOWER, "hidden_size": 32, "intermediate_size": 48, "out_hidden_size": 64}
GLM_MARKS = {"image_token_id": "<|image|>", "video_token_id": "<|video|>"} | {
    f"{kind}_{end}_token_id": f"<|{word}_of_{kind}|>"
    for kind in ("image", "video")
    for end, word in (("start", "begin"), ("end", "end"))
}
SLIDING = {"head_dim": 16, "layer_types": ["sliding_attention", "full_attention"]}
QWEN_SIZES = {"size": {"shortest_edge": 28 * 28 * 4, "longest_edge": 28 * 28 * 16}}

KINDS: dict[str, dict[str, Any]] = {
    "llava": {
        "written": "<image>\n",
        "text_config": {"model_type": "llama"},
        "vision_config": {"model_type": "clip_vision_model", **SQUARE},
        "marks": {"image_token_id": "<image>"},
        "images": ("clip", {"size": {"shortest_edge": 56}, "crop_size": {"height": 56, "width": 56}}),
        "processor": {
            "patch_size": 14,
            "vision_feature_select_strategy": "default",
            "num_additional_image_tokens": 1,
        },
        "template": PARTS_TEMPLATE,
    },
    "idefics3": {
        "written": "<image>",
        "text_config": {"model_type": "llama"},
        "vision_config": SQUARE,
        "more": {"scale_factor": 2},
        "marks": {"image_token_id": "<image>"},
        "images": ("idefics3", {"size": {"longest_edge": 112}, "max_image_size": {"longest_edge": 56}}),
        "processor": {"image_seq_len": 4},
    },
    "qwen2_vl": {
        "written": "<|vision_start|><|image_pad|><|vision_end|>",
        "text_config": ROPE,
        "vision_config": {**QWEN_TOWER, "embed_dim": 32, "hidden_size": 64, "mlp_ratio": 2},
        "marks": QWEN_MARKS,
        "images": ("qwen2_vl", QWEN_SIZES),
    },
    "qwen2_5_vl": {
        "written": "<|vision_start|><|image_pad|><|vision_end|>",
        "text_config": ROPE,
        "vision_config": {**GLM_TOWER, "fullatt_block_indexes": [1], "window_size": 56},
        "marks": QWEN_MARKS,
        "images": ("qwen2_vl", QWEN_SIZES),
    },
    "glm4v": {
        "written": "<|begin_of_image|><|image|><|end_of_image|>",
        "text_config": {"rope_parameters": {**ROPE["rope_parameters"], "partial_rotary_factor": 1.0}},
        "vision_config": {**GLM_TOWER, "image_size": 56},
        "marks": GLM_MARKS,
        "images": ("glm4v", {"size": {"shortest_edge": 28 * 28 * 4, "longest_edge": 28 * 28 * 32}}),
    },
    "internvl": {
        "written": "<image>",
        "text_config": {"model_type": "qwen2"},
        "vision_config": {**TOWER, "image_size": [56, 56], "patch_size": [14, 14]},
        "marks": {"image_token_id": "<image>"},
        "special": {
            "start_image_token": "<|vision_start|>",
            "end_image_token": "<|vision_end|>",
            "context_image_token": "<image>",
            "video_token": "<|video|>",
        },
        "images": ("got_ocr2", {"size": {"height": 56, "width": 56}, "crop_to_patches": True, "max_patches": 3}),
        "processor": {"image_seq_length": 4},
    },
}
"""What each differs in. Those from Qwen and GLM have positions of three dimensions."""

GEMMA_MARKS = {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"}
KINDS |= {
    "gemma3": {
        "written": "<start_of_image>",
        "text_config": {**SLIDING, "sliding_window": 11},
        "vision_config": SQUARE,
        "more": {"mm_tokens_per_image": 16},
        "marks": {f"{name}_id": mark for name, mark in GEMMA_MARKS.items()},
        "special": GEMMA_MARKS,
        "images": ("gemma3", {"size": {"height": 56, "width": 56}}),
        "processor": {"image_seq_length": 16},
    },
    "qwen3_vl": {
        **KINDS["qwen2_vl"],
        "text_config": {**ROPE, "head_dim": 16},
        "vision_config": {**GLM_TOWER, "depth": 3, "num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1]},
    },
    "qwen3_5": {
        **KINDS["qwen2_vl"],
        "text_config": {**ROPE, **RECURRENT},
        "vision_config": {**GLM_TOWER, "num_position_embeddings": 64},
    },
    "smolvlm": {**KINDS["idefics3"], "images": ("smolvlm", KINDS["idefics3"]["images"][1])},
    "mistral3": {
        "written": "[IMG]",
        "text_config": {"model_type": "ministral3", "head_dim": 16},
        "vision_config": {**TOWER, "model_type": "pixtral", "image_size": 112, "patch_size": 14, "head_dim": 16},
        "more": {"spatial_merge_size": 2},
        "marks": {"image_token_id": "[IMG]"},
        "images": ("pixtral", {"size": {"longest_edge": 112}, "patch_size": {"height": 14, "width": 14}}),
        "processor": {"patch_size": 14, "spatial_merge_size": 2},
    },
}
GEMMA4 = {
    "written": "<|image|>",
    "text_config": {
        **SLIDING, "num_hidden_layers": 3, "layer_types": [*SLIDING["layer_types"], "sliding_attention"],
        "sliding_window": 40, "global_head_dim": 16, "hidden_size_per_layer_input": 0,
        "num_kv_shared_layers": 0, "use_bidirectional_attention": "vision",
    },
    "vision_config": {
        **TOWER, "num_key_value_heads": 2, "head_dim": 16, "patch_size": 4, "position_embedding_size": 640
    },
    "more": {"audio_config": None},
    "marks": {
        **GLM_MARKS, "boi_token_id": "<|begin_of_image|>", "eoi_token_id": "<|end_of_image|>",
        "audio_token_id": "<|begin_of_video|>",
    },
    "special": {
        "image_token": "<|image|>", "boi_token": "<|begin_of_image|>", "eoi_token": "<|end_of_image|>",
        "audio_token": "<|video|>", "boa_token": "<|begin_of_video|>", "eoa_token": "<|end_of_video|>",
    },
    "images": ("gemma4", {"patch_size": 4, "max_soft_tokens": 70}),
}  # fmt: skip
KINDS["gemma4"] = GEMMA4
KINDS["gemma4 e2b"] = {
    **GEMMA4,
    "text_config": {
        **GEMMA4["text_config"], "num_hidden_layers": 4, "layer_types": SLIDING["layer_types"] * 2,
        "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 460, "num_kv_shared_layers": 2,
        "use_bidirectional_attention": None,
    },
}  # fmt: skip
"""Its small sizes embed tokens anew for each layer, and layers share keys and values."""
KINDS["qwen3_vl_moe"] = {
    **KINDS["qwen3_vl"],
    "text_config": {
        **KINDS["qwen3_vl"]["text_config"], "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32
    },
}  # fmt: skip


def _tokenizer(about: dict[str, Any]) -> Any:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=[*SPECIAL, *MARKS, *TILES],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
        min_frequency=2,
    )
    made.train_from_iterator(["hello world the cat sat on the mat"] * 20, trainer)
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=made,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        bos_token="<|endoftext|>",
        extra_special_tokens=about.get("special", {}),
    )
    fast.chat_template = about.get("template", TEMPLATE).replace("PICTURE", about["written"])
    return fast


@functools.cache
def path(kind: str) -> Path:
    """A directory with a random model of ``kind``, a name of KINDS."""
    torch.manual_seed(0)
    about = KINDS[kind]
    made = _tokenizer(about)
    ends = {"pad_token_id": 0, "bos_token_id": 0, "eos_token_id": made.eos_token_id}
    text = {**SHAPE, **ends, "vocab_size": len(made), **about["text_config"]}
    marks = {name: made.convert_tokens_to_ids(mark) for name, mark in about["marks"].items()}
    config = transformers.AutoConfig.for_model(
        kind.split()[0], text_config=text, vision_config=about["vision_config"], **marks, **about.get("more", {})
    )
    folder = Path(tempfile.mkdtemp(prefix="quintet-tiny-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    model = transformers.AutoModelForImageTextToText.from_config(config).float()
    for name, parameter in model.named_parameters():
        # Gemma 3's projection of what it sees begins with zeros, and what is shown to Qwen3-VL's inner layers too quiet
        # to change a token.
        if parameter.ndim > 1 and (not parameter.any() or "deepstack" in name):
            torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder)
    made.save_pretrained(folder)
    name, sizes = about["images"]
    module = importlib.import_module(f"transformers.models.{name}.image_processing_pil_{name}")
    reads = next(found for attribute, found in vars(module).items() if attribute.endswith("ImageProcessorPil"))
    reads(**sizes).save_pretrained(folder)
    (folder / "processor_config.json").write_text(json.dumps(about.get("processor", {})))
    return folder


def spec(tiny: str, **fields: Any) -> ModelSpec:
    given: dict[str, Any] = {"id": "tiny", "kind": "multimodal", "dtype": "float32", "path": str(path(tiny)), **fields}
    return ModelSpec(device="cpu", **given)


@functools.cache
def reference(kind: str) -> tuple[Any, Any]:
    """The same model and its processor, for transformers' own ``generate``."""
    model = transformers.AutoModelForImageTextToText.from_pretrained(path(kind), dtype=torch.float32).eval()
    model.generation_config.eos_token_id = None
    return model, processor.load(str(path(kind)), model.config)


def picture(number: int) -> bytes:
    """A PNG of noise; each number has a picture and a size of its own."""
    noise = np.random.default_rng(number).integers(0, 256, (50 + 17 * (number % 4), 60 + 23 * (number % 3), 3), "uint8")
    out = io.BytesIO()
    Image.fromarray(noise).save(out, "PNG")
    return out.getvalue()


def message(text: str, *pictures: int, role: str = "user") -> dict[str, Any]:
    """A message as the worker gets it; ``pictures`` are indices into the request's."""
    parts: list[dict[str, Any]] = [{"type": "image", "image": index} for index in pictures]
    return {"role": role, "content": [*parts, {"type": "text", "text": text}] if parts else text}


def generate(kind: str, messages: list[dict[str, Any]], images: list[bytes], new: int) -> list[int]:
    """Greedy tokens by transformers, without stopping."""
    model, reader = reference(kind)
    parts = [
        {
            **each,
            "content": [{"type": "text", "text": each["content"]}]
            if isinstance(each["content"], str)
            else each["content"],
        }
        for each in messages
    ]
    text = reader.tokenizer.apply_chat_template(parts, tokenize=False, add_generation_prompt=True)
    order = [part["image"] for each in parts for part in each["content"] if part["type"] == "image"]
    shown = [Image.open(io.BytesIO(images[index])).convert("RGB") for index in order]
    inputs = reader(images=shown or None, text=[text], return_tensors="pt", add_special_tokens=False)
    out = model.generate(**inputs, max_new_tokens=new, do_sample=False)
    tokens: list[int] = out[0, inputs["input_ids"].shape[1] :].tolist()
    return tokens
