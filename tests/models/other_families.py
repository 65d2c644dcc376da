"""Families of models that are not for text alone, and where each is tried: a file of tests and the name in it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Other:
    """``parameters`` are the published model's with all of its parts, in thousand millions, as its makers say or as its
    files and configuration give them; each takes ``width`` bytes.
    """

    kind: str
    name: str
    example: str
    parameters: float
    file: str
    word: str
    """What the file contains as long as the family is tried there."""
    note: str = ""
    entry: str = "kind: {kind}, path: {example}"
    width: int = 2


_FOLDER = "kind: {kind}, path: /models/{example}"
"""Where hub ids are not taken."""

_PICTURES, _VLLM = "chat/picture_models.py", "chat/test_vllm_"
_DRAWN = "vision/tiny_families.py"
_EDITED = "vision/tiny_editors.py"

OTHERS = (
    Other("multimodal", "Qwen2-VL", "Qwen/Qwen2-VL-7B-Instruct", 8.29, _PICTURES, '"qwen2_vl"'),
    Other("multimodal", "Qwen2.5-VL", "Qwen/Qwen2.5-VL-7B-Instruct", 8.29, _PICTURES, '"qwen2_5_vl"'),
    Other("multimodal", "GLM-4.1V", "zai-org/GLM-4.1V-9B-Thinking", 10.29, _PICTURES, '"glm4v"'),
    Other("multimodal", "InternVL", "OpenGVLab/InternVL3-8B-hf", 7.94, _PICTURES, '"internvl"'),
    Other("multimodal", "LLaVA", "llava-hf/llava-1.5-7b-hf", 7.06, _PICTURES, '"llava"'),
    Other("multimodal", "SmolVLM, Idefics3", "HuggingFaceTB/SmolVLM-Instruct", 2.25, _PICTURES, '"idefics3"'),
    Other("multimodal", "SmolVLM2", "HuggingFaceTB/SmolVLM2-2.2B-Instruct", 2.25, _PICTURES, '"smolvlm"'),
    Other("multimodal", "Gemma 3", "google/gemma-3-4b-it", 4.3, _PICTURES, '"gemma3"'),
    Other("multimodal", "Gemma 4", "google/gemma-4-31B-it", 31.3, _PICTURES, '"gemma4"'),
    Other("multimodal", "Gemma 4, small", "google/gemma-4-E4B-it", 7.94, _PICTURES, '"gemma4 e2b"'),
    Other("multimodal", "Qwen3-VL", "Qwen/Qwen3-VL-8B-Instruct", 8.77, _PICTURES, '"qwen3_vl"'),
    Other("multimodal", "Qwen3-VL MoE", "Qwen/Qwen3-VL-30B-A3B-Instruct", 31.07, _PICTURES, '"qwen3_vl_moe"'),
    Other("multimodal", "Qwen3.5", "Qwen/Qwen3.5-9B", 9.41, _PICTURES, '"qwen3_5"'),
    Other("multimodal", "Mistral Small 3, Ministral 3", "mistralai/Mistral-Small-3.1-24B-Instruct-2503", 24.0,
          _PICTURES, '"mistral3"'),
    Other("multimodal", "glm-4v-9b", "zai-org/glm-4v-9b", 13.9, "chat/test_glm4v.py", "those_of_the_original",
          "one picture a conversation; no code from its folder is run"),
    Other("multimodal", "MiniCPM-V 2.6", "openbmb/MiniCPM-V-2_6", 8.1, f"{_VLLM}minicpmv.py", "seen_as_the_original",
          "goes to vLLM by itself, without code from its folder"),
    Other("image", "Kolors", "Kwai-Kolors/Kolors-diffusers", 8.9, "vision/tiny_kolors.py", "KolorsPipeline"),
    Other("image", "Stable Diffusion XL", "stabilityai/stable-diffusion-xl-base-1.0", 3.47, _DRAWN, '"sdxl"'),
    Other("image", "Stable Diffusion 3", "stabilityai/stable-diffusion-3.5-medium", 8.0, _DRAWN, '"sd3"'),
    Other("image", "FLUX.1", "black-forest-labs/FLUX.1-schnell", 16.9, _DRAWN, '"flux"'),
    Other("image", "Qwen-Image", "Qwen/Qwen-Image", 28.8, _DRAWN, '"qwen-image"'),
    Other("image", "FLUX.1 Kontext", "black-forest-labs/FLUX.1-Kontext-dev", 16.9, _EDITED, '"flux-kontext"',
          "draws, and edits as the prompt says"),
    Other("image", "FLUX.2 klein", "black-forest-labs/FLUX.2-klein-4B", 8.0, _EDITED, '"flux2-klein"',
          "draws, and edits as the prompt says, with up to 16 pictures"),
    Other("image", "Qwen-Image-Edit", "Qwen/Qwen-Image-Edit", 28.8, _EDITED, '"qwen-image-edit"',
          "edits as the prompt says, with and without masks"),
    Other("image", "Qwen-Image-Edit-2509", "Qwen/Qwen-Image-Edit-2509", 28.8, _EDITED,
          '"qwen-image-edit-plus"', "edits as the prompt says, with up to 16 pictures (best 3)"),
    Other("image", "Z-Image", "Tongyi-MAI/Z-Image-Turbo", 10.2, _DRAWN, '"z-image"'),
    Other("tts", "CosyVoice 1", "FunAudioLLM/CosyVoice-300M-SFT", 0.436, "tts/test_cosyvoice_golden.py", "golden",
          "also CosyVoice-300M and -300M-Instruct; not CosyVoice 2 and 3", _FOLDER),
    Other("tts", "Kokoro", "kokoro-v1.0", 0.082, "tts/test_kokoro.py", "a_folder_is_recognised",
          "a folder with kokoro-onnx's kokoro-v1.0.onnx and voices-v1.0.bin and hexgrad/Kokoro-82M's config.json; "
          "or `embedded:kokoro`", _FOLDER, width=4),
    Other("tts", "Piper", "rhasspy/piper-voices/en/en_US/lessac/medium/en_US-lessac-medium.onnx", 0.0158,
          "tts/test_piper.py", "a_voice_is_found_by_its_file_or_folder",
          "one voice: its .onnx file with the .onnx.json beside it, or their folder", _FOLDER, width=4),
    Other("embedding", "bge-m3", "BAAI/bge-m3", 0.568, "embed/embed_models.py", "write_heads",
          "dense, sparse and ColBERT"),
    Other("embedding", "Qwen3-Embedding", "Qwen/Qwen3-Embedding-0.6B", 0.596, "embed/embed_models.py",
          "write_qwen3_embedder"),
    Other("embedding", "jina-embeddings-v3", "jinaai/jina-embeddings-v3-hf", 0.572, "embed/embed_models.py",
          "write_jina_embedder"),
    Other("embedding", "BERT, MiniLM", "sentence-transformers/all-MiniLM-L6-v2", 0.023, "embed/test_backends.py",
          "fp32_vectors_are_those_of_sentence_transformers"),
    Other("rerank", "XLM-R cross encoders", "BAAI/bge-reranker-v2-m3", 0.568, "embed/embed_models.py",
          "write_reranker"),
)  # fmt: skip
