"""PP-OCR through RapidOCR: find the lines of a picture, turn each upright, read them a few at a time."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageOps
from quintet_common.memory import give_back
from rapidocr import RapidOCR
from rapidocr.main import RapidOCRError

from quintet_chat.engine.opaque import opaque

MAX_SIDE = 1600
"""Pixels. Larger pictures are made smaller first; finding lines costs time by the pixel."""

MAX_RATIO = 4
"""Longer side to shorter. Slimmer pictures get a margin, because RapidOCR scales the shorter side up to 736 pixels."""

MIN_SIDE = 320
"""Pixels of the shorter side, reached by a margin, too: letters scaled up further are found one word at a time."""

LINES_AT_ONCE = 4
"""Lines read together before they are passed on: few, so that text comes early and a cancelled request ends soon."""

MIN_SCORE = 0.5
"""Confidence under which a line is taken for a pattern that is no text."""


class PaddleReader:
    """Uses as many threads as OMP_NUM_THREADS says. The weights come with RapidOCR's wheel."""

    def __init__(self) -> None:
        threads = int(os.environ.get("OMP_NUM_THREADS", "1"))
        self._ocr: Any = RapidOCR(
            params={
                "Global.log_level": "error",
                "EngineConfig.onnxruntime.intra_op_num_threads": threads,
                "EngineConfig.onnxruntime.inter_op_num_threads": 1,
            }
        )
        list(self.lines(_test_picture()))  # loads the three networks, which RapidOCR puts off until the first use

    def lines(self, picture: bytes) -> Iterator[str]:
        pixels, record = self._ocr.preprocess_img(_as_pixels(picture))
        found = _find_lines(self._ocr, pixels, record)
        give_back()  # a picture needs some 300 MB for a moment
        for start in range(0, len(found), LINES_AT_ONCE):
            upright = self._ocr.cls_and_rotate(found[start : start + LINES_AT_ONCE])[0]
            read = self._ocr.recognize_txt(upright)
            for text, score in zip(read.txts, read.scores, strict=True):
                if text.strip() and score >= MIN_SCORE:
                    yield text.strip()
        give_back()


def _find_lines(ocr: Any, pixels: NDArray[np.uint8], record: dict[str, Any]) -> list[NDArray[np.uint8]]:
    """The lines as pictures of their own. RapidOCR raises where there are none."""
    try:
        lines: list[NDArray[np.uint8]] = ocr.detect_and_crop(pixels, record)[0]
    except RapidOCRError:
        return []
    return lines


def _as_pixels(picture: bytes) -> NDArray[np.uint8]:
    """A picture as RapidOCR wants it: height x width x 3 in the order blue, green, red; on white where transparent."""
    with Image.open(io.BytesIO(picture)) as image:
        image.draft("RGB", (MAX_SIDE, MAX_SIDE))
        image.thumbnail((MAX_SIDE, MAX_SIDE))
        flat = opaque(image)
    shortest = max(MIN_SIDE, -(-max(flat.size) // MAX_RATIO))
    if min(flat.size) < shortest:
        mean = tuple(flat.resize((1, 1)).tobytes())
        flat = ImageOps.pad(flat, (max(flat.width, shortest), max(flat.height, shortest)), color=mean)
    return np.ascontiguousarray(np.asarray(flat)[:, :, ::-1])


def _test_picture() -> bytes:
    image = Image.new("RGB", (160, 48), "white")
    ImageDraw.Draw(image).text((10, 10), "ready", fill="black", font_size=24)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
