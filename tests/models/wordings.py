"""What ``docs/models.md`` and ``docs/models.zh-CN.md`` say around the same tables."""

from __future__ import annotations

import re
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Wording:
    """``columns`` are the heads of the tables: chat, refused and all others. ``{}`` in ``layers`` is their kind."""

    file: str
    head: str
    refused: str
    layers: str
    titles: dict[str, str]
    columns: tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]
    words: dict[str, str] = field(default_factory=dict)
    """Names and remarks that are said otherwise than in English."""

    def of(self, text: str) -> str:
        return self.words.get(text, text)

    def why(self, refused: str) -> str:
        """Of a family: the kind of its layers, or a reason in words."""
        kind = re.fullmatch(r"(?:layers of the kind ')?(\w+)'?", refused)
        return self.layers.format(kind[1]) if kind else self.of(refused)


ENGLISH = Wording(
    "models.md",
    """\
# Models

[中文](models.zh-CN.md)

Which families of models are known to work, and what to write into models.yml for them. The tests in `tests/models`
write this file (`make docs-models`), and fail when it says something else than they find. What is tried is a small
random model of the same architecture, in the layout in which the family is published. None of the published weights
were at hand, so nothing is said here about how good answers are.

**Memory** is an estimate of the weights alone: about as many parameters as the makers state, times two bytes
(bfloat16), or four in an `.onnx` file. Chat models need room for keys and values besides (`kv_memory` in
[config.md](config.md#engine_args)), images for what is drawn. `quintet check` says what the files on your disk need. A
half or a quarter of it is enough for [quantised models](config.md#quantised-models).

**Access.** Of Llama, Gemma 2 and 3, Stable Diffusion 3.5, FLUX.1 and some others the hub gives the files only to those
who have accepted the licence on the model's page: `HF_TOKEN` is then your token. Read the licences: that of some, like
jina-embeddings-v3 and FLUX.1 Kontext, is for non-commercial use.

## Chat

Each loads, and its greedy answers in float32 are token by token those of transformers' own `generate()`. *Tool calls*
is how the model writes them and *thinking* how it sets its thinking apart ([chat.md](chat.md#tools)), as its template
is known; `-` is none that is read.

""",
    """\

Refused by name at load are models with layers that keep anything but keys and values of each token and a state of each
sequence, models with states alone, and those that transformers cannot go on with from the middle of a prompt. Run these
with [`engine: vllm`](vllm.md).

""",
    "layers of the kind `{}`",
    {
        "multimodal": "Pictures",
        "image": "Images",
        "tts": "Speech",
        "embedding": "Embeddings",
        "rerank": "Reranking",
    },
    (
        ("family", "memory", "tool calls", "thinking", "entry"),
        ("family", "why", "entry"),
        ("family", "memory", "entry", "remarks"),
    ),
)

CHINESE = Wording(
    "models.zh-CN.md",
    """\
# 已知可用的模型

[English](models.md)

下表列出已知可用的模型系列，以及 models.yml 中要写的条目。本文由 `tests/models` 中的测试生成（`make docs-models`）；
文中所写与测试结果不符时，测试会失败。测试用的是架构相同的小型随机模型，文件布局与该系列发布时一致。
测试时没有已发布的权重可用，因此这里不评价回答的质量。

**内存** 只估算权重：厂商公布的参数量乘以两个字节（bfloat16），`.onnx` 文件则乘以四个字节。
对话模型的 KV 缓存（[config.zh-CN.md](config.zh-CN.md#engine_args) 中的 `kv_memory`）和图像模型的绘图空间另计。
`quintet check` 会给出磁盘上的文件实际需要多少。[量化模型](config.zh-CN.md#量化模型)只需其一半或四分之一。

**获取权限。** Llama、Gemma 2 和 3、Stable Diffusion 3.5、FLUX.1 等模型，须先在模型仓库的页面上接受许可协议才能下载，
届时用 `HF_TOKEN` 提供你的 token。请阅读许可协议：有些模型只许非商业使用，例如 jina-embeddings-v3 和 FLUX.1 Kontext。

## 对话

每个系列都能加载；在 float32 下，贪心解码的回答与 transformers 自己的 `generate()` 逐个 token 相同。
*工具调用* 指模型输出调用时所用的格式，*思考* 指它标记思考过程的方式（[chat.md](chat.md#tools)），
两者都从对话模板识别；`-` 表示没有可识别的格式。

""",
    """\

如果某些层除每个 token 的键和值、每个序列的一个状态之外还保存别的内容，或者所有层都只保存状态，
或者 transformers 的实现无法从提示词中间接着计算，模型在加载时就会被拒绝，并指明原因。
这类模型请用 [`engine: vllm`](vllm.md) 运行。

""",
    "含有 `{}` 类型的层",
    {
        "multimodal": "看图",
        "image": "图像生成",
        "tts": "语音",
        "embedding": "向量",
        "rerank": "重排",
    },
    (
        ("系列", "内存", "工具调用", "思考", "条目"),
        ("系列", "原因", "条目"),
        ("系列", "内存", "条目", "备注"),
    ),
    {
        "Qwen3.5, its text part": "Qwen3.5 的文本部分",
        "Qwen3.5 MoE, its text part": "Qwen3.5 MoE 的文本部分",
        "Llama 4, its text part": "Llama 4 的文本部分",
        "Gemma 4, its text part": "Gemma 4 的文本部分",
        "Ministral 3, its text part": "Ministral 3 的文本部分",
        "Gemma 4, small": "Gemma 4 小型号",
        "XLM-R cross encoders": "XLM-R 交叉编码器",
        "without keys and values per token": "没有一层逐个 token 保存键和值",
        "of a prompt in pieces it forgets what was before each": "提示词分段计算时，会忘记每段之前的内容",
        "uses cache of its own": "使用自己的缓存",
        "one picture a conversation; no code from its folder is run": "每个对话一张图片；不执行模型文件夹里的代码",
        "goes to vLLM by itself, without code from its folder": "自动交给 vLLM 运行，不执行模型文件夹里的代码",
        "also CosyVoice-300M and -300M-Instruct; not CosyVoice 2 and 3": (
            "CosyVoice-300M 和 -300M-Instruct 也可以；不支持 CosyVoice 2 和 3"
        ),
        "a folder with kokoro-onnx's kokoro-v1.0.onnx and voices-v1.0.bin and hexgrad/Kokoro-82M's config.json; "
        "or `embedded:kokoro`": (
            "一个文件夹，内有 kokoro-onnx 的 kokoro-v1.0.onnx、voices-v1.0.bin 和 hexgrad/Kokoro-82M 的 config.json；"
            "或 `embedded:kokoro`"
        ),
        "one voice: its .onnx file with the .onnx.json beside it, or their folder": (
            "一个音色：.onnx 文件（旁边要有 .onnx.json），或它们所在的文件夹"
        ),
        "dense, sparse and ColBERT": "稠密、稀疏和 ColBERT",
        "draws, and edits as the prompt says": "能画图，也能按提示词编辑",
        "draws, and edits as the prompt says, with up to 16 pictures": "能画图，也能按提示词编辑，最多 16 张图片",
        "edits as the prompt says, with and without masks": "按提示词编辑，可带或不带蒙版",
        "edits as the prompt says, with up to 16 pictures (best 3)": "按提示词编辑，最多 16 张图片（3 张最佳）",
    },
)

WORDINGS = (ENGLISH, CHINESE)
