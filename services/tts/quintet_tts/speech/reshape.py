"""Brings what an engine speaks to the service's sample rate and pace, by FFmpeg's ``aresample`` and ``atempo``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from fractions import Fraction

import av
import av.filter
import numpy as np
from numpy.typing import NDArray

SAMPLE_RATE = 24000
"""Hz, of everything the service sends: what OpenAI's pcm format is."""

MIN_TEMPO, MAX_TEMPO = 0.5, 2.0
"""What one ``atempo`` does well; engines take the rest of 0.25 to 4 themselves."""

Samples = NDArray[np.float32]


def reshape(chunks: Iterable[Samples], rate: int, tempo: float) -> Iterator[Samples]:
    """Mono float32 ``chunks`` at ``rate`` Hz, as SAMPLE_RATE Hz and ``tempo`` times as fast at the same pitch."""
    if rate == SAMPLE_RATE and abs(tempo - 1) < 1e-3:
        yield from chunks
        return
    graph, source, sink = _graph(rate, tempo)
    position = 0
    for chunk in chunks:
        if chunk.size:
            source.push(_frame(chunk, rate, position))
            position += chunk.size
            yield from _pull(sink)
    if position:
        source.push(None)
        yield from _pull(sink)
    del graph  # its filters do not keep it alive


def _graph(rate: int, tempo: float) -> tuple[av.filter.Graph, av.filter.FilterContext, av.filter.FilterContext]:
    graph = av.filter.Graph()
    source = graph.add_abuffer(sample_rate=rate, format="flt", layout="mono", time_base=Fraction(1, rate))
    filters = [source]
    if abs(tempo - 1) >= 1e-3:
        filters.append(graph.add("atempo", f"{tempo:.4f}"))
    filters.append(graph.add("aresample", str(SAMPLE_RATE)))
    filters.append(graph.add("aformat", f"sample_fmts=flt:sample_rates={SAMPLE_RATE}:channel_layouts=mono"))
    sink = graph.add("abuffersink")
    filters.append(sink)
    graph.link_nodes(*filters).configure()
    return graph, source, sink


def _frame(chunk: Samples, rate: int, position: int) -> av.AudioFrame:
    frame = av.AudioFrame.from_ndarray(chunk.reshape(1, -1), format="flt", layout="mono")
    frame.sample_rate = rate
    frame.time_base = Fraction(1, rate)
    frame.pts = position
    return frame


def _pull(sink: av.filter.FilterContext) -> Iterator[Samples]:
    while True:
        try:
            frame = sink.pull()
        except (BlockingIOError, EOFError):
            return
        yield frame.to_ndarray().reshape(-1)
