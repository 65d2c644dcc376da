"""The pictures of a prompt, on the way from bytes to what the model sees in place of their tokens.

Each picture goes through the processor and the vision tower by itself: so it is known by its content wherever it
stands, only pictures whose keys and values are not known already are looked at, and a running answer waits for one
picture at most.
"""

from __future__ import annotations

import copy
import hashlib
import inspect
import io
import threading
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from PIL import Image
from quintet_common.errors import ApiError, bad_request

from quintet_chat.engine.opaque import opaque

Text = list[Hashable] | list[int]
"""Tokens, or whatever else tells them apart."""

HELD_BYTES = 1 << 30
"""Of prepared pictures, for all requests together: beyond, the next one waits for others to end."""


@dataclass(eq=False)
class Picture:
    """One picture of a prompt."""

    features: dict[str, torch.Tensor]
    """What the processor made of it, for the vision tower."""
    where: torch.Tensor
    """The tokens of the prompt that it takes the place of, ascending: [tokens]."""
    seen: torch.Tensor | None = None
    """What the model sees there, [1 + layers, tokens, hidden size]: instead of embeddings, and what is added behind
    each of its first layers, if anything. Kept only until the tokens are computed."""


@dataclass(eq=False)
class Pictures:
    """The pictures of one prompt, in order. For the model thread, once prepared."""

    each: list[Picture]
    text: list[Hashable]
    """The prompt's tokens; those of a picture are told apart by its content."""
    positions: torch.Tensor | None
    """Where the prompt's tokens are for a model that does not count them one by one: [tokens], or [3, tokens] for one
    with positions of several dimensions."""
    shift: int
    """What is added to the number of a token behind the prompt to get its position."""
    last_seen: torch.Tensor | None = None
    """For a model in which the tokens of a picture see each other in both directions (``mutual_layers``): the last
    token that each of the prompt's sees, [tokens]."""

    def end_of_piece(self, start: int, end: int) -> int:
        """Where to end what is computed at once from ``start`` on, ``end`` or near: no picture is to be cut.

        It may begin within a picture: what is known of it was computed with the whole picture.
        """
        if self.last_seen is None or end >= len(self.last_seen) or self.last_seen[end - 1] < end:
            return end
        last = self.last_seen[end - 1]
        first = int(torch.nonzero(self.last_seen == last)[0])
        return first if first > start else int(last) + 1

    def reach(self, start: int, count: int) -> torch.Tensor:
        """The last token that each of ``count`` tokens of prompt and answer from ``start`` on sees: [count]."""
        plain = torch.arange(start, start + count)
        known = plain[:0] if self.last_seen is None else self.last_seen[start : start + count]
        return torch.cat([known, plain[len(known) :]])

    def unseen(self, start: int, end: int) -> Picture | None:
        """The first picture that must be looked at before the tokens ``start`` to ``end`` can be computed."""
        return next((each for each in self.each if each.seen is None and len(_inside(each.where, start, end))), None)

    def forget(self, end: int) -> None:
        """Drop what was seen in pictures that end before the token ``end``, which is to be computed next."""
        for each in self.each:
            if int(each.where[-1]) < end:
                each.seen = None

    def parts(self, start: int, end: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Which of the tokens from ``start`` to ``end``, counted from ``start``, show what of ``Picture.seen``."""
        for each in self.each:
            inside = _inside(each.where, start, end)
            if len(inside):
                assert each.seen is not None
                yield each.where[inside] - start, each.seen[:, inside.to(each.seen.device)]

    def places(self, start: int, count: int) -> torch.Tensor:
        """The positions of ``count`` tokens of prompt and answer from ``start`` on: [count] or [3, count]."""
        plain = torch.arange(start, start + count) + self.shift
        if self.positions is None:
            return plain
        known = self.positions[..., start : start + count]
        return torch.cat([known, plain[known.shape[-1] :].expand(*known.shape[:-1], -1)], dim=-1)

    @property
    def bytes(self) -> int:
        """What the features take."""
        return sum(tensor.nbytes for each in self.each for tensor in each.features.values())


def _inside(where: torch.Tensor, start: int, end: int) -> torch.Tensor:
    return torch.nonzero((where >= start) & (where < end))[:, 0]


def mutual_layers(model: Any) -> frozenset[str]:
    """The kinds of layers in which the tokens of a picture see each other in both directions.

    Gemma 3 does so in all, Gemma 4 (not the smallest) in those with a window. A model of another habit is found out
    by the trial.
    """
    if "token_type_ids" in inspect.signature(model.forward).parameters:
        return frozenset({"full_attention", "sliding_attention"})
    config = model.config.get_text_config()
    by_window = getattr(config, "use_bidirectional_attention", None) == "vision"
    return frozenset({"sliding_attention"} if by_window else ())


class Prepared(NamedTuple):
    """What the processor made of one picture."""

    features: dict[str, torch.Tensor]
    written: str
    """What stands for the picture in the text."""
    content: bytes


class PictureReader:
    """Puts pictures into prompts as the model's processor does. For one thread.

    Raises ValueError for a processor or a model that does not say where pictures go.
    """

    def __init__(self, processor: Any, model: Any) -> None:
        mark = getattr(processor, "image_token", None)
        token = getattr(model.config, "image_token_id", None)
        if not isinstance(mark, str) or token is None or not hasattr(model, "get_image_features"):
            raise ValueError("its processor and configuration do not say where pictures stand in a text")
        # A copy: a tokenizer must not be told to pad by one thread while another uses it.
        self._processor = copy.deepcopy(processor)
        self.tokenizer = self._processor.tokenizer
        self.mark = mark
        self._token: int = token
        self._written: str = self.tokenizer.convert_ids_to_tokens(token)
        self._names = inspect.signature(model.get_image_features).parameters.keys()
        self._positions = getattr(model.base_model, "get_rope_index", None)
        self._dtype: torch.dtype = model.dtype
        self._mutual = bool(mutual_layers(model))

    def read(self, text: str, encoded: list[bytes], tokenize: Callable[[str], list[int]]) -> tuple[list[int], Pictures]:
        """The prompt of a rendered ``text`` and its pictures, given in the order of their marks."""
        pieces = text.split(self.mark)
        if len(pieces) != len(encoded) + 1:
            raise self._wrong_marks(len(pieces) - 1, len(encoded))
        prepared = [self._prepare(data) for data in encoded]
        written = "".join(piece + each.written for piece, each in zip(pieces, prepared, strict=False))
        prompt = tokenize(written + pieces[-1])
        return prompt, self._pictures(prompt, prepared)

    def _pictures(self, prompt: list[int], prepared: list[Prepared]) -> Pictures:
        ids = torch.tensor(prompt)
        places = self._find(ids, prepared)
        marked = torch.zeros_like(ids, dtype=torch.bool).index_fill_(0, torch.cat(places), True)
        text: list[Hashable] = list(prompt)
        for each, where in zip(prepared, places, strict=True):
            for index in where.tolist():
                text[index] = each.content
        positions, shift = self._layout(ids, marked, prepared)
        each_picture = [Picture(each.features, where) for each, where in zip(prepared, places, strict=True)]
        return Pictures(each_picture, text, positions, shift, _last_seen(marked) if self._mutual else None)

    def _find(self, ids: torch.Tensor, prepared: list[Prepared]) -> list[torch.Tensor]:
        """The tokens of each picture among ``ids``, ascending."""
        marked = torch.nonzero(ids == self._token)[:, 0]
        counts = [each.written.count(self._written) for each in prepared]
        if len(marked) != sum(counts):
            raise self._wrong_marks(len(marked), sum(counts))
        return list(torch.split(marked, counts))

    def _layout(
        self, ids: torch.Tensor, marked: torch.Tensor, prepared: list[Prepared]
    ) -> tuple[torch.Tensor | None, int]:
        """Positions of the prompt and the shift behind it, as the model itself counts them."""
        if self._positions is None:
            return None, 0
        grids = torch.cat([each.features["image_grid_thw"] for each in prepared])
        positions, shift = self._positions(ids[None], mm_token_type_ids=marked[None].int(), image_grid_thw=grids)
        return positions[:, 0], int(shift)

    def _prepare(self, encoded: bytes) -> Prepared:
        with Image.open(io.BytesIO(encoded)) as image:
            picture = opaque(image)
        try:
            inputs = self.inputs(self.mark, [picture], return_text_replacement_offsets=True)
        except ValueError as error:  # the processor's own limits, of a picture's shape for example
            size = f"{picture.width}x{picture.height}"
            raise bad_request(f"A picture of {size} cannot be read: {error}.", "messages", "invalid_image") from None
        # Whole numbers say how a picture is laid out; the rest is its pixels, in the precision of the model.
        features = {
            name: value.to(self._dtype) if value.is_floating_point() else value
            for name, value in inputs.items()
            if name in self._names
        }
        return Prepared(features, inputs["text_replacement_offsets"][0][0]["replacement"], _sha256(encoded))

    def inputs(self, text: str, images: list[Image.Image], **options: Any) -> Any:
        """What the processor makes of text and pictures, as tensors: the model's own input."""
        return self._processor(images=images, text=[text], return_tensors="pt", **options)

    def trial(self) -> tuple[list[int], Pictures, dict[str, torch.Tensor]]:
        """A prompt with a picture in the middle, and the same as the model's own input."""
        image = Image.linear_gradient("L").resize((96, 64)).convert("RGB")
        encoded = io.BytesIO()
        image.save(encoded, "PNG")
        text = f"one two{self.mark}three four"
        prompt, pictures = self.read(text, [encoded.getvalue()], self._ids)
        return prompt, pictures, dict(self.inputs(text, [image]))

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text)["input_ids"]
        return ids

    def _wrong_marks(self, found: int, wanted: int) -> ApiError:
        text = (
            f"With its pictures the conversation comes to {found} marks of pictures instead of {wanted}: "
            f"a text contains {self.mark!r}, or the chat template leaves out a picture."
        )
        return bad_request(text, "messages", "picture_marks")


def _last_seen(marked: torch.Tensor) -> torch.Tensor:
    """For each token the last one of its run of marked tokens; itself, if it is not marked."""
    index = torch.arange(len(marked))
    goes_on = marked & torch.cat([marked[1:], marked.new_zeros(1)])
    ends = index.masked_fill(goes_on, len(marked))
    return ends.flip(0).cummin(0).values.flip(0)


def _sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


class Held:
    """How much the prepared pictures of all requests take. For any thread."""

    def __init__(self, limit: int = HELD_BYTES) -> None:
        self._limit = limit
        self._bytes: dict[int, int] = {}
        self._changed = threading.Condition()
        self._open = True

    def wait(self) -> None:
        """Until the limit is not reached. One request may go beyond it."""
        with self._changed:
            self._changed.wait_for(lambda: not self._open or sum(self._bytes.values()) < self._limit)

    def add(self, request: int, size: int) -> None:
        with self._changed:
            self._bytes[request] = size

    def drop(self, request: int) -> None:
        """The request has ended; nothing when it held none."""
        with self._changed:
            if self._bytes.pop(request, None) is not None:
                self._changed.notify_all()

    def close(self) -> None:
        """Nobody waits from now on."""
        with self._changed:
            self._open = False
            self._changed.notify_all()
