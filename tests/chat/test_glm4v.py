"""glm-4v-9b's layout in our own engine: it says what the original says, whatever else is going on."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from chat import chatglm_tiny, glm4v_tiny
from chat.blocks_kit import PAGINGS, with_paging
from chat.engine_kit import Heard, ask, started, submit
from chat.glm4v_tiny import BEGIN_IMAGE, CONFIG, MARKS, PLACES, SIZE, VISION, greedy, picture, png, positions
from PIL import Image
from quintet_chat.backends import glm4v
from quintet_chat.backends.chatglm_tokenizer import load_tokenizer
from quintet_chat.backends.glm4v_pictures import Glm4vProcessor
from quintet_chat.backends.loader import load
from quintet_chat.engine.engine import ChatEngine
from quintet_chat.engine.runner import UnsupportedModel
from quintet_chat.protocol import Accepted, Delta, Started
from quintet_common.models_yml import ModelSpec
from quintet_common.worker.host import LoadError

NEW = 16
TEXT = "the cat sat on the mat hello"
ANSWER = "a cat"


@pytest.fixture(scope="module")
def text() -> Any:
    return glm4v_tiny.text_model()


@pytest.fixture(scope="module")
def folder(text: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("glm-4v")
    glm4v_tiny.write(folder, text)
    return folder


def spec_of(folder: Path, **fields: Any) -> ModelSpec:
    common: dict[str, Any] = {"id": "glm-4v-9b", "kind": "multimodal", "dtype": "float32", "device": "cpu"}
    return ModelSpec(**(common | {"path": str(folder), "max_batch": 5} | fields))


def loaded(folder: Path, **fields: Any) -> Any:
    return load(spec_of(folder, **fields), 4, lambda _fraction, _note: None)


@pytest.fixture(scope="module")
def engine(folder: Path) -> ChatEngine:
    return started(spec_of(folder, engine_args={"prefill_chunk": 12}))


# What is seen.


def test_the_tower_sees_what_plain_torch_sees(folder: Path) -> None:
    made = loaded(folder)
    image = picture()
    pixels = made.reader.inputs(MARKS, [image])["pixel_values"]
    with torch.inference_mode():
        (ours,) = made.runner._model.get_image_features(pixels).pooler_output
    plain = glm4v_tiny.seen(glm4v_tiny.tower_weights(), torch.from_numpy(np.array(image)).float())
    assert ours.shape == (PLACES + 2, CONFIG["hidden_size"])
    torch.testing.assert_close(ours, plain, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("size", [(50, 200), (301, 123), (SIZE, SIZE)])
def test_pictures_are_stretched_to_the_size_of_the_tower(folder: Path, size: tuple[int, int]) -> None:
    """Torch's own cubic filter is the other side; Pillow rounds to whole numbers twice, and cuts off what it must."""
    image = picture(size=size).point(lambda value: 64 + value // 2)
    processor = Glm4vProcessor(load_tokenizer("glm", folder), glm4v.Eyes.of(VISION))
    given = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].double()
    scaled = torch.nn.functional.interpolate(given, (SIZE, SIZE), mode="bicubic", antialias=True) / 255
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073])[:, None, None]
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711])[:, None, None]
    found = processor([image], [MARKS])["pixel_values"]
    assert found.shape == (1, 3, SIZE, SIZE)
    assert float((found - (scaled - mean) / std).abs().max()) < 1.5 / 255 / 0.26


# Where it is.


@pytest.mark.parametrize("before", [0, 1, 7])
@pytest.mark.parametrize("behind", [0, 1, 30])
def test_places_have_the_numbers_of_the_original(before: int, behind: int) -> None:
    short = [*[40] * before, BEGIN_IMAGE, CONFIG["pad_token_id"], CONFIG["eoi_token_id"], *[41] * behind]
    whole = torch.tensor([*short[: before + 1], *[CONFIG["pad_token_id"]] * PLACES, *short[before + 2 :]])
    assert glm4v.numbers(whole, BEGIN_IMAGE, PLACES).tolist() == positions(short)
    assert glm4v.numbers(whole[: before + 5], BEGIN_IMAGE, PLACES).tolist() == positions(short)[: before + 5]


def test_text_is_counted_token_by_token() -> None:
    assert glm4v.numbers(torch.arange(9), BEGIN_IMAGE, PLACES).tolist() == list(range(9))


def test_the_numbers_matter(text: Any) -> None:
    """Else nothing here would tell the original's from others."""
    short = [499, 501, BEGIN_IMAGE, 497, BEGIN_IMAGE + 1, 40, 41, 42]
    _, ours = greedy(text, short, picture(), 2)
    _, in_turn = greedy(text, short, picture(), 2, in_turn=True)
    assert float((ours - in_turn).abs().max()) > 0.05


# What is said.


def message(words: str, *pictures: int, role: str = "user") -> dict[str, Any]:
    parts: list[dict[str, Any]] = [{"type": "image", "image": index} for index in pictures]
    return {"role": role, "content": [*parts, {"type": "text", "text": words}]}


CONVERSATIONS: list[tuple[list[dict[str, Any]], list[int], str]] = [
    ([message(TEXT)], [], f"<|user|>\n{TEXT}"),
    ([message("what", 0)], [1], f"<|user|>\n{MARKS}what"),
    ([message("what", 0)], [2], f"<|user|>\n{MARKS}what"),
    ([message(TEXT), message(ANSWER, role="assistant"), message("and", 0), message(ANSWER, role="assistant"),
      message(TEXT)], [3],
     f"<|user|>\n{TEXT}<|assistant|>\n{ANSWER}<|user|>\n{MARKS}and<|assistant|>\n{ANSWER}<|user|>\n{TEXT}"),
]  # fmt: skip
"""Messages, the numbers of their pictures, and what the template writes between its beginning and its end."""


@pytest.fixture(scope="module")
def expected(text: Any, folder: Path) -> list[tuple[list[int], list[float], int]]:
    """For each conversation what the original says, the logarithms of probabilities, and how long its prompt is."""
    tokenizer, found = load_tokenizer("glm", folder), []
    for _, pictures, written in CONVERSATIONS:
        short = tokenizer.encode(f"[gMASK]<sop>{written}<|assistant|>")
        said, rows = greedy(text, short, picture(pictures[0]) if pictures else None, NEW)
        found.append((said, rows.tolist(), len(short) + (PLACES - 1 if pictures else 0)))
    return found


def begin(engine: ChatEngine, number: int, **fields: Any) -> Heard:
    messages, pictures, _ = CONVERSATIONS[number]
    asked: dict[str, Any] = {"temperature": 0, "max_tokens": NEW, "ignore_eos": True, "logprobs": 1, **fields}
    return submit(engine, messages=messages, images=[png(picture(each)) for each in pictures], **asked)[1]


def check(engine: ChatEngine, heard: Heard, wanted: tuple[list[int], list[float], int], index: int = 0) -> None:
    assert heard.wait().error is None
    said = [each for delta in heard.deltas(index) for each in delta.logprobs]
    assert [each.token for each in said] == [engine._output._token_text(token)[0] for token in wanted[0]]
    assert [each.logprob for each in said] == pytest.approx(wanted[1], abs=1e-3)
    assert next(event.prompt_tokens for event in heard.events if isinstance(event, Accepted)) == wanted[2]


def cached(heard: Heard) -> int:
    return next(event.cached_tokens for event in heard.events if isinstance(event, Started))


def test_greedy_tokens_are_those_of_the_original(engine: ChatEngine, expected: list[Any]) -> None:
    """Alone, in pieces of twelve tokens; then together, behind beginnings that are known, within a picture and not."""
    for number, wanted in enumerate(expected):
        heard = begin(engine, number)
        check(engine, heard, wanted)
        assert len([event for event in heard.events if isinstance(event, Delta)]) > 1  # as it is said
    order = (3, 0, 2, 1, 3, 1, 0, 2)
    together = [begin(engine, number) for number in order]
    for number, heard in zip(order, together, strict=True):
        check(engine, heard, expected[number])
        assert cached(heard) == (expected[number][2] - 1) // 16 * 16


def test_another_picture_behind_the_same_words_is_another_prompt(engine: ChatEngine, expected: list[Any]) -> None:
    check(engine, begin(engine, 1), expected[1])
    messages = [message("what", 0)]
    asked: dict[str, Any] = {"temperature": 0, "max_tokens": 4, "logprobs": 1, "ignore_eos": True}
    other = ask(engine, messages=messages, images=[png(picture(77))], **asked)
    assert cached(other) == 0  # the picture begins in the first block
    found = [each.logprob for delta in other.deltas() for each in delta.logprobs]
    assert found != pytest.approx(expected[1][1][:4], abs=1e-3)


@pytest.mark.parametrize("paging", PAGINGS)
def test_answers_go_on_after_an_eviction(
    folder: Path, expected: list[Any], paging: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With slots as on a CPU, and as on a GPU but for the recording of steps; choices share what was seen."""
    per_token = 2 * 2 * 2 * 32 * 4  # keys and values, layers, heads, head size, bytes
    small = {"kv_memory": str(576 * per_token), "prefix_cache": "off", "prefill_chunk": 16}
    with_paging(monkeypatch, PAGINGS[paging])
    made = started(spec_of(folder, max_batch=8, engine_args=small))
    together = [begin(made, number, n=2, max_tokens=80) for number in (1, 2, 3, 0) * 2]
    for number, heard in zip((1, 2, 3, 0) * 2, together, strict=True):
        for index in range(2):
            assert heard.wait().error is None
            said = [each.token for delta in heard.deltas(index) for each in delta.logprobs][:NEW]
            assert said == [made._output._token_text(token)[0] for token in expected[number][0]]
    assert made.stats()["preemptions_total"] > 0


def test_text_alone_is_what_glm_4_says(text: Any, folder: Path, tmp_path: Path) -> None:
    config = {name: value for name, value in CONFIG.items() if name != "vision_config"}
    chatglm_tiny.write(tmp_path, config, chatglm_tiny.as_published(text))
    ids = torch.tensor([[499, 501, 504, 10, 300, 40, 41, 7, 8, 9]])
    with torch.inference_mode():
        sees, reads = (loaded(path, kind="chat").runner._model(ids).logits for path in (folder, tmp_path))
    assert torch.equal(sees, reads)


def test_bfloat16_on_a_cpu(folder: Path) -> None:
    """Its linear layers are packed, those of the tower as well, and it sees the same but for rounding."""
    exact, rounded = loaded(folder), loaded(folder, dtype="bfloat16")
    packed = [name for name, part in rounded.runner._model.named_modules() if type(part).__name__ == "PackedLinear"]
    if torch.ops.mkldnn._is_mkldnn_bf16_supported():
        assert len([name for name in packed if name.startswith("vision.")]) == 2 * 4 + 4
    pixels = exact.reader.inputs(MARKS, [picture()])["pixel_values"]
    with torch.inference_mode():
        ours, theirs = (
            each.runner._model.get_image_features(pixels).pooler_output.float().flatten() for each in (exact, rounded)
        )
    assert float(torch.cosine_similarity(ours, theirs, dim=0)) > 0.999


# What is refused.


@pytest.mark.parametrize(
    ("words", "pictures", "code"),
    [
        ("two", 2, "too_many_pictures"),
        (f"what is {MARKS}", 1, "picture_marks"),
        ("what is <|begin_of_image|>", 1, "picture_marks"),
        ("the end is <|endoftext|>", 1, None),
        (MARKS, 0, None),
        ("hello " * 600, 1, "context_length_exceeded"),
    ],
)
def test_what_cannot_be_told_from_its_picture_or_does_not_fit(
    engine: ChatEngine, words: str, pictures: int, code: str | None
) -> None:
    images = [png(picture(number)) for number in range(pictures)]
    error = submit(engine, messages=[message(words, *range(pictures))], images=images, max_tokens=1)[1].wait().error
    assert (error and (error.status, error.code, error.param)) == (code and (400, code, "messages"))


def test_what_is_no_picture_costs_its_own_request_alone(engine: ChatEngine, expected: list[Any]) -> None:
    out = io.BytesIO()
    Image.new("LA", (3, 700), (9, 0)).save(out, "PNG")
    assert ask(engine, messages=[message("grey, and nothing to be seen", 0)], images=[out.getvalue()], max_tokens=2)
    check(engine, begin(engine, 2), expected[2])


@pytest.mark.parametrize("wrong", ["shift", "positions", "features"])
def test_the_trial_notices(folder: Path, wrong: str) -> None:
    made = loaded(folder)
    prompt, pictures, inputs = made.reader.trial()
    made.runner.check_pictures(prompt, pictures, inputs)
    if wrong == "shift":
        pictures.shift += PLACES - 1
    elif wrong == "positions":
        pictures.positions = torch.arange(len(prompt))
    else:
        pictures.each[0].features["pixel_values"] *= -3
    with pytest.raises(UnsupportedModel, match="does not say what it says alone"):
        made.runner.check_pictures(prompt, pictures, inputs)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"vision_config": {}}, "image_size: None in its config.json is no size"),
        ({"vision_config": None}, "image_size: None in its config.json is no size"),
        ({"vision_config": {**VISION, "hidden_act": "relu"}}, "hidden_act: 'relu' in its config.json is not supported"),
        ({"vision_config": {**VISION, "num_positions": 64}}, "do not go together"),
        ({"vision_config": {**VISION, "num_hidden_layers": 3}}, "weights are missing from its files"),
        ({"vision_config": {**VISION, "intermediate_size": 81}}, "its weights cannot be loaded"),
        ({"boi_token_id": None}, "do not say where pictures stand"),
        ({"boi_token_id": 3}, "pictures cannot be batched"),
        ({"seq_length": 16}, "more than its context"),
    ],
)
def test_what_it_cannot_be(folder: Path, tmp_path: Path, change: dict[str, Any], says: str) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "model"))
    (copy / "config.json").write_text(json.dumps(CONFIG | change))
    with pytest.raises(LoadError, match=says):
        loaded(copy)
