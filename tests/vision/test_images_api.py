"""The images endpoints as the openai SDK sees them, on the embedded model."""

from __future__ import annotations

import base64
import io
import threading
import time
from typing import Any

import httpx2
import numpy as np
import openai
import pytest
from openai import OpenAI
from PIL import Image

from .pictures import decoded, encoded, mask, png


def test_a_prompt_gives_a_picture_of_the_size_asked_for(client: OpenAI) -> None:
    answer = client.images.generate(prompt="a red apple", size="1792x1024", response_format="b64_json")
    assert decoded(answer.data[0].b64_json).size == (1792, 1024)
    assert abs(answer.created - time.time()) < 60
    assert (answer.size, answer.output_format, answer.background) == ("1792x1024", "png", "opaque")
    assert answer.model_extra == {"native_size": "64x64"}
    usage = answer.usage
    assert usage.input_tokens_details.text_tokens == usage.input_tokens == 5
    assert (usage.output_tokens, usage.total_tokens) == (64, 69)


def test_absent_fields_are_absent(emoji_url: str) -> None:
    answer = httpx2.post(f"{emoji_url}/v1/images/generations", json={"prompt": "sun", "size": "64x64", "n": 1}).json()
    assert set(answer) == {"created", "background", "data", "output_format", "size", "usage"}
    assert set(answer["data"][0]) == {"b64_json", "seed"}


def test_the_picture_shows_what_was_asked_for(client: OpenAI) -> None:
    """Colours stand for it: a red heart, a blue heart, a white background."""
    for prompt, colour in (("a red apple", 0), ("a blue heart", 2)):
        answer = client.images.generate(prompt=prompt, size="64x64", extra_body={"seed": 1})
        pixels = np.asarray(decoded(answer.data[0].b64_json), dtype=float)
        assert pixels[20:44, 20:44].mean((0, 1)).argmax() == colour
        assert pixels[:4, :4].mean() > 230


def test_n_pictures_have_seeds_that_give_them_again(client: OpenAI) -> None:
    answer = client.images.generate(prompt="a cat", n=3, size="64x64", extra_body={"seed": 7})
    seeds = [image.model_extra["seed"] for image in answer.data]
    assert seeds == [7, 8, 9]
    again = client.images.generate(prompt="a cat", size="64x64", extra_body={"seed": 9})
    first, second = (np.asarray(decoded(i.b64_json), dtype=int) for i in (answer.data[2], again.data[0]))
    assert np.abs(first - second).max() <= 2


@pytest.mark.parametrize(("form", "kind"), [("jpeg", "JPEG"), ("webp", "WEBP"), ("png", "PNG")])
def test_output_formats(client: OpenAI, form: Any, kind: str) -> None:
    answer = client.images.generate(prompt="sun", size="100x60", output_format=form)
    picture = decoded(answer.data[0].b64_json)
    assert (picture.format, picture.size, answer.output_format) == (kind, (100, 60), form)


def test_compression_makes_a_jpeg_smaller(client: OpenAI) -> None:
    sizes = [
        len(
            client.images.generate(prompt="sun", output_format="jpeg", output_compression=level, extra_body={"seed": 1})
            .data[0]
            .b64_json
        )
        for level in (10, 90)
    ]
    assert sizes[0] < sizes[1] / 2


def test_a_url_leads_to_the_picture(client: OpenAI, emoji_url: str) -> None:
    answer = client.images.generate(prompt="sun", size="64x64", response_format="url", output_format="webp")
    url = answer.data[0].url
    assert url.startswith(f"{emoji_url}/v1/images/files/")
    assert answer.data[0].b64_json is None
    got = httpx2.get(url)
    assert (got.status_code, got.headers["content-type"]) == (200, "image/webp")
    assert Image.open(io.BytesIO(got.content)).size == (64, 64)
    head = httpx2.head(url)
    assert (head.status_code, head.content) == (200, b"")
    for name in ("content-type", "content-length", "cache-control"):
        assert head.headers[name] == got.headers[name]
    assert httpx2.get(url[:-10]).status_code == httpx2.head(url[:-10]).status_code == 404


def test_a_url_is_under_the_host_that_the_client_called(emoji_url: str) -> None:
    headers = {"x-forwarded-host": "images.example.org", "x-forwarded-proto": "https"}
    body = {"prompt": "sun", "size": "64x64", "response_format": "url"}
    answer = httpx2.post(f"{emoji_url}/images/generations", json=body, headers=headers).json()
    assert answer["data"][0]["url"].startswith("https://images.example.org/images/files/")
    headers = {"x-forwarded-host": "evil.example/path?", "x-forwarded-proto": "javascript"}
    answer = httpx2.post(f"{emoji_url}/images/generations", json=body, headers=headers).json()
    assert answer["data"][0]["url"].startswith(f"{emoji_url}/images/files/")


def test_chinese_prompts_are_read_by_their_known_words(client: OpenAI) -> None:
    answer = client.images.generate(prompt="一只蓝色的鸟", size="64x64")
    assert answer.data[0].revised_prompt == "blue bird"
    assert decoded(answer.data[0].b64_json).size == (64, 64)


def test_partial_images_come_before_the_whole(client: OpenAI) -> None:
    stream = client.images.generate(prompt="panda", size="128x128", stream=True, partial_images=2, quality="low")
    events = list(stream)
    assert [event.type for event in events] == [
        "image_generation.partial_image",
        "image_generation.partial_image",
        "image_generation.completed",
    ]
    assert [event.partial_image_index for event in events[:2]] == [0, 1]
    assert [decoded(event.b64_json).size for event in events] == [(128, 128)] * 3
    assert (events[-1].usage.output_tokens, events[-1].size, events[-1].quality) == (64, "128x128", "low")


def test_edits_stream_too(client: OpenAI) -> None:
    stream = client.images.edit(image=("a.png", png()), prompt="lemon", stream=True, partial_images=1)
    assert [event.type for event in stream] == ["image_edit.partial_image", "image_edit.completed"]


def test_an_edit_has_the_size_of_its_picture_or_the_one_asked_for(client: OpenAI) -> None:
    jpeg = png(320, 200, form="JPEG")
    answer = client.images.edit(image=("dog.jpeg", jpeg, "image/jpeg"), prompt="an orange cat")
    assert decoded(answer.data[0].b64_json).size == (320, 200)
    assert answer.usage.input_tokens_details.image_tokens == 64
    answer = client.images.edit(image=[("a.jpeg", jpeg)], prompt="宫崎骏卡通风格", size="1024x1024", n=2)
    assert [decoded(image.b64_json).size for image in answer.data] == [(1024, 1024)] * 2


def test_strength_says_how_far_an_edit_goes(client: OpenAI) -> None:
    own = np.asarray(Image.open(io.BytesIO(png(64, 64))).convert("RGB"), dtype=float)
    far = []
    for strength in ("0.1", "1"):
        answer = client.images.edit(
            image=("a.png", png(64, 64)), prompt="a blue heart", extra_body={"strength": strength, "seed": "1"}
        )
        far.append(np.abs(np.asarray(decoded(answer.data[0].b64_json), dtype=float) - own).mean())
    assert far[0] < far[1] / 2


def test_a_mask_keeps_what_is_opaque_in_it(client: OpenAI) -> None:
    sent = png(200, 120)
    answer = client.images.edit(image=("a.png", sent), mask=("m.png", mask(200, 120)), prompt="a blue heart")
    own = np.asarray(Image.open(io.BytesIO(sent)), dtype=int)
    drawn = np.asarray(decoded(answer.data[0].b64_json), dtype=int)
    assert np.abs(own[:, :95] - drawn[:, :95]).max() == 0
    assert np.abs(own[:, 105:] - drawn[:, 105:]).max() > 30


def test_a_variation_needs_a_picture_only(client: OpenAI) -> None:
    answer = client.images.create_variation(image=png(64, 64), n=2, size="256x256", response_format="b64_json")
    assert [decoded(image.b64_json).size for image in answer.data] == [(256, 256)] * 2


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"size": "0x0"}, "size"),
        ({"size": "5000x16"}, "size"),
        ({"size": "4096x4096"}, "size"),
        ({"size": "big"}, "size"),
        ({"n": 0}, "n"),
        ({"n": 11}, "n"),
        ({"n": "many"}, "n"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": "x" * 100_000}, "prompt"),
        ({"prompt": ["a"]}, "prompt"),
        ({"background": "transparent"}, "background"),
        ({"style": "vivid"}, "style"),
        ({"output_format": "svg"}, "output_format"),
        ({"output_format": "tiff"}, "output_format"),
        ({"output_compression": 50}, "output_compression"),
        ({"output_format": "jpeg", "output_compression": 101}, "output_compression"),
        ({"partial_images": 2}, "partial_images"),
        ({"stream": True, "partial_images": 4}, "partial_images"),
        ({"stream": True, "response_format": "url"}, "response_format"),
        ({"svg": {"model": "x"}}, "svg"),
        ({"frame_count": 3}, "frame_count"),
        ({"num_inference_steps": 500}, "num_inference_steps"),
        ({"stream": True, "num_inference_steps": 500}, "num_inference_steps"),
        ({"guidance_scale": -1}, "guidance_scale"),
        ({"guidance_scale": 1, "negative_prompt": "red"}, "negative_prompt"),
        ({"lora": '{"a":' * 5000}, "lora"),
        ({"n": True}, "n"),
        ({"seed": -1}, "seed"),
    ],
)
def test_bad_wishes_are_refused_by_name(emoji_url: str, fields: dict[str, Any], param: str) -> None:
    answer = httpx2.post(f"{emoji_url}/v1/images/generations", json={"prompt": "sun", **fields})
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error["param"], error["type"]) == (param, "invalid_request_error")
    assert set(error) == {"message", "type", "param", "code"}


def test_missing_prompt_unknown_model_and_no_json(emoji_url: str, client: OpenAI) -> None:
    assert httpx2.post(f"{emoji_url}/v1/images/generations", json={}).json()["error"]["param"] == "prompt"
    broken = httpx2.post(
        f"{emoji_url}/v1/images/generations", content=b"{", headers={"content-type": "application/json"}
    )
    assert broken.status_code == 400
    with pytest.raises(openai.NotFoundError) as caught:
        client.images.generate(prompt="sun", model="dall-e-9")
    assert caught.value.code == "model_not_found"


def bomb() -> bytes:
    """A PNG of a few kilobytes that claims a gigapixel."""
    return encoded(Image.new("1", (30_000, 19_000)))


@pytest.mark.parametrize(
    ("files", "fields", "param"),
    [
        ({"image": b"not a picture"}, {"prompt": "x"}, "image"),
        ({"image": png()[:200]}, {"prompt": "x"}, "image"),
        ({"image": bomb()}, {"prompt": "x"}, "image"),
        ({"image": png(), "mask": b"nothing"}, {"prompt": "x"}, "mask"),
        ({"image": png(), "mask": mask(50, 50)}, {"prompt": "x"}, "mask"),
        ({"image": png(), "mask": png()}, {"prompt": "x"}, "mask"),
        ({"image": png(), "markup": png()}, {"prompt": "x"}, "markup"),
        ({"image": png()}, {}, "prompt"),
        ({"image": png()}, {"prompt": "x", "n": "zero"}, "n"),
        ({"image": png()}, {"prompt": "x", "strength": "0"}, "strength"),
        ({"image": png()}, {"prompt": "x", "strength": "0.001"}, "strength"),
        ({"image": png()}, {"prompt": "x", "strength": "0.4", "negative_prompt": "red"}, "negative_prompt"),
        ({"image": png()}, {"prompt": "x", "strength": "0.3", "guidance_scale": "4"}, "guidance_scale"),
        ({"other": png()}, {"prompt": "x"}, "image"),
        ({}, {"prompt": "x", "image": "as text"}, "image"),
    ],
)
def test_bad_edits_are_refused_by_name(
    emoji_url: str, files: dict[str, bytes], fields: dict[str, str], param: str
) -> None:
    parts = {name: (f"{name}.png", data) for name, data in files.items()} or {"unused": ("u", b"")}
    answer = httpx2.post(f"{emoji_url}/v1/images/edits", data=fields, files=parts, timeout=120)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == param


def test_of_several_pictures_the_bad_one_is_named(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="image\\[1\\]") as caught:
        client.images.edit(image=[("a.png", png()), ("b.png", b"not a picture")], prompt="x")
    assert caught.value.param == "image[1]"


def test_half_a_character_in_a_form_is_refused(emoji_url: str) -> None:
    parts = [b'name="image"; filename="a.png"\r\n\r\n' + png(), b'name="prompt"\r\n\r\nx\\ud800']
    body = b"".join(b"--b\r\nContent-Disposition: form-data; " + part + b"\r\n" for part in parts) + b"--b--\r\n"
    headers = {"content-type": "multipart/form-data; boundary=b; charset=unicode_escape"}
    answer = httpx2.post(f"{emoji_url}/v1/images/edits", content=body, headers=headers, timeout=120)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "prompt"), answer.text


def test_two_pictures_are_one_too_many(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="takes one"):
        client.images.edit(image=[("a.png", png()), ("b.png", png())], prompt="x")


def address(data: bytes) -> dict[str, str]:
    return {"image_url": "data:image/png;base64," + base64.b64encode(data).decode()}


def test_an_edit_as_json_is_that_of_a_form(emoji_url: str) -> None:
    fields = {"prompt": "a blue heart", "seed": 5, "size": "64x64"}
    files = {"image": ("a.png", png()), "mask": ("m.png", mask())}
    form = httpx2.post(f"{emoji_url}/v1/images/edits", data=fields, files=files, timeout=120)
    body = {**fields, "images": [address(png())], "mask": address(mask())}
    as_json = httpx2.post(f"{emoji_url}/v1/images/edits", json=body, timeout=120)
    assert (form.status_code, as_json.status_code) == (200, 200), as_json.text
    assert form.json()["data"] == as_json.json()["data"]
    streamed = httpx2.post(f"{emoji_url}/v1/images/edits", json={**body, "stream": True}, timeout=120)
    assert streamed.text.startswith("event: image_edit.completed\n")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({}, "images"),
        ({"images": []}, "images"),
        ({"images": [{}]}, "images[0].image_url"),
        ({"images": ["a.png"]}, "images[0]"),
        ({"images": [address(b"not a picture")]}, "images[0].image_url"),
        ({"images": [address(png()), {"image_url": "http://127.0.0.1:1/a.png"}]}, "images[1].image_url"),
        ({"images": [{"image_url": "file:///etc/passwd"}]}, "images[0].image_url"),
        ({"images": [{"file_id": "file-1"}]}, "images[0].file_id"),
        ({"images": [address(png())] * 17}, "images"),
        ({"images": [address(png())] * 2}, "image"),
        ({"images": [address(png())], "mask": address(mask(50, 50))}, "mask"),
        ({"images": [address(png())], "mask": {"image_url": "data:,x"}}, "mask.image_url"),
        ({"images": [address(png())], "markup": address(png())}, "markup"),
        ({"images": [address(png())], "prompt": ""}, "prompt"),
        ({"images": [address(png())], "size": "huge"}, "size"),
    ],
)
def test_bad_edits_as_json_are_refused_by_name(emoji_url: str, fields: dict[str, Any], param: str) -> None:
    answer = httpx2.post(f"{emoji_url}/v1/images/edits", json={"prompt": "x", **fields}, timeout=120)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param), answer.text


def test_an_edit_is_a_form_or_json_and_of_bounded_size(emoji_url: str) -> None:
    for kind, code in (("text/plain", 415), ("application/json", 400)):
        answer = httpx2.post(f"{emoji_url}/v1/images/edits", content=b"{", headers={"content-type": kind})
        assert answer.status_code == code, answer.text
    assert httpx2.post(f"{emoji_url}/v1/images/variations", json={}).status_code == 415
    huge = httpx2.post(
        f"{emoji_url}/v1/images/edits", data={"prompt": "x"}, files={"image": b"0" * (40 << 20)}, timeout=60
    )
    assert huge.status_code == 413


def test_a_full_queue_answers_429_and_the_rest_is_served(client: OpenAI) -> None:
    codes: list[int] = []
    waits: list[str] = []

    def ask(guidance: float) -> None:
        try:
            client.images.generate(
                prompt="sun", size="64x64", extra_body={"guidance_scale": guidance, "num_inference_steps": 60}
            )
            codes.append(200)
        except openai.RateLimitError as error:
            waits.append(error.response.headers["retry-after"])
            codes.append(429)

    threads = [threading.Thread(target=ask, args=(2 + i / 10,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert codes.count(200) >= 3
    assert codes.count(429) >= 1
    assert all(int(wait) > 0 for wait in waits)


def test_a_client_that_leaves_stops_costing(client: OpenAI, emoji_url: str) -> None:
    with pytest.raises(openai.APITimeoutError):
        client.with_options(timeout=0.5).images.generate(prompt="sun", n=10, extra_body={"num_inference_steps": 150})
    until = time.monotonic() + 60
    while "quintet_num_requests_running{" + 'model="emoji-64",service="vision"} 0.0' not in metrics(emoji_url):
        assert time.monotonic() < until
        time.sleep(0.1)
    assert 'code="499",endpoint="/images/generations"' in metrics(emoji_url)


def metrics(url: str) -> str:
    return httpx2.get(f"{url}/metrics").text


def value(url: str, name: str) -> float:
    return sum(float(line.rsplit(" ", 1)[1]) for line in metrics(url).splitlines() if line.startswith(name + "{"))


def test_work_is_counted_in_its_units(client: OpenAI, emoji_url: str) -> None:
    names = ("quintet_images_total", "quintet_image_megapixel_steps_total")
    before = [value(emoji_url, name) for name in names]
    client.images.generate(prompt="sun", n=2, extra_body={"num_inference_steps": 10})
    pictures, work = (value(emoji_url, name) - was for name, was in zip(names, before, strict=True))
    assert pictures == 2
    assert work == pytest.approx(2 * 64 * 64 * 10 / 1e6)
    assert value(emoji_url, "quintet_time_to_first_output_seconds_count") >= 1
    assert value(emoji_url, "quintet_request_queue_time_seconds_count") >= 1


def test_the_model_says_what_it_can(client: OpenAI) -> None:
    card = client.models.retrieve("kolors_diffusers")
    assert card.id == "emoji-64"
    assert card.model_extra["native_size"] == "64x64"
    assert card.model_extra["tasks"] == ["image-to-image", "inpainting", "text-to-image"]
