"""Loading models that see: what they need, and what becomes of those whose pictures cannot be shown to them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from chat import picture_models as tiny
from chat.engine_kit import KINDS, SHAPE, ask, started, submit, tokenizer, user
from quintet_chat.backends import processor
from quintet_chat.backends.loader import load
from quintet_chat.engine.runner import Runner, UnsupportedModel
from quintet_common.models_yml import ModelSpec
from quintet_common.worker.host import LoadError


def loaded(name: str, **fields: Any) -> Any:
    return load(tiny.spec(name, **fields), 2, lambda _fraction, _note: None)


def without_processor(folder: Path) -> str:
    """A copy of a model that lacks what its processor is made of."""
    shutil.copytree(tiny.path("llava"), folder, dirs_exist_ok=True)
    for name in ("preprocessor_config.json", "processor_config.json"):
        (folder / name).unlink()
    return str(folder)


def test_a_processor_that_needs_torchvision_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: Any) -> None:
        raise ImportError("This processor requires the Torchvision library but it was not found in your environment.")

    monkeypatch.setattr(transformers.AutoProcessor, "from_pretrained", missing)
    with pytest.raises(LoadError, match=r"its processor cannot be loaded: .*'torchvision'"):
        loaded("llava")


@pytest.mark.skipif(processor.is_torchvision_available(), reason="with torchvision the processor is loaded whole")
def test_pictures_need_no_torchvision_where_only_videos_do() -> None:
    made = processor.load(str(tiny.path("qwen2_vl")), transformers.AutoConfig.from_pretrained(tiny.path("qwen2_vl")))
    assert isinstance(made, transformers.Qwen2VLProcessor)
    assert made.chat_template


@pytest.mark.skipif(processor.is_torchvision_available(), reason="with torchvision there is a processor")
def test_llama_4_takes_pictures_with_torchvision_alone_and_text_without(tmp_path: Path) -> None:
    torch.manual_seed(0)
    words = tokenizer()
    text = {**SHAPE, **KINDS["llama4_text"], "vocab_size": len(words), "eos_token_id": words.eos_token_id}
    tower = {**tiny.SQUARE, "vision_output_dim": 32, "projector_input_dim": 32, "projector_output_dim": 32}
    config = transformers.AutoConfig.for_model("llama4", text_config=text, vision_config=tower)
    model = transformers.AutoModelForImageTextToText.from_config(config).float().eval()
    model.save_pretrained(tmp_path)
    words.save_pretrained(tmp_path)
    (tmp_path / "processor_config.json").write_text('{"processor_class": "Llama4Processor", "patch_size": 14}')
    (tmp_path / "preprocessor_config.json").write_text('{"image_processor_type": "Llama4ImageProcessorFast"}')
    fields: dict[str, Any] = {"id": "tiny", "path": str(tmp_path), "dtype": "float32", "device": "cpu"}
    with pytest.raises(LoadError, match=r"its processor cannot be loaded: it needs the package 'torchvision'"):
        load(ModelSpec(kind="multimodal", **fields), 2, lambda _fraction, _note: None)
    engine = started(ModelSpec(kind="chat", **fields))
    prompt = torch.arange(5, 25)[None]
    model.generation_config.eos_token_id = None
    answer = model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=12, do_sample=False)[0, 20:]
    heard = ask(engine, prompt[0].tolist(), temperature=0, max_tokens=12, ignore_eos=True, logprobs=1)
    said = [logprob.token for delta in heard.deltas() for logprob in delta.logprobs]
    assert said == [engine._output._token_text(token)[0] for token in answer.tolist()]


def test_a_model_without_a_processor_is_refused_or_as_kind_chat_takes_text(tmp_path: Path) -> None:
    path = without_processor(tmp_path)
    with pytest.raises(LoadError, match="its processor cannot be loaded"):
        loaded("llava", path=path)
    engine = started(tiny.spec("llava", path=path, kind="chat"))
    assert engine.info["modalities"] == ["text"]  # type: ignore[attr-defined]
    assert ask(engine, messages=user("hello"), max_tokens=3, ignore_eos=True).tokens() == 3
    error = submit(engine, messages=[tiny.message("hello", 0)], images=[tiny.picture(0)])[1].wait().error
    assert error is not None
    assert (error.status, error.code) == (400, "no_images")


def test_as_kind_chat_a_model_that_sees_takes_pictures() -> None:
    assert loaded("idefics3", kind="chat").info["modalities"] == ["text", "image"]


def test_a_model_that_says_something_else_over_slots_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """One whose positions are counted in another way than its own, for example."""

    def fail(*_: Any) -> None:
        raise UnsupportedModel("over slots of keys and values it does not say what it says alone")

    monkeypatch.setattr(Runner, "check_pictures", fail)
    with pytest.raises(LoadError, match="pictures cannot be batched: over slots"):
        loaded("llava")


@pytest.mark.parametrize("wrong", ["shift", "positions", "features"])
def test_the_trial_notices(wrong: str) -> None:
    made = loaded("qwen2_vl")
    prompt, pictures, inputs = made.reader.trial()
    made.runner.check_pictures(prompt, pictures, inputs)
    if wrong == "shift":
        pictures.shift += 40
    elif wrong == "positions":
        pictures.positions = pictures.positions.flip(1)
    else:
        pictures.each[0].features["pixel_values"] *= -3
    with pytest.raises(UnsupportedModel, match="does not say what it says alone"):
        made.runner.check_pictures(prompt, pictures, inputs)
