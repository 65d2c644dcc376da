"""Pictures nobody should send, prompts in any script, and many clients of which some leave."""

from __future__ import annotations

import asyncio
import io
import random
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
from openai import BadRequestError, OpenAI
from PIL import Image
from quintet_common.models_yml import ModelSpec

from .pictures import decoded, encoded, mask, png
from .tiny_editors import save_editor
from .tiny_kolors import save_lora
from .vision_served import served


@pytest.fixture(scope="module")
def kolors_url(kolors_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The tiny Kolors with one LoRA, which is an alias of the model, too."""
    loras = tmp_path_factory.mktemp("loras")
    save_lora(kolors_folder, loras / "ink.safetensors", seed=1)
    args = {"steps": 4, "size": "64x64", "loras": str(loras)}
    spec = ModelSpec(
        id="kolors", kind="image", path=str(kolors_folder), dtype="float32", aliases=["ink"], engine_args=args
    )
    klein = tmp_path_factory.mktemp("editors") / "klein"
    save_editor("flux2-klein", klein)
    editor = ModelSpec(id="klein", kind="image", path=str(klein), dtype="float32", engine_args={"size": "64x64"})
    with served(spec, editor) as url:
        yield url


@pytest.fixture
def kolors(kolors_url: str) -> Iterator[OpenAI]:
    with OpenAI(api_key="none", base_url=f"{kolors_url}/v1", max_retries=0) as client:
        yield client


def drawn(client: OpenAI, prompt: str = "a cat", **more: Any) -> Any:
    answer = client.images.generate(prompt=prompt, extra_body={"seed": 1, **more.pop("extra", {})}, **more)
    return np.asarray(decoded(answer.data[0].b64_json), dtype=int)


def test_a_lora_is_chosen_by_field_and_by_the_models_name(kolors: OpenAI) -> None:
    assert kolors.models.retrieve("kolors").model_extra["loras"] == ["ink"]
    bare, inked = drawn(kolors, model="kolors"), drawn(kolors, model="ink")
    assert np.abs(bare - inked).max() > 3
    assert (drawn(kolors, model="kolors", extra={"lora": "ink"}) == inked).all()
    assert (drawn(kolors, model="kolors", extra={"lora": {"ink": 0.0}}) == bare).all()


@pytest.mark.parametrize("lora", ["ghost", {"ghost": 1}, "{broken", {"ink": 99}])
def test_a_lora_that_cannot_be_is_refused_by_name(kolors_url: str, lora: object) -> None:
    answer = httpx2.post(f"{kolors_url}/v1/images/generations", json={"prompt": "x", "lora": lora})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"].split(".")[0] == "lora"


def test_an_edit_takes_a_lora_and_a_mask(kolors: OpenAI) -> None:
    own = png(90, 50)
    answer = kolors.images.edit(
        image=("a.png", own), mask=("m.png", mask(90, 50)), prompt="x", extra_body={"lora": '{"ink": 0.5}'}
    )
    picture = np.asarray(decoded(answer.data[0].b64_json), dtype=int)
    assert (picture[:, :45] == np.asarray(Image.open(io.BytesIO(own)), dtype=int)[:, :45]).all()
    assert picture[:, 48:].std() > 5


def test_an_edit_takes_several_pictures_where_the_model_does(kolors: OpenAI) -> None:
    assert kolors.models.retrieve("klein").model_extra["max_images"] == 16

    def edited(*pictures: bytes, **more: Any) -> Any:
        files = [(f"{number}.png", data) for number, data in enumerate(pictures)]
        extra = {"seed": "1", "num_inference_steps": "2"}
        answer = kolors.images.edit(model="klein", image=files, prompt="a cat", extra_body=extra, **more)
        return answer, [np.asarray(decoded(each.b64_json), dtype=int) for each in answer.data]

    answer, (alone,) = edited(png(80, 64))
    assert alone.shape == (64, 80, 3)
    tokens = answer.usage.input_tokens_details.image_tokens
    answer, (first, second) = edited(png(80, 64), png(colour="blue"), png(colour="green"), n=2)
    assert answer.usage.input_tokens_details.image_tokens == 3 * tokens
    assert (first != alone).any()
    assert (first != second).any()
    with pytest.raises(BadRequestError, match="16"):
        edited(*[png()] * 17)


@pytest.mark.parametrize(
    "prompt",
    ["ein Apfel, größer", "一只可爱的猫", "かわいい猫", "고양이", "قطة لطيفة", "кошка", "🐱" * 50, "x " * 5000],
)
def test_prompts_in_any_script(kolors: OpenAI, client: OpenAI, prompt: str) -> None:
    for each in (kolors, client):
        assert drawn(each, prompt, size="64x64").shape == (64, 64, 3)


def test_prompts_of_different_scripts_draw_different_pictures(kolors: OpenAI) -> None:
    pictures = [drawn(kolors, prompt) for prompt in ("北京的夜晚", "一张照片", "a red circle")]
    assert np.abs(pictures[0] - pictures[1]).max() > 0
    assert np.abs(pictures[1] - pictures[2]).max() > 0


def turned() -> bytes:
    """60x30 as stored, 30x60 as its EXIF says."""
    image = Image.new("RGB", (60, 30), "red")
    exif = image.getexif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", exif=exif)
    return buffer.getvalue()


def animated() -> bytes:
    frames = [Image.new("RGB", (40, 30), colour) for colour in ("red", "blue")]
    buffer = io.BytesIO()
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    return buffer.getvalue()


def palette_with_alpha() -> bytes:
    image = Image.new("P", (40, 30))
    image.putpalette([255, 0, 0, 0, 255, 0])
    buffer = io.BytesIO()
    image.save(buffer, "PNG", transparency=0)
    return buffer.getvalue()


STRANGE = {
    "CMYK": (encoded(Image.new("CMYK", (40, 30), (0, 255, 255, 0)), "JPEG"), (40, 30)),
    "16 bit": (encoded(Image.fromarray(np.full((30, 40), 40_000, dtype=np.uint16))), (40, 30)),
    "animated": (animated(), (40, 30)),
    "palette with alpha": (palette_with_alpha(), (40, 30)),
    "grey": (encoded(Image.new("L", (40, 30), 128)), (40, 30)),
    "black and white": (encoded(Image.new("1", (40, 30))), (40, 30)),
    "turned": (turned(), (30, 60)),
    "thin": (png(300, 20), (300, 20)),
}


@pytest.mark.parametrize("kind", STRANGE)
def test_strange_pictures_are_read_as_people_see_them(kolors: OpenAI, kind: str) -> None:
    data, size = STRANGE[kind]
    answer = kolors.images.edit(image=("a", data), prompt="x", extra_body={"strength": "0.5"})
    assert decoded(answer.data[0].b64_json).size == size


def deflate_bomb() -> bytes:
    """A PNG whose header is modest and whose data unpacks to 200 MB."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    header = (64).to_bytes(4, "big") * 2 + bytes([8, 2, 0, 0, 0])
    body = chunk(b"IHDR", header) + chunk(b"zTXt", b"a\0\0" + zlib.compress(b"0" * 200_000_000, 9))
    return b"\x89PNG\r\n\x1a\n" + body + chunk(b"IDAT", zlib.compress(b"0")) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    "data", [deflate_bomb(), encoded(Image.new("1", (19_000, 19_000))), png()[:-40], b"\xff\xd8\xff" * 100, b"<svg/>"]
)
def test_hostile_pictures_are_refused(kolors_url: str, data: bytes) -> None:
    answer = httpx2.post(
        f"{kolors_url}/v1/images/edits", data={"prompt": "x"}, files={"image": ("a.png", data)}, timeout=120
    )
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "image")


async def test_sixty_four_clients_of_which_a_third_leaves(kolors_url: str) -> None:
    """Those who stay get the picture of their seed; nothing is left running for those who went."""
    chooser = random.Random(0)
    leaving = set(chooser.sample(range(64), 21))
    async with httpx2.AsyncClient(base_url=kolors_url, timeout=60) as client:

        async def ask(number: int) -> bytes | None:
            body = {"prompt": f"a cat {number % 8}", "seed": number % 8, "num_inference_steps": 20}
            request = client.post("/v1/images/generations", json=body)
            if number not in leaving:
                answer = await request
                assert answer.status_code == 200, answer.text
                return answer.json()["data"][0]["b64_json"].encode()
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(request, chooser.uniform(0.01, 0.4))
            return None

        answers = await asyncio.gather(*(ask(number) for number in range(64)))
        pictures: dict[int, list[Any]] = {}
        for number, answer in enumerate(answers):
            if answer is not None:
                picture = np.asarray(decoded(answer.decode()), dtype=int)
                pictures.setdefault(number % 8, []).append(picture)
        assert sum(map(len, pictures.values())) == 43
        for same in pictures.values():
            assert max(np.abs(each - same[0]).max() for each in same) <= 2
        assert np.abs(pictures[0][0] - pictures[1][0]).max() > 5
        # The worker tells its figures once a second.
        await until(client, lambda figures: figures("quintet_prompt_cache_hits_total") > 20)
        await until(client, lambda figures: figures("quintet_num_requests_running") == 0)
        await until(client, lambda figures: figures("quintet_image_batch_size_sum") > 30)


async def until(client: httpx2.AsyncClient, reached: Callable[[Callable[[str], float]], bool]) -> None:
    """Wait until the figures of ``/metrics``, by name and summed over models, are as they should be."""
    last = time.monotonic() + 60
    while True:
        lines = (await client.get("/metrics")).text.splitlines()

        def figure(name: str, lines: list[str] = lines) -> float:
            return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name + "{"))

        if reached(figure):
            return
        assert time.monotonic() < last, lines
        await asyncio.sleep(0.1)


def test_what_open_webui_sends_is_answered(kolors_url: str) -> None:
    """Its image settings: generations as JSON with its extra parameters merged in, edits as multipart with one
    ``image`` or several ``image[]``, every value as text."""
    body = {"model": "kolors", "prompt": "a cat", "n": 1, "size": "128x64", "response_format": "b64_json"}
    answer = httpx2.post(f"{kolors_url}/v1/images/generations", json={**body, "num_inference_steps": 2}, timeout=120)
    assert decoded(answer.json()["data"][0]["b64_json"]).size == (128, 64)
    fields = {"model": "kolors", "prompt": "a dog", "n": "1", "size": "64x64", "response_format": "b64_json"}
    for name in ("image", "image[]"):
        files = {name: ("image.png", png(), "image/png")}
        answer = httpx2.post(f"{kolors_url}/v1/images/edits?api-version=1", data=fields, files=files, timeout=120)
        assert decoded(answer.json()["data"][0]["b64_json"]).size == (64, 64)
    without_format = {name: value for name, value in body.items() if name != "response_format"}
    answer = httpx2.post(f"{kolors_url}/v1/images/generations", json=without_format, timeout=120)
    assert "url" not in answer.json()["data"][0]
