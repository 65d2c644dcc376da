"""What is counted of speech beside what every service counts."""

from __future__ import annotations

from prometheus_client import Counter, Histogram
from quintet_common.metrics import QUEUE, registry

from quintet_tts.protocol import Audio, Started

SERVICE = "tts"
_LABELS = ["service", "model"]

AUDIO_SECONDS = Counter("quintet_audio_seconds", "Seconds of sound made", _LABELS, registry=registry)
CHARACTERS = Counter("quintet_characters", "Characters of text spoken", _LABELS, registry=registry)
REAL_TIME_FACTOR = Histogram(
    "quintet_real_time_factor",
    "Seconds of work, encoding included, for one second of sound",
    _LABELS,
    buckets=(0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5),
    registry=registry,
)


class SpeechMeter:
    """Counts one request as it is spoken, so that one left half-way counts for what it took."""

    def __init__(self, model: str) -> None:
        self._labels = (SERVICE, model)
        self.engines = ""
        self.seconds = 0.0
        self.characters = 0
        self._busy = 0.0

    def started(self, event: Started) -> None:
        self.engines = ", ".join(event.engines)
        QUEUE.labels(*self._labels).observe(event.queue_seconds)

    def spoke(self, audio: Audio) -> None:
        self.seconds += audio.seconds
        self.characters += audio.characters
        self._busy += audio.busy_seconds
        AUDIO_SECONDS.labels(*self._labels).inc(audio.seconds)
        CHARACTERS.labels(*self._labels).inc(audio.characters)

    def ended(self) -> None:
        if self.seconds:
            REAL_TIME_FACTOR.labels(*self._labels).observe(self._busy / self.seconds)
