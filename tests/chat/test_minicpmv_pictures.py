"""MiniCPM-V-2_6's pictures, as vLLM gets them from us: how they are sliced, and the folder that says so."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from chat import minicpmv_tiny
from PIL import Image
from quintet_chat.vllm import facts, originals, server
from quintet_chat.vllm.minicpmv.configuration_minicpmv import MiniCPMVConfig
from quintet_chat.vllm.minicpmv.image_processing_minicpmv import MiniCPMVImageProcessor
from quintet_common import vllm_program
from quintet_common.models_yml import ModelSpec


@pytest.mark.parametrize(
    ("size", "grid"),
    [
        ((448, 448), None),
        ((20, 20), None),
        ((449, 449), (1, 2)),  # two are as far from a square as one another: the first wins
        ((896, 448), (2, 1)),
        ((448, 1344), (1, 3)),
        ((1344, 1344), (3, 3)),
        ((4000, 3000), (3, 3)),
        ((9000, 300), (9, 1)),
    ],
)
def test_slices(size: tuple[int, int], grid: tuple[int, int] | None) -> None:
    assert MiniCPMVImageProcessor().get_sliced_grid(size) == grid


def test_a_small_picture_is_enlarged_and_a_large_one_cut() -> None:
    made = MiniCPMVImageProcessor()
    found = made([Image.new("RGB", (100, 50)), Image.new("RGB", (1344, 1000), "white")])
    assert found["image_sizes"] == [[(100, 50), (1344, 1000)]]
    (grids,) = found["tgt_sizes"]
    assert grids.tolist() == [[23, 45], [28, 37], *[[34, 30]] * 6]  # three columns and two rows behind the overview
    (pixels,) = found["pixel_values"]
    assert [part.shape[-1] for part in pixels] == [14 * rows * columns for rows, columns in grids.tolist()]
    assert float(pixels[0].max()) == -1
    assert float(pixels[1].min()) == 1


def test_patches_are_in_reading_order() -> None:
    drawn = np.random.default_rng(1).integers(0, 255, (28, 42, 3), dtype=np.uint8)
    patches = MiniCPMVImageProcessor()._patches(Image.fromarray(drawn)).numpy()
    wanted = (drawn[14:28, 14:28].transpose(2, 0, 1) / 255 - 0.5) / 0.5
    np.testing.assert_allclose(patches[:, :, 14 * 4 : 14 * 5], wanted, atol=1e-6)


def test_the_place_of_a_picture() -> None:
    text = MiniCPMVImageProcessor(image_feature_size=2).get_slice_image_placeholder((900, 1800), 3)
    places = "<unk><unk>"
    rows = "\n".join([f"<slice>{places}</slice>" * 2] * 4)
    assert text == f"<image_id>3</image_id><image>{places}</image>{rows}"
    assert MiniCPMVImageProcessor().get_slice_image_placeholder((10, 10), use_image_id=False).startswith("<image><unk>")


def test_vllm_gets_a_folder_with_our_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUINTET_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv(vllm_program.PYTHON, "python")
    folder = tmp_path / "model"
    folder.mkdir()
    minicpmv_tiny.write(folder, minicpmv_tiny.text_model())
    (folder / "modeling_minicpmv.py").write_text("raise SystemExit")
    spec = ModelSpec(id="m", kind="multimodal", path=str(folder), engine="vllm")
    words = server.command(spec)
    made = Path(words[words.index("--model") + 1])
    assert "--trust-remote-code" in words
    assert {file.name for file in made.glob("*.py")} == {
        "configuration_minicpmv.py", "image_processing_minicpmv.py",
    }  # fmt: skip
    assert (made / "model.safetensors").resolve() == folder / "model.safetensors"
    named = "".join(
        (made / f"{name}.json").read_text() for name in ("config", "preprocessor_config", "tokenizer_config")
    )
    assert "configuration_minicpm.Mini" not in named
    assert "processing_minicpmv.MiniCPMVProcessor" not in named
    assert "tokenization_minicpmv_fast" not in named
    config = MiniCPMVConfig(**json.loads((made / "config.json").read_text()))
    assert (config.version, config.vision_config.image_size, config.hidden_size) == (2.6, 980, 128)
    assert facts.info(spec, 100)["tool_family"] == "hermes"
    assert server.command(spec) == words
    trusting = ModelSpec(id="m", kind="multimodal", path=str(folder), engine_args={"trust_remote_code": True})
    assert originals.prepare(trusting, facts.config_of(trusting)).path == str(folder)
