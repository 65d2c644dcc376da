"""CosyVoice v1 from a release's folder: seven voices that speak five languages, and with -Instruct as they are told to.

torch comes with the extra ``quintet-tts[cosyvoice]`` and is imported only where such a model is loaded.
"""

from __future__ import annotations

import secrets
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
import torch
from quintet_common import checkpoint
from quintet_common.devices import pick_device
from quintet_common.engine_args import CosyVoice
from quintet_common.errors import bad_request
from quintet_common.models_yml import ModelSpec
from quintet_common.worker.host import LoadError, Report, settings

from quintet_tts.backends.embedded import OPENAI_VOICES
from quintet_tts.cosyvoice import files, streaming
from quintet_tts.cosyvoice.decoding import Decoder, Script, Utterance
from quintet_tts.cosyvoice.files import Models, Speaker
from quintet_tts.cosyvoice.flow import SAMPLE_RATE
from quintet_tts.cosyvoice.frontend import Frontend
from quintet_tts.cosyvoice.tokenizer import Tokenizer, find_ranks
from quintet_tts.cosyvoice.turns import Turns
from quintet_tts.cosyvoice.wetext import Wetext
from quintet_tts.speech.reshape import Samples
from quintet_tts.speech.scripts import Script as Writing
from quintet_tts.voices import Catalogue, Engine, Voice

SENTENCES = 16
"""That the language model says together, unless the model's ``max_batch`` says otherwise."""

MAX_INSTRUCTIONS = 500
"""Tokens."""

_END_OF_PROMPT = "<endofprompt>"
"""What the Instruct model has learnt to read between instructions and text."""

_READS = frozenset({Writing.LATIN, Writing.HAN, Writing.KANA, Writing.HANGUL})
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_LANGUAGES = {
    "中文": ("Chinese", "zh-CN", Writing.HAN),
    "日语": ("Japanese", "ja-JP", Writing.KANA),
    "粤语": ("Cantonese", "yue-HK", None),
    "英文": ("English", "en-US", Writing.LATIN),
    "韩语": ("Korean", "ko-KR", Writing.HANGUL),
}
_GENDERS: dict[str, Literal["female", "male"]] = {"女": "female", "男": "male"}


def load(spec: ModelSpec, report: Report) -> tuple[Catalogue, dict[str, CosyVoiceBackend]]:
    """Load the release in the folder ``spec.path``. Raises LoadError."""
    folder = Path(spec.path)
    options = settings(spec, CosyVoice)
    config = files.read_config(folder)
    tokenizer = Tokenizer(find_ranks(folder))
    if tokenizer.size != config.lm.text_tokens:
        raise LoadError(
            f"{folder}: the language model reads {config.lm.text_tokens} text tokens, Whisper's vocabulary has "
            f"{tokenizer.size}. The 25 Hz variant, which has another vocabulary, is not supported."
        )
    speakers = _speakers(folder, options, config)
    device = pick_device(spec)
    dtype = default_dtype(device) if spec.dtype == "auto" else _DTYPES[spec.dtype]
    # The vocoder's pitch has to be exact, and its convolutions would be done with ten bits.
    torch.backends.cudnn.allow_tf32 = False
    models = files.load(folder, config, device, dtype, report)
    report(0.9, "warming up")
    kind = InstructBackend if _is_instruct(spec, options) else CosyVoiceBackend
    backend = kind(models, speakers, tokenizer, spec.max_batch or SENTENCES, options.first_chunk)
    return _catalogue(backend.voices()), {Engine.COSYVOICE: backend}


class CosyVoiceBackend:
    """Shared by all threads; the language model's steps serve all sentences that are being said."""

    sample_rate = SAMPLE_RATE
    min_speed = 0.5
    max_speed = 2.0
    joins_up_to = 180

    def __init__(
        self, models: Models, speakers: dict[str, Speaker], tokenizer: Tokenizer, threads: int, first_chunk: int
    ) -> None:
        self.threads = threads
        self._models = models
        self._speakers = speakers
        self._tokenizer = tokenizer
        self._first_chunk = first_chunk
        self._frontend = Frontend(Wetext("zh"), Wetext("en"), lambda text: len(tokenizer.encode(text)))
        self._turns = Turns()
        self._decoder = Decoder(models.lm, self._turns, threads)

    def voices(self) -> list[Voice]:
        return [_voice(name) for name in self._speakers]

    def synthesize(self, text: str, voice: Voice, speed: float, seed: list[int] | None) -> Synthesis:
        return self._synthesis(text, voice, speed, seed)

    def _synthesis(
        self, text: str, voice: Voice, speed: float, seed: list[int] | None, instructions: str | None = None
    ) -> Synthesis:
        speaker = self._speakers[voice.speaker]
        prompt_text = speaker.prompt_text
        colour: torch.Tensor | None = speaker.lm_embedding
        if instructions is not None:
            # The colour of the voice would tell the language model how to speak, against the instructions.
            prompt_text, colour = self._instructions(instructions), None
        seeds = _seeds(seed)
        scripts = []
        for piece in self._frontend.pieces(text):
            ids = torch.tensor([self._tokenizer.encode(piece)])
            speech = None if speaker.prompt is None else speaker.prompt.tokens
            scripts.append((Script(ids, prompt_text, colour, speech), next(seeds), next(seeds)))
        return Synthesis(self, scripts, speaker, speed)

    def _instructions(self, instructions: str) -> torch.Tensor:
        ids = self._tokenizer.encode(self._frontend.normalized(instructions) + _END_OF_PROMPT)
        if len(ids) > MAX_INSTRUCTIONS:
            raise bad_request(
                f"The instructions have {len(ids)} tokens and the limit is {MAX_INSTRUCTIONS}.", "instructions"
            )
        return torch.tensor([ids])

    def say(self, script: Script, seed: int) -> Utterance:
        return self._decoder.say(script, seed)

    def sound(self, utterance: Utterance, speaker: Speaker, speed: float, seed: int) -> Iterator[torch.Tensor]:
        """The sound [N] of an utterance, chunk by chunk; ends soon after ``utterance.stop``."""

        @contextmanager
        def turn() -> Iterator[None]:
            with self._turns.take():
                if utterance.stopped:
                    raise _Stopped
                yield

        sound = streaming.Sound(self._models, speaker, speed, seed)
        try:
            yield from streaming.chunks(utterance, self._first_chunk, sound, turn)
        except _Stopped:
            return


class InstructBackend(CosyVoiceBackend):
    """CosyVoice-300M-Instruct."""

    def instructed(self, text: str, voice: Voice, speed: float, seed: list[int] | None, instructions: str) -> Synthesis:
        return self._synthesis(text, voice, speed, seed, instructions)


class _Stopped(Exception):
    pass


class Synthesis:
    """The sound of a text. ``stop`` ends it within a step, from any thread."""

    def __init__(
        self, backend: CosyVoiceBackend, scripts: list[tuple[Script, int, int]], speaker: Speaker, speed: float
    ) -> None:
        self._stopped = False
        self._utterance: Utterance | None = None
        self._samples = self._speak(backend, scripts, speaker, speed)

    def __iter__(self) -> Iterator[Samples]:
        return self

    def __next__(self) -> Samples:
        return next(self._samples)

    def stop(self) -> None:
        self._stopped = True
        if self._utterance is not None:
            self._utterance.stop()

    def _speak(
        self, backend: CosyVoiceBackend, scripts: list[tuple[Script, int, int]], speaker: Speaker, speed: float
    ) -> Generator[Samples]:
        for script, word_seed, sound_seed in scripts:
            utterance = self._utterance = backend.say(script, word_seed)
            try:
                if self._stopped:  # just before it could be told
                    return
                for samples in backend.sound(utterance, speaker, speed, sound_seed):
                    yield samples.numpy()
            finally:
                utterance.stop()


def _seeds(seed: list[int] | None) -> Iterator[int]:
    """Seeds for everything that is drawn for one text, without end."""
    source = np.random.SeedSequence(secrets.randbits(128) if seed is None else seed)
    while True:
        yield int(source.spawn(1)[0].generate_state(1, np.uint64)[0])


def _is_instruct(spec: ModelSpec, options: CosyVoice) -> bool:
    if options.instruct is not None:
        return options.instruct
    return any("instruct" in name.lower() for name in (Path(spec.path).name, *spec.names))


def _speakers(folder: Path, options: CosyVoice, config: files.Config) -> dict[str, Speaker]:
    file = folder / checkpoint.VOICES if options.voices is None else Path(options.voices).expanduser()
    speakers = files.speakers(file) if file.is_file() else {}
    if not speakers:
        raise LoadError(checkpoint.no_voices(folder, file))
    for name, speaker in speakers.items():
        sizes = speaker.lm_embedding.shape[1], speaker.flow_embedding.shape[1]
        if sizes != (config.lm.speaker_size, config.flow.speaker_size):
            raise LoadError(f"{file}: the voice {name!r} does not fit the model.")
    return speakers


def default_dtype(device: torch.device) -> torch.dtype:
    """Of the language model and the flow. On CUDA that is what CosyVoice itself offers; it is nearer to float32 than
    bfloat16 by a factor of eight."""
    return torch.float16 if device.type == "cuda" else torch.float32


def _voice(name: str) -> Voice:
    """A voice as it is listed; the names of a release tell its language and gender."""
    language, tag, _ = _LANGUAGES.get(name[:2], (None, "mul", None))
    gender = _GENDERS.get(name[2:])
    known = language is not None and gender is not None
    person = {"female": "woman", "male": "man", None: ""}[gender]
    return Voice(
        id=name,
        name=f"{language} {person}" if known else name,
        language=tag,
        gender=gender if known else None,
        engine=Engine.COSYVOICE,
        scripts=_READS,
        speaker=name,
    )


def _catalogue(voices: list[Voice]) -> Catalogue:
    """The release's voices under their names, and OpenAI's names, which speak each sentence with a voice for it."""
    by_id = {voice.id: voice for voice in voices}
    by_script = {}
    for prefix, (_, _, script) in _LANGUAGES.items():
        first = next((name for name in (f"{prefix}女", f"{prefix}男") if name in by_id), None)
        if script is not None and first is not None:
            by_script[script] = first
    default = by_id[by_script.get(Writing.LATIN, voices[0].id)]
    note = "Not OpenAI's voice of this name: each sentence is spoken by the voice for its language."
    alias = msgspec.structs.replace(default, alias_of=default.id, follows_text=True, note=note)
    openai: list[Any] = [
        msgspec.structs.replace(alias, id=name, name=name.capitalize()) for name in OPENAI_VOICES if name not in by_id
    ]
    return Catalogue([*voices, *openai], default.id, by_script)
