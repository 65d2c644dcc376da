"""Answers that match a grammar by construction: its compilation, and where a sequence is in it.

Inside JSON no control characters are generated, line breaks between its elements included, and at most one space:
small models otherwise spend their tokens on whitespace. Strings need it too: xgrammar lets raw control characters into
strings with a length limit (https://github.com/mlc-ai/xgrammar/issues/800), which is not JSON. It also lets halves of
surrogate pairs in, which are no UTF-8: they would come out as three characters where the grammar counts one.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import msgspec
import numpy as np
import torch
import xgrammar
from quintet_common.errors import CLIENT_CLOSED_REQUEST, ApiError

from quintet_chat.engine.gate import Gate, GatedMatcher, Inner, as_row, make_gate
from quintet_chat.protocol import Grammar

log = logging.getLogger("quintet.chat")

CACHE_BYTES = 64 << 20
KEPT = 256
"""Grammars that are kept for the next request with the same."""

THREADS = 3
"""Compilations at once, so that a slow one holds up nobody. Compiling lets go of Python's lock."""

NICENESS = 5
"""Of these threads: where cores are few the model goes first, and gets about three times as much of them."""

DEADLINE_SECONDS = 20.0
"""A compilation that takes more of a processor's time is refused; it runs on and is kept for the next request."""

QUEUE_SECONDS = 20.0
"""So long a request waits for the compilations of others."""

BUSY_SECONDS = 90.0
"""So long it waits for its own, where others keep the processor busy."""

_LOOK_SECONDS = 0.1
_RETRY_SECONDS = 5

_ANY_OBJECT = {"type": "object", "additionalProperties": True}
_SOURCE = re.compile(r"^\[[\d:]+\] \S+:\d+: ")
_INTERNAL = re.compile(r"ImplPtr|Check failed|recursion|Internal")
_CONTROLS = frozenset(range(0x20))
_SURROGATE = re.compile(rb"\xed[\xa0-\xbf]")
_SURROGATE_LEAD, _SURROGATE_REST = 0xED, frozenset(range(0xA0, 0xC0))
_FAILURES = (RuntimeError, ValueError, TypeError, KeyError, RecursionError)


class Narrowing(NamedTuple):
    """What a grammar leaves allowed that it should not. Rows are bitmasks over the vocabulary."""

    allowed: torch.Tensor
    """The tokens that may be used at all."""
    after_lead: torch.Tensor
    """The tokens that may follow one of ``leads``, lest they make half a surrogate pair of its last byte."""
    leads: frozenset[int]


class Compiled(NamedTuple):
    """A grammar for one tokenizer, and what narrows it further."""

    grammar: xgrammar.CompiledGrammar
    narrowing: Narrowing | None
    gate: Gate | None = None
    """For models that think before the grammar holds."""
    inside: bool = False
    """Whether the answer begins inside the thinking."""

    def matcher(self) -> Inner:
        """A new one, for one sequence."""
        matcher = Matcher(self)
        return GatedMatcher(matcher, self.gate, self.inside) if self.gate else matcher


class _Job:
    """A compilation that somebody waits for. ``has_left`` says that he no longer does."""

    def __init__(self, grammar: Grammar, has_left: Callable[[], bool]) -> None:
        self.grammar = grammar
        self.key = msgspec.msgpack.encode(grammar)
        self._has_left = has_left
        self._arrived = time.monotonic()
        self._began: float | None = None
        self._spent: Callable[[], float] = float
        """Processor time of the compilation in seconds."""

    def begin(self) -> None:
        """On the thread that compiles. Raises what `check` raises."""
        self.check()
        self._spent = _stopwatch()
        self._began = time.monotonic()

    def check(self) -> None:
        """Raise ApiError when there is nothing more to wait for: 499, 503 for want of time, 400 for the grammar."""
        now = time.monotonic()
        if self._has_left():
            raise ApiError(CLIENT_CLOSED_REQUEST, "The client has left.")
        if self._spent() > DEADLINE_SECONDS:
            raise _refused(self.grammar, f"that takes more than {DEADLINE_SECONDS:.0f} seconds")
        waited, limit = now - self._arrived, QUEUE_SECONDS
        if self._began is not None:
            waited, limit = now - self._began, BUSY_SECONDS
        if waited > limit:
            message = "Too many grammars are being compiled. Try again later."
            raise ApiError(503, message, code="grammar_queue_full", retry_after=_RETRY_SECONDS)


class Grammars:
    """Compiles grammars for one tokenizer and keeps those used lately. For any number of threads."""

    def __init__(self, tokenizer: Any, vocabulary: int, stop_ids: frozenset[int]) -> None:
        self._tokenizer = tokenizer
        self._vocabulary = vocabulary
        self._stop_ids = sorted(stop_ids)
        self._compiler: _Compiler | None = None
        self._gates: dict[tuple[str, str], Gate] = {}
        self._kept: OrderedDict[bytes, Compiled] = OrderedDict()
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(THREADS, "compile", initializer=_step_back)

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    def compile(
        self,
        grammar: Grammar,
        thinking: tuple[str, str] | None = None,
        inside: bool = False,
        has_left: Callable[[], bool] = lambda: False,
    ) -> Compiled:
        """Compile for use by any number of matchers; ApiError 400 for what cannot be compiled, or not in time.

        503 when others' compilations leave no room. ``thinking`` are the tags of what comes before the grammar,
        ``inside`` says that the first is in the prompt. Nothing is begun for a client that ``has_left``.
        """
        compiler = self._started()
        job = _Job(grammar, has_left)
        compiled = self._recall(job.key) or self._await(job, self._pool.submit(self._compile, compiler, job))
        if thinking is None:
            return compiled
        with self._lock:
            if thinking not in self._gates:
                self._gates[thinking] = make_gate(compiler.vocabulary, self._stop_ids, thinking)
        return compiled._replace(gate=self._gates[thinking], inside=inside)

    def knows(self, grammar: Grammar) -> bool:
        """Whether it is compiled, and will be for some while."""
        return self._recall(msgspec.msgpack.encode(grammar)) is not None

    def _recall(self, key: bytes) -> Compiled | None:
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
            return self._kept.get(key)

    def _await(self, job: _Job, compiling: Future[Compiled]) -> Compiled:
        while True:
            try:
                return compiling.result(_LOOK_SECONDS)
            except TimeoutError:
                try:
                    job.check()
                except ApiError:
                    compiling.cancel()
                    raise

    def _compile(self, compiler: _Compiler, job: _Job) -> Compiled:
        if (kept := self._recall(job.key)) is not None:  # made while this one waited
            return kept
        job.begin()
        compiled = compiler.compile(job.grammar)
        with self._lock:
            # One that was refused for its time may have run on and be done by now: all share the first.
            compiled = self._kept.setdefault(job.key, compiled)
            if len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        return compiled

    def _started(self) -> _Compiler:
        with self._lock:
            if self._compiler is None:
                info = xgrammar.TokenizerInfo.from_huggingface(
                    self._tokenizer, vocab_size=self._vocabulary, stop_token_ids=self._stop_ids
                )
                self._compiler = _Compiler(info)
            return self._compiler


class _Compiler:
    """xgrammar's, for one tokenizer."""

    def __init__(self, info: xgrammar.TokenizerInfo) -> None:
        self.vocabulary: list[bytes] = info.decoded_vocab
        self._cached = xgrammar.GrammarCompiler(info, max_threads=1, cache_limit_bytes=CACHE_BYTES)
        self._uncached = xgrammar.GrammarCompiler(info, max_threads=1, cache_enabled=False)
        self._in_json = _narrowing(self.vocabulary, _CONTROLS)
        self._around_json = _narrowing(self.vocabulary, _CONTROLS - {0x0A, 0x0D})
        self._in_text = _narrowing(self.vocabulary, frozenset())

    def compile(self, grammar: Grammar) -> Compiled:
        try:
            try:
                compiled = _compile(self._cached, grammar)
            except RuntimeError:
                # xgrammar 0.2.8 cannot cache the rules of some patterns with long repetitions.
                compiled = _compile(self._uncached, grammar)
        except _FAILURES as error:
            # xgrammar begins its errors with a time and a place in its own source.
            reason = _SOURCE.sub("", (str(error).strip() or type(error).__name__).splitlines()[-1])
            if _INTERNAL.search(reason):
                log.info("a grammar cannot be compiled: %s", reason)
                reason = "the compiler cannot handle it"
            raise _refused(grammar, reason) from None
        if grammar.type in ("json_object", "json_schema"):
            return Compiled(compiled, self._in_json)
        return Compiled(compiled, self._narrowing_of(grammar))

    def _narrowing_of(self, grammar: Grammar) -> Narrowing | None:
        """Of a structural tag only parts are JSON, so it is narrowed no more than the bounded strings in it need."""
        if grammar.type != "structural_tag":
            return None
        if _has_bounded_strings(grammar.value):
            return self._around_json
        return self._in_text if _has_regex(grammar.value) else None


def _stopwatch() -> Callable[[], float]:
    """Tells any thread how many seconds of a processor this one has used since; of the clock where nobody knows."""
    if not hasattr(time, "pthread_getcpuclockid"):
        start = time.monotonic()
        return lambda: time.monotonic() - start
    clock, before = time.pthread_getcpuclockid(threading.get_ident()), time.thread_time()
    return lambda: time.clock_gettime(clock) - before


def _step_back() -> None:
    """Let this thread yield to others. On Linux niceness is a thread's own."""
    with contextlib.suppress(OSError):
        thread = threading.get_native_id()
        os.setpriority(os.PRIO_PROCESS, thread, os.getpriority(os.PRIO_PROCESS, thread) + NICENESS)


def _refused(grammar: Grammar, reason: str) -> ApiError:
    param = "tools" if grammar.type == "structural_tag" else "response_format"
    message = f"The answer cannot be constrained to this {grammar.type}: {reason}"
    return ApiError(400, message, param=param, code="invalid_grammar", retry=False)


class Matcher:
    """Where one sequence is in its grammar."""

    def __init__(self, compiled: Compiled) -> None:
        self._matcher = xgrammar.GrammarMatcher(compiled.grammar)
        self._narrowing = compiled.narrowing
        self._after_lead = False

    def fill(self, bitmask: torch.Tensor, row: int) -> None:
        """Write into ``bitmask`` [rows, vocabulary / 32] which tokens may come next."""
        self._matcher.fill_next_token_bitmask(bitmask, row)
        if self._narrowing is not None:
            narrowed = bitmask[row] & self._narrowing.allowed
            if self._after_lead:
                narrowed &= self._narrowing.after_lead
            if narrowed.any():  # else the grammar itself demands a control character
                bitmask[row] = narrowed

    def accept(self, token: int) -> None:
        self._matcher.accept_token(token)
        self._after_lead = self._narrowing is not None and token in self._narrowing.leads

    @property
    def finished(self) -> bool:
        """Whether the answer is complete, its stop token included."""
        return bool(self._matcher.is_terminated())


def _compile(compiler: xgrammar.GrammarCompiler, grammar: Grammar) -> xgrammar.CompiledGrammar:
    value = grammar.value
    if grammar.type == "structural_tag":
        return compiler.compile_structural_tag(json.dumps(_tight(value)))
    if grammar.type == "regex":
        return compiler.compile_regex(value)
    if grammar.type == "ebnf":
        return compiler.compile_grammar(value)
    schema = _ANY_OBJECT if grammar.type == "json_object" else value
    return compiler.compile_json_schema(json.dumps(_open_objects(schema)), max_whitespace_cnt=1)


def _narrowing(vocabulary: list[bytes], banned: frozenset[int]) -> Narrowing:
    """Without tokens that have one of the bytes ``banned``, and without surrogates."""
    allowed = [banned.isdisjoint(token) and not _SURROGATE.search(token) for token in vocabulary]
    harmless = [token[:1] == b"" or token[0] not in _SURROGATE_REST for token in vocabulary]
    leads = frozenset(index for index, token in enumerate(vocabulary) if token[-1:] == bytes([_SURROGATE_LEAD]))
    return Narrowing(as_row(np.array(allowed)), as_row(np.array(harmless)), leads)


def _has_bounded_strings(node: Any) -> bool:
    """Whether there is a JSON schema with such a string in a structural tag."""
    if isinstance(node, dict):
        words = set() if _is_regex(node) else {"minLength", "maxLength", "pattern"} & node.keys()
        return bool(words) or any(map(_has_bounded_strings, node.values()))
    return isinstance(node, list) and any(map(_has_bounded_strings, node))


def _has_regex(node: Any) -> bool:
    if isinstance(node, dict):
        return _is_regex(node) or any(map(_has_regex, node.values()))
    return isinstance(node, list) and any(map(_has_regex, node))


def _is_regex(node: dict[str, Any]) -> bool:
    return node.keys() == {"type", "pattern"} and node["type"] == "regex"


def _tight(node: Any) -> Any:
    """A structural tag whose JSON parts have bounded whitespace and objects that may have members."""
    if isinstance(node, list):
        return [_tight(item) for item in node]
    if not isinstance(node, dict):
        return node
    if node.get("type") == "json_schema" and "json_schema" in node:
        return {"max_whitespace_cnt": 1, **node, "json_schema": _open_objects(node["json_schema"])}
    return {key: _tight(value) for key, value in node.items()}


def _open_objects(schema: Any) -> Any:
    """A schema in which an object without any word on its properties may have any.

    The compiler forbids whatever a schema does not name; for ``{"type": "object"}`` that would leave only ``{}``.
    """
    if isinstance(schema, list):
        return [_open_objects(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    opened = {
        key: value if key in ("enum", "const", "default") else _open_objects(value) for key, value in schema.items()
    }
    silent = (
        not {"properties", "patternProperties", "additionalProperties", "unevaluatedProperties", "$ref"} & schema.keys()
    )
    if schema.get("type") == "object" and silent and not {"allOf", "anyOf", "oneOf"} & schema.keys():
        opened["additionalProperties"] = True
    return opened
