"""MiniCPM-V-2_6's layout through vLLM and our API, on a tiny random checkpoint: no code from its folder is run.

Runs where QUINTET_VLLM_PYTHON names an interpreter that has vLLM.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
import torch
from chat.minicpmv_tiny import made_tokenizer, seen, text_model, vision_weights, write
from chat.test_vllm_glm4v import TOOLS, part_of
from chat.vllm_models import has_torchvision, needs_vllm, served, spec_of
from openai import OpenAI
from PIL import Image

pytestmark = [needs_vllm, has_torchvision]


def drawn(width: int, height: int, seed: int) -> Image.Image:
    made = torch.randint(0, 255, (height, width, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return Image.fromarray(made.numpy())


SQUARE, OTHER = drawn(448, 448, 1), drawn(448, 448, 2)
WIDE = drawn(896, 448, 3)
"""Of two slices beside one another, which need no resizing."""


@pytest.fixture(scope="module")
def model() -> Any:
    return text_model()


@pytest.fixture(scope="module")
def url(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("minicpm")
    write(folder, model)
    arguments = {"limit_mm_per_prompt": {"image": 4, "video": 0}, "max_num_batched_tokens": 4096}
    spec = spec_of(folder, id="MiniCPM-V-2_6", kind="multimodal", sees=True, context=2048, engine_args=arguments)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QUINTET_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("HF_MODULES_CACHE", str(tmp_path_factory.mktemp("modules")))
        with served(spec) as url:
            yield url


@pytest.fixture
def client(url: str) -> OpenAI:
    return OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=180)


def ask(client: OpenAI, *pictures: Image.Image, **fields: Any) -> Any:
    content = [*map(part_of, pictures), {"type": "text", "text": "what is it"}]
    common = {"model": "MiniCPM-V-2_6", "messages": [{"role": "user", "content": content}], "temperature": 0}
    return client.chat.completions.create(**({**common, "max_tokens": 8} | fields))


def written(number: int, slices: int = 0) -> str:
    places = "<unk>" * 64
    return f"<image_id>{number}</image_id><image>{places}</image>" + f"<slice>{places}</slice>" * slices


def prompt_of(*pictures: str) -> list[int]:
    text = "\n".join([*pictures, "what is it"])
    found = made_tokenizer()(f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n", add_special_tokens=False)
    return list(found["input_ids"])


def said_by_the_original(model: Any, prompt: list[int], parts: list[Image.Image], count: int) -> list[float]:
    """The logarithms of the probabilities of greedy tokens."""
    weights, rows = vision_weights(), []
    with torch.inference_mode():
        x = model.get_input_embeddings()(torch.tensor(prompt)).clone()
        places = torch.tensor(prompt) == made_tokenizer().convert_tokens_to_ids("<unk>")
        x[places] = torch.cat([seen(weights, part) for part in parts])
        for _ in range(count):
            row = model(inputs_embeds=x[None]).logits[0, -1].log_softmax(-1)
            rows.append(float(row.max()))
            x = torch.cat([x, model.get_input_embeddings()(row.argmax()[None])])
    return rows


@pytest.mark.parametrize(
    ("pictures", "texts", "parts"),
    [
        ([SQUARE], [written(0)], [SQUARE]),
        ([SQUARE, OTHER], [written(0), written(1)], [SQUARE, OTHER]),
        ([WIDE], [written(0, 2)], [
            WIDE.resize((630, 322), Image.Resampling.BICUBIC), WIDE.crop((0, 0, 448, 448)),
            WIDE.crop((448, 0, 896, 448)),
        ]),
    ],
)  # fmt: skip
def test_pictures_are_seen_as_the_original_sees_them(
    client: OpenAI, model: Any, pictures: list[Image.Image], texts: list[str], parts: list[Image.Image]
) -> None:
    answer = ask(client, *pictures, logprobs=True)
    found = [each.logprob for each in answer.choices[0].logprobs.content]
    prompt = prompt_of(*texts)
    assert answer.usage.prompt_tokens == len(prompt)
    assert found == pytest.approx(said_by_the_original(model, prompt, parts, len(found)), abs=3e-3)
    assert len(found) > 2


def test_the_prompt_is_written_as_the_model_learnt_it(url: str) -> None:
    content = [part_of(SQUARE), part_of(WIDE), {"type": "text", "text": "what is it"}]
    found = httpx2.post(f"{url}/tokenize", json={"messages": [{"role": "user", "content": content}]}, timeout=90).json()
    assert found["tokens"] == prompt_of(written(0), written(1, 2))


def test_a_stream(client: OpenAI) -> None:
    whole = ask(client, SQUARE).choices[0].message.content
    chunks = list(ask(client, SQUARE, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == whole
    assert ask(client).usage.prompt_tokens < 64


def test_a_call_about_pictures(client: OpenAI) -> None:
    answer = ask(client, SQUARE, OTHER, tools=TOOLS, tool_choice="required", max_tokens=80).choices[0]
    call = answer.message.tool_calls[0]
    assert call.function.name == "look"
    assert json.loads(call.function.arguments)["at"] in ("cat", "dog")
