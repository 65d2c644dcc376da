"""What ``engine_args`` of models.yml may hold: a table for each engine.

The one place where these keys are written down: the file is checked by it before anything starts, and the engines read
their settings through it.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, TypeVar, get_args, get_type_hints

import msgspec

from quintet_common import wording
from quintet_common.sizes import parse_bytes

if TYPE_CHECKING:
    from quintet_common.entries import ModelSpec

ToolFamily = Literal[
    "none", "hermes", "glm4", "llama3", "mistral", "mistral_args", "deepseek", "deepseek_v31", "harmony",
    "qwen3_coder", "seed_oss", "glm45", "glm47", "minimax_m2",
]  # fmt: skip
Thinking = Literal[
    "none", "think", "mistral", "harmony", "hunyuan", "granite", "granite_3_2", "seed_oss", "kimi", "apertus", "gemma4",
    "cohere", "exaone_deep",
]  # fmt: skip
Quantization = Literal["int8", "int4"]
Placement = Literal["auto", "full", "int8", "offload", "layers"]

OFF = ("off", "false", "0")
"""What switches ``prefix_cache`` off, in small letters; YAML reads ``off`` as false."""

FIRST_CHUNK, LONGEST_CHUNK = 40, 100
"""Speech tokens of CosyVoice's first chunk, 0.8 s, and of a later one: its own 100 would be heard that much later."""

_SIZE = re.compile(r"[1-9]\d*x[1-9]\d*")
_AtLeast1 = Annotated[int, msgspec.Meta(ge=1)]
_Positive = Annotated[float, msgspec.Meta(gt=0)]


class Table(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """The settings of an engine. Of None, the engine has a default of its own."""

    amounts: ClassVar[tuple[str, ...]] = ()
    """Keys whose values are amounts of memory."""

    def wrong(self) -> tuple[str, str] | None:
        """A key whose value is of the right type and cannot be used all the same, and why."""
        for name in self.amounts:
            try:
                parse_bytes("1" if getattr(self, name) is None else getattr(self, name))
            except ValueError as error:
                return name, str(error)
        return None


class Transformers(Table, frozen=True):
    """Of language models. ``prefill_chunk`` is in tokens."""

    amounts: ClassVar[tuple[str, ...]] = ("kv_memory",)

    kv_memory: str | int | None = None
    prefix_cache: str | int | bool | None = None
    prefill_chunk: _AtLeast1 | None = None
    quantization: Quantization | None = None
    trust_remote_code: bool = False
    pickled_weights: bool = False
    tool_family: ToolFamily | None = None
    thinking: Thinking | None = None

    def wrong(self) -> tuple[str, str] | None:
        given = self.prefix_cache
        if given is not None and str(given).lower() not in OFF:
            try:
                parse_bytes(given)
            except ValueError as error:
                return "prefix_cache", f"{str(error).rstrip('.')}, or off."
        return super().wrong()


class Vllm(Table, forbid_unknown_fields=False, frozen=True):
    """Those that are not flags of vLLM; any other key is one."""

    url: str | None = None
    key: str | None = None
    env: dict[str, str | int | float | bool] | None = None
    pickled_weights: bool = False
    tool_family: ToolFamily | None = None
    thinking: Thinking | None = None

    def wrong(self) -> tuple[str, str] | None:
        if self.url is not None and not self.url.startswith(("http://", "https://")):
            return "url", f"{self.url!r} is not an address like http://host:8000."
        return super().wrong()


class Drawing(Table, frozen=True):
    """Of every image model: the defaults and limits of a request. ``size`` is like ``1024x1024``."""

    size: str | None = None
    steps: _AtLeast1 | None = None
    guidance_scale: Annotated[float, msgspec.Meta(ge=0)] | None = None
    strength: _Positive | None = None
    max_steps: _AtLeast1 | None = None
    max_pixels: _AtLeast1 | None = None

    def wrong(self) -> tuple[str, str] | None:
        if self.size is not None and not _SIZE.fullmatch(self.size):
            return "size", f"{self.size!r} is no size; write it like 1024x1024."
        return super().wrong()


class Diffusers(Drawing, frozen=True):
    """``loras`` is a folder."""

    amounts: ClassVar[tuple[str, ...]] = ("prompt_cache",)

    placement: Placement = "auto"
    loras: str | None = None
    prompt_cache: str | int = "256MB"
    vae_tiling: bool | Literal["auto"] = "auto"
    pickled_weights: bool = False


class SentenceTransformers(Table, frozen=True):
    """``batch_tokens`` are the padded tokens of a batch; ``revision`` is a branch, tag or commit of a hub id."""

    batch_tokens: _AtLeast1 | None = None
    trust_remote_code: bool = False
    revision: str | None = None


class CosyVoice(Table, frozen=True):
    """``voices`` is a ``spk2info.pt`` for a folder without; ``instruct`` says whether this is CosyVoice-300M-Instruct,
    None: if the name of its folder, or of the model, says so. ``first_chunk`` is in speech tokens, fifty a second: of
    fewer, the voice is heard earlier, and sounds less sure."""

    voices: str | None = None
    instruct: bool | None = None
    first_chunk: Annotated[int, msgspec.Meta(ge=30, le=LONGEST_CHUNK)] = FIRST_CHUNK


class Nothing(Table, frozen=True):
    """Of engines without settings."""


TableT = TypeVar("TableT", bound=Table)
_LANGUAGE = (Transformers, Vllm)
_BEYOND = 0.9
"""How like one of ours a key must be to be a slip of the pen where any key may be right."""


def tables_for(spec: ModelSpec, *, on_vllm: bool | None) -> tuple[type[Table], ...]:
    """The tables of the engines that may come to run ``spec``: one, where that is known.

    ``on_vllm`` says whether vLLM will run a language model; None where that will be seen when it has been fetched.
    """
    if spec.kind in ("chat", "multimodal"):
        if spec.embedded == "ppocr":
            return (Nothing,)
        return _LANGUAGE if on_vllm is None else (Vllm,) if on_vllm else (Transformers,)
    if spec.kind == "image":
        return (Drawing if spec.embedded else Diffusers,)
    if spec.kind == "tts":
        return (CosyVoice if spec.embedded is None and spec.engine in ("auto", "cosyvoice") else Nothing,)
    return (SentenceTransformers,)


def mistakes(args: dict[str, Any], *tables: type[Table]) -> list[tuple[str, str]]:
    """Each key of ``args`` that cannot be right in any of ``tables``, and why."""
    found = []
    for key, value in args.items():
        each = [_mistake({key: value}, table) for table in tables]
        if each[0] is not None and None not in each:
            found.append(each[0])
    return found


def read(spec: ModelSpec, table: type[TableT]) -> TableT:
    """The settings of ``spec``. Raises ValueError with a line for a person."""
    if wrong := _mistake(spec.engine_args, table):
        raise ValueError(f"{spec.id}: engine_args: {wrong[0]}: {wrong[1]}")
    return msgspec.convert(spec.engine_args, table)


def _mistake(args: dict[str, Any], table: type[Table]) -> tuple[str, str] | None:
    if table is Vllm and (foreign := _not_for_vllm(args)):
        return foreign
    try:
        return msgspec.convert(args, table).wrong()
    except msgspec.ValidationError as error:
        complaint = wording.read(str(error))
    if complaint.unknown is not None:
        return complaint.unknown, f"unknown key{_instead(complaint.unknown, table)}"
    key = str(complaint.path[0]) if complaint.path else ""
    if complaint.choice is not None:
        choices = _choices(table, key)
        near = wording.meant(complaint.choice, choices)
        return key, f"{complaint.choice!r} is not one of {', '.join(choices)}{near}"
    return key, f"{complaint.text}."


def _instead(key: str, table: type[Table]) -> str:
    """What to do about an unknown ``key``."""
    known = table.__struct_fields__
    if key in Vllm.__struct_fields__ and table is Transformers:
        return "; it belongs to engine: vllm."
    return wording.meant(key, known, end=f"; known: {', '.join(sorted(known))}." if known else "; it takes none.")


def _not_for_vllm(args: dict[str, Any]) -> tuple[str, str] | None:
    """A key that is a setting of our own engine, or all but one of those that vLLM is not given."""
    for key in args:
        if key in ("kv_memory", "prefix_cache", "prefill_chunk"):
            return key, "it belongs to engine: transformers; vLLM has flags of its own for that."
        near = wording.meant(key, Vllm.__struct_fields__, end="", likeness=_BEYOND)
        if near and key not in Vllm.__struct_fields__:
            return key, f"unknown key{near}"
    return None


def _choices(table: type[Table], key: str) -> list[str]:
    """The words that may stand at ``key``."""
    todo, words = [get_type_hints(table)[key]], []
    while todo:
        hint = todo.pop()
        words += [hint] if isinstance(hint, str) else ["true", "false"] if hint is bool else []
        todo += reversed(get_args(hint))
    return words
