"""emoji-64 as a diffusers pipeline, with its committed weights."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image
from quintet_common.errors import ApiError
from quintet_common.models_yml import ModelSpec
from quintet_vision.backends.base import Item, Plan
from quintet_vision.backends.emoji64 import FOLDER, Emoji64Backend, load_pipeline
from quintet_vision.emoji64.pipeline import Emoji64Pipeline
from quintet_vision.emoji64.scheduler import CleanPredictionFlowScheduler
from quintet_vision.emoji64.transformer import Emoji64Transformer
from quintet_vision.emoji64.words import to_english
from quintet_vision.protocol import Draw


@pytest.fixture(scope="module")
def pipe() -> Emoji64Pipeline:
    return load_pipeline()


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def drawn(pipe: Emoji64Pipeline, prompt: str | list[str], **fields: object) -> torch.Tensor:
    fields = {"num_inference_steps": 8, "generator": seeded(0), "output_type": "pt", **fields}
    return pipe(prompt, **fields).images


def test_the_weights_fit_into_a_repository() -> None:
    assert sum(file.stat().st_size for file in FOLDER.rglob("*") if file.is_file()) < 20e6


def test_counting_tokens_leaves_the_tokenizer_that_draws_alone() -> None:
    backend = Emoji64Backend(ModelSpec(id="emoji-64", kind="image", path="embedded:emoji-64"), lambda *_: None)
    request = Draw(prompt="a red apple")
    own = backend._pipe.tokenizer.backend_tokenizer
    before = (own.padding, own.truncation)
    assert before[0] is not None  # set by the first picture, which loading draws
    assert backend.usage(request, backend.plan(request)).text_tokens == 5
    assert (own.padding, own.truncation) == before


def test_it_is_saved_and_loaded_like_any_pipeline(pipe: Emoji64Pipeline, tmp_path: Path) -> None:
    assert isinstance(pipe, DiffusionPipeline)
    pipe.save_pretrained(tmp_path)
    again = Emoji64Pipeline.from_pretrained(tmp_path)
    again.set_progress_bar_config(disable=True)
    assert again.scheduler.config.min_distance == pipe.scheduler.config.min_distance
    assert (drawn(pipe, "a cat") - drawn(again, "a cat")).abs().max() < 1e-3


def test_sampling_is_euler_along_the_straight_path(pipe: Emoji64Pipeline) -> None:
    """The loop written out by hand, from the equations, gives the same picture."""
    steps, guidance = 5, 2.5
    states = pipe.encode_prompt(["a cat", ""])
    x = torch.randn(1, 3, 64, 64, generator=seeded(3))
    with torch.no_grad():
        for k in range(steps):
            t = torch.tensor([k / steps])
            wanted, unwanted = (pipe.transformer(x, t, state[None]) for state in states)
            clean = unwanted + guidance * (wanted - unwanted) if t < 0.6 else wanted
            x = clean if k == steps - 1 else x + (clean - x) / (1 - t) / steps
    expected = (x.clamp(-1, 1) + 1) / 2
    expected += (1 - expected) * ((expected.amin(1, keepdim=True) - 0.94) / 0.03).clamp(0, 1)
    got = drawn(pipe, "a cat", num_inference_steps=steps, generator=seeded(3))
    assert (got - expected).abs().max() < 1e-4


def test_a_picture_does_not_depend_on_its_batch(pipe: Emoji64Pipeline) -> None:
    both = drawn(pipe, ["a cat", "lemon"], generator=[seeded(1), seeded(2)])
    assert (drawn(pipe, "lemon", generator=[seeded(2)])[0] - both[1]).abs().max() < 2 / 255


def test_known_pixels_stay_under_a_mask(pipe: Emoji64Pipeline) -> None:
    image = Image.new("RGB", (64, 64), (10, 200, 90))
    mask = Image.new("L", (64, 64))
    mask.paste(255, (32, 0, 64, 64))
    result = drawn(pipe, "sun", image=image, mask_image=mask, strength=1.0)[0]
    known = torch.from_numpy(np.asarray(image) / 255).permute(2, 0, 1)
    assert (result[:, :, :32] - known[:, :, :32]).abs().max() < 1e-3
    assert (result[:, :, 40:] - known[:, :, 40:]).abs().max() > 0.3


def test_a_negative_prompt_and_guidance_change_the_picture(pipe: Emoji64Pipeline) -> None:
    plain = drawn(pipe, "a cat")
    assert (drawn(pipe, "a cat", negative_prompt="orange") - plain).abs().max() > 0.02
    assert (drawn(pipe, "a cat", guidance_scale=1.0) - plain).abs().max() > 0.02


def test_an_edit_is_guided_or_refuses_what_would_guide_it() -> None:
    backend = Emoji64Backend(ModelSpec(id="emoji-64", kind="image", path="embedded:emoji-64"), lambda *_: None)
    image = Image.new("RGB", (64, 64), (10, 200, 90))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    for strength in (0.2, 0.45, 0.7):
        request = Draw(prompt="a cat", image=buffer.getvalue(), strength=strength)
        plan = backend.plan(request)
        steps: list[int] = []

        def edit(text: str, plan: Plan = plan, steps: list[int] = steps) -> np.ndarray:
            items = [Item("a cat", text, 1, (64, 64), image)]
            (picture,) = backend.draw(plan, items, lambda step, _: steps.append(step) or ())
            return np.asarray(picture)

        with_it, without = edit("orange"), edit("")
        assert steps == [*range(1, plan.steps_taken + 1)] * 2
        if (with_it == without).all():
            for fields in ({"negative_prompt": "orange"}, {"guidance": 4.0}):
                with pytest.raises(ApiError, match="with a strength above"):
                    backend.plan(Draw(prompt="a cat", image=buffer.getvalue(), strength=strength, **fields))
        else:
            backend.plan(Draw(prompt="a cat", image=buffer.getvalue(), strength=strength, negative_prompt="orange"))


def test_the_callback_may_interrupt(pipe: Emoji64Pipeline) -> None:
    seen: list[int] = []

    def stop(pipeline: Emoji64Pipeline, step: int, time: float, tensors: dict[str, torch.Tensor]) -> dict[str, object]:
        seen.append(step)
        assert set(tensors) == {"latents", "prediction"}
        assert 0 <= time < 1
        pipeline._interrupt = step == 1
        return {}

    drawn(pipe, "a cat", callback_on_step_end=stop)
    assert seen == [0, 1]


@pytest.mark.parametrize(
    "fields", [{"generator": [seeded(0)]}, {"negative_prompt": ["x"]}, {"mask_image": Image.new("L", (8, 8))}]
)
def test_lists_of_wrong_length_are_errors(pipe: Emoji64Pipeline, fields: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        drawn(pipe, ["a", "b"], **fields)


def test_the_network_starts_as_a_constant_and_is_small() -> None:
    network = Emoji64Transformer()
    assert sum(parameter.numel() for parameter in network.parameters()) < 8e6
    output = network(torch.randn(2, 3, 64, 64), torch.tensor([0.1, 0.9]), torch.zeros(2, 12, 384))
    assert output.shape == (2, 3, 64, 64)
    assert output.abs().max() < 0.1


def test_the_scheduler_ends_at_the_prediction() -> None:
    scheduler = CleanPredictionFlowScheduler()
    scheduler.set_timesteps(4)
    sample, clean = torch.ones(1), torch.zeros(1)
    assert scheduler.timesteps.tolist() == [0, 0.25, 0.5, 0.75]
    assert scheduler.step(clean, 0, sample).prev_sample == pytest.approx(0.75)
    assert scheduler.step(clean, 3, sample).prev_sample == 0
    assert scheduler.add_noise(clean, sample, 0.25) == pytest.approx(0.75)


@pytest.mark.parametrize(
    ("prompt", "english"),
    [
        ("一只可爱的橙色小猫", "cute orange cat"),
        ("红苹果", "red apple"),
        ("一个苹果", "red apple"),
        ("一个绿苹果", "green apple"),
        ("长城下雪啦，写唯美实风格。", "castle snow"),
        ("a red 苹果!", "a red apple !"),
        ("a red apple", "a red apple"),
        ("魑魅魍魉", "魑魅魍魉"),
    ],
)
def test_chinese_words(prompt: str, english: str) -> None:
    assert to_english(prompt) == english
