"""Every kind of model through the OpenAI SDK, through the router, on the embedded models."""

from __future__ import annotations

import base64
import io
import wave

import pytest
from openai import NotFoundError, OpenAI
from PIL import Image, ImageDraw
from stack import CHAT, EMBEDDING, IMAGE, OCR, TTS, Stack


@pytest.fixture(scope="module")
def client(stack: Stack) -> OpenAI:
    return OpenAI(base_url=f"{stack.url}/v1", api_key="none", timeout=120, max_retries=0)


def test_the_table_shows_five_ready_models(stack: Stack) -> None:
    rows = [line.split() for line in stack.text().splitlines()]
    ready = {row[0]: row[1] for row in rows if len(row) > 3 and row[-1] == "ready" and "POST" in row}
    assert ready == {CHAT: "chat", OCR: "multimodal", IMAGE: "image", TTS: "tts", EMBEDDING: "embedding"}


def test_models_are_merged_and_can_be_asked_for_one_by_one(client: OpenAI) -> None:
    assert {model.id for model in client.models.list()} == {CHAT, OCR, IMAGE, TTS, EMBEDDING}
    assert client.models.retrieve(CHAT).object == "model"
    with pytest.raises(NotFoundError) as caught:
        client.models.retrieve("no-such-model")
    assert caught.value.code == "model_not_found"


def test_chat_answers_and_streams_the_same(client: OpenAI) -> None:
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    asked = {"model": CHAT, "messages": messages, "temperature": 0, "max_tokens": 16}
    whole = client.chat.completions.create(**asked)  # type: ignore[call-overload]
    text = whole.choices[0].message.content
    assert "Paris" in text
    chunks = list(client.chat.completions.create(**asked, stream=True))  # type: ignore[call-overload]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == text


def test_multimodal_reads_a_picture(client: OpenAI) -> None:
    picture = Image.new("RGB", (480, 120), "white")
    ImageDraw.Draw(picture).text((20, 30), "QUINTET 2048", fill="black", font_size=48)
    data = io.BytesIO()
    picture.save(data, "PNG")
    url = f"data:image/png;base64,{base64.b64encode(data.getvalue()).decode()}"
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "Read it."}]
    answer = client.chat.completions.create(
        model=OCR,
        messages=[{"role": "user", "content": content}],  # type: ignore[list-item,misc]
    )
    assert "QUINTET" in (answer.choices[0].message.content or "")


def test_an_image_has_the_size_that_was_asked_for(client: OpenAI) -> None:
    answer = client.images.generate(model=IMAGE, prompt="a red apple", size="256x128", response_format="b64_json")
    assert answer.data
    assert answer.data[0].b64_json
    picture = Image.open(io.BytesIO(base64.b64decode(answer.data[0].b64_json)))
    assert picture.size == (256, 128)
    assert len(picture.convert("RGB").getcolors(1 << 20) or []) > 20, "one flat colour is no picture"


def test_speech_is_audio_of_a_sensible_length(client: OpenAI) -> None:
    voices = client.get("/audio/voices", cast_to=object)
    assert isinstance(voices, dict)
    voice = next(each["id"] for each in voices["voices"] if each["available"])
    text = "Five kinds of models behind one door."
    answer = client.audio.speech.create(model=TTS, voice=voice, input=text, response_format="wav")
    with wave.open(io.BytesIO(answer.content)) as sound:
        rate, frames = sound.getframerate(), sound.readframes(1 << 24)
    seconds = len(frames) / 2 / rate
    assert 1 < seconds < 10
    assert len(set(frames[::97])) > 10, "silence is no speech"


def test_embeddings_put_like_beside_like(client: OpenAI) -> None:
    texts = ["A cat sleeps on the sofa.", "A kitten naps on the couch.", "Interest rates rose again."]
    vectors = [item.embedding for item in client.embeddings.create(model=EMBEDDING, input=texts).data]
    near = sum(a * b for a, b in zip(vectors[0], vectors[1], strict=True))
    far = sum(a * b for a, b in zip(vectors[0], vectors[2], strict=True))
    assert near > far + 0.2
