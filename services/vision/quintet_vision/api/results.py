"""From a worker's events to OpenAI's answers: one JSON object, or a stream of images on their way."""

from __future__ import annotations

import base64
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any

from openai.types import Image, ImagesResponse
from openai.types.images_response import Usage, UsageInputTokensDetails
from prometheus_client import Counter, Histogram
from quintet_common import metrics
from quintet_common.observation import Observation
from quintet_common.sse import event
from quintet_common.worker.process import Worker

from quintet_vision.files import FileStore
from quintet_vision.protocol import Accepted, Draw, Event, Finished, Preview, Started

SERVICE = "vision"

IMAGES = Counter("quintet_images", "Pictures drawn", ["service", "model"], registry=metrics.registry)
MEGAPIXEL_STEPS = Counter(
    "quintet_image_megapixel_steps",
    "Work done: millions of pixels that the network computed, times steps",
    ["service", "model"],
    registry=metrics.registry,
)
IMAGE_STEPS = Counter(
    "quintet_image_steps", "Steps of the pictures drawn", ["service", "model"], registry=metrics.registry
)
BATCH_SIZE = Histogram(
    "quintet_image_batch_size",
    "Pictures that the model drew together",
    ["service", "model"],
    buckets=(1, 2, 3, 4, 6, 8, 12, 16),
    registry=metrics.registry,
)


@dataclass
class Answering:
    """One request whose pictures are awaited."""

    model: str
    request: Draw
    quality: str | None
    safety_identifier: str | None
    seen: Observation
    accepted: Accepted | None = None

    def observe(self, each: Event) -> None:
        """Count an event; keep what was accepted."""
        if isinstance(each, Accepted):
            self.accepted = each
        elif isinstance(each, Started):
            metrics.QUEUE.labels(SERVICE, self.model).observe(each.queue_seconds)
        else:
            self.seen.mark_first_output()
        if isinstance(each, Finished):
            assert self.accepted is not None
            pixels = self.accepted.native_width * self.accepted.native_height
            IMAGES.labels(SERVICE, self.model).inc()
            self.seen.use("images", 1)
            IMAGE_STEPS.labels(SERVICE, self.model).inc(self.accepted.steps)
            if each.batch_size:
                BATCH_SIZE.labels(SERVICE, self.model).observe(each.batch_size)
            MEGAPIXEL_STEPS.labels(SERVICE, self.model).inc(pixels * self.accepted.steps / 1e6)

    @property
    def size(self) -> str:
        assert self.accepted is not None
        return f"{self.accepted.width}x{self.accepted.height}"

    @property
    def scaled_from(self) -> dict[str, str]:
        """``native_size``, when what the model drew was scaled or cropped to the size of the answer."""
        assert self.accepted is not None
        native = f"{self.accepted.native_width}x{self.accepted.native_height}"
        return {} if native == self.size else {"native_size": native}

    def usage(self, pictures: int) -> Usage:
        assert self.accepted is not None
        made = self.accepted
        read, drawn = made.text_tokens + made.image_tokens, made.output_tokens * pictures
        return Usage(
            input_tokens=read,
            input_tokens_details=UsageInputTokensDetails(text_tokens=made.text_tokens, image_tokens=made.image_tokens),
            output_tokens=drawn,
            total_tokens=read + drawn,
        )

    def image(self, finished: Finished, url: str | None) -> Image:
        """One entry of ``data``, with its seed beyond what OpenAI has."""
        assert self.accepted is not None
        fields: dict[str, Any] = {"seed": finished.seed}
        if url is None:
            fields["b64_json"] = base64.b64encode(finished.data).decode()
        else:
            fields["url"] = url
        if self.accepted.revised_prompt is not None:
            fields["revised_prompt"] = self.accepted.revised_prompt
        return Image(**fields)


async def collected(answer: Answering, worker: Worker[Event], store: FileStore | None, base_url: str) -> ImagesResponse:
    """The whole answer. With ``store`` the pictures go there and the answer has their addresses."""
    images: dict[int, Image] = {}
    async with await worker.submit(answer.request) as job:
        async for each in job:
            answer.observe(each)
            if isinstance(each, Finished):
                name = None if store is None else store.put(each.data, answer.request.format)
                images[each.index] = answer.image(each, None if name is None else f"{base_url}/images/files/{name}")
    fields: dict[str, Any] = {
        "created": int(time.time()),
        "background": "opaque",
        "data": [images[index] for index in sorted(images)],
        "output_format": answer.request.format,
        "size": answer.size,
        "usage": answer.usage(len(images)),
        **answer.scaled_from,
    }
    if answer.quality in ("low", "medium", "high", "xhigh", "max"):
        fields["quality"] = answer.quality
    if answer.safety_identifier:
        fields["safety_identifier"] = answer.safety_identifier
    return ImagesResponse(**fields)


async def streamed(answer: Answering, worker: Worker[Event], prefix: str) -> AsyncGenerator[bytes]:
    """Server-sent events: partial images, then the completed ones. ``prefix``: image_generation or image_edit.

    First comes an empty piece, when the request is accepted: until then a refusal can still be an HTTP status.
    """
    async with await worker.submit(answer.request) as job:
        async for each in job:
            answer.observe(each)
            if isinstance(each, Accepted):
                yield b""
            if isinstance(each, (Preview, Finished)):
                yield _event(answer, each, prefix)


def _event(answer: Answering, each: Preview | Finished, prefix: str) -> bytes:
    kind = f"{prefix}.{'partial_image' if isinstance(each, Preview) else 'completed'}"
    fields: dict[str, object] = {
        "type": kind,
        "b64_json": base64.b64encode(each.data).decode(),
        "created_at": int(time.time()),
        "size": answer.size,
        "quality": answer.quality if answer.quality in ("low", "medium", "high", "xhigh", "max") else "auto",
        "background": "opaque",
        "output_format": answer.request.format,
        **answer.scaled_from,
    }
    if answer.request.n > 1:
        fields["image_index"] = each.index
    if isinstance(each, Preview):
        fields["partial_image_index"] = each.number
    else:
        fields |= {"usage": answer.usage(1).model_dump(exclude_unset=True), "seed": each.seed}
    return event(fields, kind)
