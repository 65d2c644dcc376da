"""Every slice of the API through the OpenAI SDK of whatever version runs this file.

    python sdk_slices.py BASE_URL PICTURE.png

Prints one line per slice and exits with the number of slices that failed. Needs nothing but ``openai``.
"""

from __future__ import annotations

import base64
import io
import json
import sys
import traceback
import wave
from collections.abc import Callable
from pathlib import Path

import openai
from openai import OpenAI

CHAT, OCR, IMAGE, TTS, EMBEDDING = "smollm2-135m-instruct", "ppocr", "emoji-64", "hibari", "all-minilm-l6-v2"
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "unit": {"type": "string", "enum": ["c", "f"]}},
            "required": ["city", "unit"],
            "additionalProperties": False,
        },
    },
}
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


def models(client: OpenAI, _: Path) -> str:
    ids = [model.id for model in client.models.list()]
    assert {CHAT, OCR, IMAGE, TTS, EMBEDDING} <= set(ids), ids
    assert client.models.retrieve(CHAT).id == CHAT
    return f"{len(ids)} models"


def chat(client: OpenAI, _: Path) -> str:
    answer = client.chat.completions.create(model=CHAT, messages=QUESTION, temperature=0, max_tokens=24)
    text = answer.choices[0].message.content
    assert "Paris" in text, text
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.choices[0].message.tool_calls is None
    return text


def chat_stream(client: OpenAI, _: Path) -> str:
    stream = client.chat.completions.create(
        model=CHAT,
        messages=QUESTION,
        temperature=0,
        max_tokens=24,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert "Paris" in text, text
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens > 0
    assert len({chunk.id for chunk in chunks}) == 1
    return f"{len(chunks)} chunks"


def chat_many(client: OpenAI, _: Path) -> str:
    answer = client.chat.completions.create(model=CHAT, messages=QUESTION, n=3, seed=7, max_tokens=8)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert {choice.finish_reason for choice in answer.choices} <= {"stop", "length"}
    return "3 choices"


def tools(client: OpenAI, _: Path) -> str:
    messages: list = [{"role": "user", "content": "What is the weather in Oslo in c?"}]
    first = client.chat.completions.create(model=CHAT, messages=messages, tools=[WEATHER], temperature=0)
    assert first.choices[0].finish_reason == "tool_calls"
    message = first.choices[0].message
    (call,) = message.tool_calls
    arguments = json.loads(call.function.arguments)
    assert call.function.name == "get_weather"
    assert set(arguments) == {"city", "unit"}
    messages += [message, {"role": "tool", "tool_call_id": call.id, "content": "15 degrees, sunny"}]
    second = client.chat.completions.create(
        model=CHAT, messages=messages, tools=[WEATHER], temperature=0, max_tokens=40
    )
    assert second.choices[0].message.content
    return call.function.arguments


def tools_stream(client: OpenAI, _: Path) -> str:
    stream = client.chat.completions.create(
        model=CHAT,
        messages=[{"role": "user", "content": "What is the weather in Oslo in c?"}],
        tools=[WEATHER],
        tool_choice={"type": "function", "function": {"name": "get_weather"}},
        temperature=0,
        stream=True,
    )
    name, arguments, reason = "", "", None
    for chunk in stream:
        choice = chunk.choices[0]
        reason = choice.finish_reason or reason
        for part in choice.delta.tool_calls or []:
            name += part.function.name or ""
            arguments += part.function.arguments or ""
    assert name == "get_weather"
    assert json.loads(arguments)["unit"] in ("c", "f")
    assert reason in ("tool_calls", "stop")
    return arguments


def json_schema(client: OpenAI, _: Path) -> str:
    schema = {
        "type": "object",
        "properties": {"capital": {"type": "string", "maxLength": 20}, "population": {"type": "integer"}},
        "required": ["capital", "population"],
        "additionalProperties": False,
    }
    answer = client.chat.completions.create(
        model=CHAT,
        messages=QUESTION,
        max_tokens=80,
        response_format={"type": "json_schema", "json_schema": {"name": "city", "strict": True, "schema": schema}},
    )
    if answer.choices[0].finish_reason == "stop":
        assert set(json.loads(answer.choices[0].message.content)) == {"capital", "population"}
    return answer.choices[0].message.content


def completions(client: OpenAI, _: Path) -> str:
    answer = client.completions.create(model=CHAT, prompt=["One, two,", "The sky is"], max_tokens=6, temperature=0)
    assert [choice.index for choice in answer.choices] == [0, 1]
    streamed = client.completions.create(model=CHAT, prompt="One, two,", max_tokens=6, temperature=0, stream=True)
    text = "".join(chunk.choices[0].text for chunk in streamed if chunk.choices)
    assert text == answer.choices[0].text, (text, answer.choices[0].text)
    return text


def responses(client: OpenAI, _: Path) -> str:
    response = client.responses.create(model=CHAT, input=QUESTION, temperature=0, max_output_tokens=24)
    assert "Paris" in response.output_text, response.output_text
    assert response.status == "completed"
    assert response.usage.total_tokens == response.usage.input_tokens + response.usage.output_tokens
    kinds = []
    for event in client.responses.create(
        model=CHAT, input="What is the capital of France?", temperature=0, max_output_tokens=24, stream=True
    ):
        assert event.sequence_number == len(kinds)
        kinds.append(event.type)
    assert kinds[0] == "response.created"
    assert kinds[-1] == "response.completed"
    return f"{len(kinds)} events"


def responses_tools(client: OpenAI, _: Path) -> str:
    flat = {"type": "function", "strict": True, **WEATHER["function"]}
    items: list = [{"role": "user", "content": "What is the weather in Oslo in c?"}]
    with client.responses.stream(model=CHAT, input=items, tools=[flat], temperature=0) as stream:
        events = list(stream)
        first = stream.get_final_response()
    assert "response.function_call_arguments.done" in [event.type for event in events]
    (call,) = first.output
    assert set(json.loads(call.arguments)) == {"city", "unit"}
    items += [call, {"type": "function_call_output", "call_id": call.call_id, "output": "15 degrees, sunny"}]
    second = client.responses.create(model=CHAT, input=items, tools=[flat], temperature=0, max_output_tokens=40)
    assert second.output_text
    return call.arguments


def multimodal(client: OpenAI, picture: Path) -> str:
    url = "data:image/png;base64," + base64.b64encode(picture.read_bytes()).decode()
    content = [{"type": "text", "text": "Read this."}, {"type": "image_url", "image_url": {"url": url}}]
    messages = [{"role": "user", "content": content}]
    answer = client.chat.completions.create(model=OCR, messages=messages)
    assert "QUINTET" in answer.choices[0].message.content.upper()
    stream = client.chat.completions.create(model=OCR, messages=messages, stream=True)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)
    assert "QUINTET" in text.upper()
    return text.strip()


def images(client: OpenAI, picture: Path) -> str:
    made = client.images.generate(model=IMAGE, prompt="a red apple", size="128x128", response_format="b64_json")
    data = base64.b64decode(made.data[0].b64_json)
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    assert int.from_bytes(data[16:20], "big") == 128
    with picture.open("rb") as file:
        edited = client.images.edit(
            model=IMAGE, image=file, prompt="a lemon", size="256x256", response_format="b64_json"
        )
    assert base64.b64decode(edited.data[0].b64_json)[:4] == b"\x89PNG"
    with picture.open("rb") as file:
        varied = client.images.create_variation(model=IMAGE, image=file, response_format="b64_json")
    assert varied.data[0].b64_json
    return f"{len(data)} bytes"


def speech(client: OpenAI, _: Path) -> str:
    said = client.audio.speech.create(model=TTS, voice="alloy", input="Hello. How are you?", response_format="wav")
    assert said.content[:4] == b"RIFF"
    with wave.open(io.BytesIO(said.content)) as wav:
        assert wav.getnchannels() == 1
    total = 0
    with client.audio.speech.with_streaming_response.create(
        model=TTS, voice="heart", input="One. Two. Three.", response_format="mp3"
    ) as response:
        for part in response.iter_bytes():
            total += len(part)
    assert total > 2000, total
    return f"{total} bytes of mp3"


def embeddings(client: OpenAI, _: Path) -> str:
    answer = client.embeddings.create(model=EMBEDDING, input=["hello", "a cat"])
    assert [len(item.embedding) for item in answer.data] == [384, 384]
    floats = client.embeddings.create(model=EMBEDDING, input="hello", encoding_format="float")
    far = max(abs(a - b) for a, b in zip(floats.data[0].embedding, answer.data[0].embedding, strict=True))
    assert far < 0.01, far  # bf16 sums differ with the batch
    return f"usage {answer.usage.total_tokens}"


def errors(client: OpenAI, _: Path) -> str:
    try:
        client.chat.completions.create(model="no-such-model", messages=QUESTION)
    except openai.NotFoundError as error:
        assert error.code == "model_not_found"
        assert error.param == "model"
    else:
        raise AssertionError("an unknown model was served")
    try:
        client.chat.completions.create(model=CHAT, messages=QUESTION, temperature=9)
    except openai.BadRequestError as error:
        assert error.param == "temperature"
        return str(error)
    raise AssertionError("temperature 9 was accepted")


SLICES: list[Callable[[OpenAI, Path], str]] = [
    models, chat, chat_stream, chat_many, tools, tools_stream, json_schema, completions, responses, responses_tools,
    multimodal, images, speech, embeddings, errors,
]  # fmt: skip


def main() -> int:
    client = OpenAI(api_key="EMPTY", base_url=sys.argv[1], timeout=120, max_retries=0)
    failed = 0
    for slice_ in SLICES:
        try:
            print(f"ok    {slice_.__name__:14} {slice_(client, Path(sys.argv[2]))!r}"[:120])
        except Exception:
            failed += 1
            print(f"FAIL  {slice_.__name__:14} {traceback.format_exc(limit=-1)}")
    print(f"openai {openai.__version__}: {failed} failed")
    return failed


if __name__ == "__main__":
    sys.exit(main())
