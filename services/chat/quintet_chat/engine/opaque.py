"""Pictures for models that see red, green and blue alone."""

from __future__ import annotations

from PIL import Image


def opaque(image: Image.Image) -> Image.Image:
    """``image`` in RGB, on white where it is transparent.

    Black lines on nothing, as programs export diagrams, are else black on black: what is transparent mostly has the
    colour 0.
    """
    if not image.has_transparency_data:
        return image.convert("RGB")
    rgba = image.convert("RGBA")
    flat = Image.new("RGB", rgba.size, "white")
    flat.paste(rgba, mask=rgba.getchannel("A"))
    return flat
