"""Every field that OpenAI's API has is known here: acted on, accepted or refused, never overlooked."""

from __future__ import annotations

import subprocess
import sys

import pytest
from openai.types import ImageCreateVariationParams, ImageEditParams, ImageGenerateParams
from pydantic import ValidationError
from quintet_common.errors import ApiError
from quintet_vision.api.requests import EditRequest, GenerationRequest, ImageRequest, VariationRequest

FILES = {"image", "mask", "markup"}
"""Parts of a multipart body that are read as files, see test_images_api."""


def fields_of(params: object) -> set[str]:
    """Of a TypedDict, or of a union of them."""
    return {name for each in getattr(params, "__args__", (params,)) for name in each.__annotations__}


@pytest.mark.parametrize(
    ("params", "kind"),
    [
        (ImageGenerateParams, GenerationRequest),
        (ImageEditParams, EditRequest),
        (ImageCreateVariationParams, VariationRequest),
    ],
)
def test_every_openai_field_is_known(params: object, kind: type[ImageRequest]) -> None:
    known = fields_of(params)
    assert {"image"} < known or {"prompt"} < known
    assert known - FILES <= set(kind.model_fields)


def test_quality_is_a_number_of_steps() -> None:
    efforts = [GenerationRequest(prompt="x", quality=quality).draw().effort for quality in ("low", None, "hd")]
    assert efforts == [0.5, 1.0, 1.5]


def test_size_is_read_and_auto_leaves_it_to_the_model() -> None:
    draw = GenerationRequest(prompt="x", size="1792x1024").draw()
    assert (draw.width, draw.height) == (1792, 1024)
    assert GenerationRequest(prompt="x", size="auto").draw().width is None


def test_high_fidelity_stays_closer_unless_strength_is_given() -> None:
    assert EditRequest(prompt="x", input_fidelity="high").draw().strength == 0.4
    assert EditRequest(prompt="x", input_fidelity="high", strength=0.9).draw().strength == 0.9
    assert EditRequest(prompt="x").draw().strength is None


def test_unknown_fields_are_ignored() -> None:
    assert GenerationRequest.model_validate({"prompt": "x", "brand_new": 1}).draw().prompt == "x"


def test_gif_is_refused_by_name() -> None:
    with pytest.raises(ApiError) as caught:
        GenerationRequest(prompt="x", output_format="gif").draw()
    assert caught.value.param == "output_format"


def test_the_api_process_never_imports_torch() -> None:
    code = (
        "import quintet_vision.app, sys; quintet_vision.app.create([]); "
        "sys.exit(bool({'torch', 'diffusers', 'transformers'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("field", ["user", "safety_identifier"])
def test_who_asks_is_text_as_it_may_be_told_again(field: str) -> None:
    with pytest.raises(ValidationError, match=field):
        GenerationRequest.model_validate({"prompt": "x", field: "\ud800"})


def test_brackets_without_end_are_no_lora() -> None:
    with pytest.raises(ValidationError, match="lora is a name, or a JSON object") as caught:
        GenerationRequest.model_validate({"prompt": "x", "lora": '{"a":' * 5000})
    assert caught.value.errors()[0]["loc"] == ("lora",)


@pytest.mark.parametrize(
    "field", ["n", "seed", "output_compression", "num_inference_steps", "guidance_scale", "partial_images", "strength"]
)
def test_a_boolean_is_no_number(field: str) -> None:
    for kind in (GenerationRequest, EditRequest):
        if field in kind.model_fields:
            with pytest.raises(ValidationError, match="not a boolean"):
                kind.model_validate({"prompt": "x", field: True})
            assert kind.model_validate({"prompt": "x", field: "1"})  # as a form sends it


def test_a_boolean_is_no_weight_of_a_lora() -> None:
    with pytest.raises(ValidationError, match="not a boolean"):
        GenerationRequest.model_validate({"prompt": "x", "lora": {"a": True}})
