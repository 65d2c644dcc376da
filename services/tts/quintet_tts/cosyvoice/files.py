"""A release's folder: which model it is, and its weights, read as tensors and nothing else."""

from __future__ import annotations

import logging
import pickle
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from quintet_common.packing import pack
from quintet_common.worker.host import LoadError, Report
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from quintet_tts.cosyvoice import flow, hift, lm, settings
from quintet_tts.cosyvoice.flow import Flow, FlowConfig, Prompt
from quintet_tts.cosyvoice.hift import Hift, HiftConfig
from quintet_tts.cosyvoice.lm import LMConfig, SpeechLM
from quintet_tts.cosyvoice.settings import CONFIG

log = logging.getLogger("quintet.tts")
ModuleT = TypeVar("ModuleT", bound=nn.Module)


@dataclass(frozen=True)
class Config:
    lm: LMConfig
    flow: FlowConfig
    hift: HiftConfig


@dataclass(frozen=True)
class Models:
    lm: SpeechLM
    flow: Flow
    hift: Hift


@dataclass(frozen=True)
class Speaker:
    """A voice: its colour [1, 192] for the language model and for flow, and a piece of its speech, if there is one."""

    lm_embedding: Tensor
    flow_embedding: Tensor
    prompt: Prompt | None = None
    prompt_text: Tensor | None = None
    """Ids [1, T]."""


def read_config(folder: Path) -> Config:
    """The configuration of a v1 release. Raises LoadError."""
    settings.check_version(folder)
    top = settings.read(folder / CONFIG)
    config = Config(lm.read_config(top), flow.read_config(top), hift.read_config(top))
    rates = {top.integer("sample_rate"), config.hift.sample_rate}
    if rates != {flow.SAMPLE_RATE} or config.hift.frame != flow.HOP:
        raise top.error("sample_rate", f"and hift: only {flow.SAMPLE_RATE} Hz in frames of {flow.HOP} is supported")
    if config.flow.mel != config.hift.mel or config.flow.tokens != config.lm.speech_tokens:
        raise top.error("flow", "does not fit llm and hift: their speech tokens or mel bands differ")
    return config


def load(folder: Path, config: Config, device: torch.device, dtype: torch.dtype, report: Report) -> Models:
    """The three networks on ``device``; the vocoder is float32 always. Raises LoadError."""

    def part(fraction: float, name: str, build: Callable[[], ModuleT], kind: torch.dtype) -> ModuleT:
        report(fraction, f"loading {name}")
        module = _filled(build, weights(folder, name), f"{folder}/{name}").to(device, kind).eval()
        pack(module)
        return module

    return Models(
        lm=part(0.05, "llm", lambda: SpeechLM(config.lm), dtype),
        flow=part(0.6, "flow", lambda: Flow(config.flow), dtype),
        hift=part(0.8, "hift", lambda: Hift(config.hift), torch.float32),
    )


def weights(folder: Path, name: str) -> dict[str, Tensor]:
    """The tensors of ``name``.safetensors or ``name``.pt, of which no code is run. Raises LoadError."""
    file = folder / f"{name}.safetensors"
    if file.is_file():
        try:
            found: dict[str, Tensor] = load_file(file)
            return found
        except (SafetensorError, OSError) as error:
            raise LoadError(f"{file}: not a safetensors file: {error}") from None
    data = _unpickled(folder / f"{name}.pt")
    if not isinstance(data, dict) or not all(isinstance(value, Tensor) for value in data.values()):
        raise LoadError(f"{folder / name}.pt: expected tensors by name.")
    return data


def speakers(file: Path) -> dict[str, Speaker]:
    """The voices of a ``spk2info.pt``: those of a release, and those that CosyVoice has added from recordings."""
    data = _unpickled(file)
    if not isinstance(data, dict):
        raise LoadError(f"{file}: expected voices by name.")
    try:
        return {str(name): _speaker(entry) for name, entry in data.items()}
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise LoadError(f"{file}: a voice has no usable {error}.") from None


def _speaker(entry: dict[str, Any]) -> Speaker:
    if "llm_embedding" not in entry:  # the release's own: only the colour is used, as CosyVoice itself does
        return Speaker(_row(entry["embedding"]), _row(entry["embedding"]))
    prompt = Prompt(entry["flow_prompt_speech_token"].long(), entry["prompt_speech_feat"].float())
    return Speaker(_row(entry["llm_embedding"]), _row(entry["flow_embedding"]), prompt, entry["prompt_text"].long())


def _row(value: Any) -> Tensor:
    return torch.as_tensor(value, dtype=torch.float32).reshape(1, -1)


def _unpickled(file: Path) -> Any:
    if not file.is_file():
        raise LoadError(f"{file} is missing.")
    log.info("%s is a pickle: plain tensors are read of it and nothing else.", file)
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, OSError, EOFError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise LoadError(f"{file}: cannot be read as plain tensors, and nothing else is read: {reason}") from None


def _filled(build: Callable[[], ModuleT], tensors: dict[str, Tensor], where: str) -> ModuleT:
    """The module with exactly these weights; none is made up, none is left over."""
    with torch.device("meta"):
        module = build()
    tensors = _plain(tensors)
    wanted = module.state_dict()
    problems = []
    if missing := sorted(wanted.keys() - tensors.keys()):
        problems.append(f"{len(missing)} weights are missing ({_some(missing)})")
    if unknown := sorted(tensors.keys() - wanted.keys()):
        problems.append(f"{len(unknown)} are unknown ({_some(unknown)})")
    odd = [name for name in wanted.keys() & tensors.keys() if wanted[name].shape != tensors[name].shape]
    if odd:
        shapes = [f"{name} {list(tensors[name].shape)} instead of {list(wanted[name].shape)}" for name in sorted(odd)]
        problems.append(f"{len(odd)} have another shape than {CONFIG} says ({_some(shapes)})")
    if problems:
        raise LoadError(f"{where}: {'; '.join(problems)}.")
    module.load_state_dict(tensors, assign=True)
    return module.requires_grad_(False)


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")


_NORM = re.compile(r"(.*)\.(?:parametrizations\.weight\.original0|weight_g)")


def _plain(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights under the names of this package: norms of blocks have one name, weight norm is multiplied out."""
    tensors = {_renamed(name): tensor for name, tensor in tensors.items()}
    for name in list(tensors):
        match = _NORM.fullmatch(name)
        directions = [f"{match[1]}.{end}" for end in ("parametrizations.weight.original1", "weight_v")] if match else []
        direction = next((each for each in directions if each in tensors), None)
        if match and direction is not None:
            size, v = tensors.pop(name), tensors.pop(direction)
            tensors[f"{match[1]}.weight"] = torch._weight_norm(v, size, 0)
    return tensors


def _renamed(name: str) -> str:
    name = name.removeprefix("generator.")
    return re.sub(r"\.norm([12])\.(weight|bias)$", _norm_name, name) if name.startswith("llm.encoders.") else name


def _norm_name(match: re.Match[str]) -> str:
    return f".norm_{'mha' if match[1] == '1' else 'ff'}.{match[2]}"
