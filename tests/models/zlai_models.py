"""Every model of ZLAI's page as a tiny random checkpoint in the layout in which it is published, and their file."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import NamedTuple

from chat import chatglm_tiny, glm4v_tiny, minicpmv_tiny
from chat.engine_kit import tiny_path
from embed.embed_models import write_embedder, write_heads
from tts import cosyvoice_tiny
from vision.tiny_kolors import save_tiny_kolors


class Entry(NamedTuple):
    name: str
    folder: str
    model_type: str
    load_method: str
    kind: str


ENTRIES = (
    Entry("Qwen2-0.5B-Instruct", "qwen2", "completion", "load_qwen2", "chat"),
    Entry("Qwen2-1.5B-Instruct", "qwen2", "completion", "load_qwen2", "chat"),
    Entry("Qwen2-7B-Instruct", "qwen2", "completion", "load_qwen2", "chat"),
    Entry("Qwen2-57B-A14B-Instruct-GPTQ-Int4", "gptq", "completion", "load_qwen2", "chat"),
    Entry("glm-4-9b-chat", "glm-4", "completion", "load_glm4", "chat"),
    Entry("glm-4-9b-chat-1m", "glm-4", "completion", "load_glm4", "chat"),
    Entry("glm-4v-9b", "glm-4v", "completion", "load_glm4", "multimodal"),
    Entry("MiniCPM-V-2_6", "minicpm", "completion", "load_mini_cpm", "multimodal"),
    Entry("Kolors-diffusers", "kolors", "diffuser", "load_kolors_diffusers", "image"),
    Entry("Kolors-image2image", "kolors", "diffuser", "load_kolors_image2image", "image"),
    Entry("CosyVoice-300M", "cosyvoice", "audio", "load_cosy_voice", "tts"),
    Entry("CosyVoice-300M-SFT", "cosyvoice", "audio", "load_cosy_voice", "tts"),
    Entry("CosyVoice-300M-Instruct", "cosyvoice", "audio", "load_cosy_voice", "tts"),
    Entry("bge-m3", "bge-m3", "embedding", "load_embedding", "embedding"),
)


def write(root: Path) -> Path:
    """The checkpoints under ``root``, and the file that names them, whose path comes back."""
    shutil.copytree(tiny_path("qwen2"), root / "qwen2")
    _write_gptq(root / "gptq")
    _write_glm(root / "glm-4", root / "glm-4v")
    (root / "minicpm").mkdir()
    minicpmv_tiny.write(root / "minicpm", minicpmv_tiny.text_model())
    save_tiny_kolors(root / "kolors")
    cosyvoice_tiny.write(root / "cosyvoice")
    write_heads(write_embedder(root / "bge-m3"))
    entries = (
        f"  - model_name: {each.name}\n    model_path: {root / each.folder}\n    model_type: {each.model_type}\n"
        f'    load_method: {each.load_method}\n    max_memory:\n      0: "2GB"\n'
        for each in ENTRIES
    )
    file = root / "models_config.yml"
    file.write_text("models_config:\n" + "".join(entries))
    return file


def _write_gptq(folder: Path) -> None:
    """As much of it as decides what runs it."""
    shutil.copytree(tiny_path("qwen2"), folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "qwen2_moe", "architectures": ["Qwen2MoeForCausalLM"]}
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False}
    (folder / "config.json").write_text(json.dumps(config))


def _write_glm(text: Path, sees: Path) -> None:
    for folder in (text, sees):
        folder.mkdir()
    model = glm4v_tiny.text_model()
    config = {name: value for name, value in glm4v_tiny.CONFIG.items() if name != "vision_config"}
    chatglm_tiny.write(text, config, chatglm_tiny.as_published(model))
    glm4v_tiny.write(sees, model)
