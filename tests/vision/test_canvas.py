"""Geometry: nothing is ever distorted, and sizes are exact."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image
from quintet_vision.canvas import (
    contained,
    cover,
    crop,
    encode,
    extended,
    pad,
    read_image,
    read_mask,
    read_size,
    round_up,
)

from .pictures import encoded, mask, png


def test_a_picture_is_contained_in_the_middle_undistorted() -> None:
    box = contained((640, 400), (1024, 1024))
    assert (box.width, box.height, box.left, box.top) == (1024, 640, 0, 192)
    assert contained((1, 5000), (64, 64)).width == 1


def test_padding_keeps_proportions_and_fills_the_rest() -> None:
    page = pad(Image.new("RGB", (64, 64), "blue"), (200, 100), (255, 255, 255))
    pixels = np.asarray(page)
    assert page.size == (200, 100)
    assert (pixels[50, 100] == (0, 0, 255)).all()
    assert (pixels[50, 20] == 255).all()
    assert (pixels[:, :, 0] == 0).sum() == pytest.approx(100 * 100, rel=0.02)


def test_covering_fills_the_frame_and_cropping_takes_the_middle() -> None:
    assert cover(Image.new("RGB", (64, 64), "blue"), (200, 100)).size == (200, 100)
    striped = Image.new("RGB", (10, 10))
    striped.putpixel((5, 5), (9, 9, 9))
    assert crop(striped, (2, 2)).getpixel((1, 1)) == (9, 9, 9)


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_extending_draws_the_edges_out_and_cropping_undoes_it(mode: str) -> None:
    image = Image.linear_gradient("L").resize((30, 17)).convert(mode)
    wide = extended(image, (36, 24))
    assert (wide.size, wide.mode) == ((36, 24), mode)
    assert (np.asarray(crop(wide, (30, 17))) == np.asarray(image)).all()
    assert wide.getpixel((0, 0)) == image.getpixel((0, 0))


def test_sizes_are_rounded_up() -> None:
    assert round_up((1792, 1025), 16) == (1792, 1040)


def test_transparent_pictures_are_read_on_white() -> None:
    clear = encoded(Image.new("RGBA", (8, 8), (0, 0, 0, 0)))
    assert read_image(clear).getpixel((4, 4)) == (255, 255, 255)
    assert read_image(png()).mode == "RGB"
    assert read_size(png(30, 20)) == (30, 20)


def test_a_mask_opens_what_is_transparent() -> None:
    read = np.asarray(read_mask(mask(100, 40)))
    assert (read[:, :50] == 0).all()
    assert (read[:, 50:] == 255).all()


@pytest.mark.parametrize("form", ["png", "jpeg", "webp"])
def test_every_format_is_written(form: str) -> None:
    data = encode(Image.new("RGB", (20, 10), "red"), form, 80)
    assert Image.open(io.BytesIO(data)).format == form.upper()
