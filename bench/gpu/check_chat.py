"""Chat: our engine against transformers' own continuous batching and plain batched ``generate()``.

Correctness in float32, token for token against ``generate()``; speed in the device's usual type, as generated tokens
per second at several numbers of sequences. And both ways of reading keys and values in blocks: gathered, and by
FlashAttention where the trial at load allows it.
"""

from __future__ import annotations

import itertools
import logging
import random
import tempfile
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import transformers
from check import Setup, Table
from quintet_chat.backends import loader
from quintet_chat.engine import flash
from quintet_chat.engine.blocks import BlockCache
from quintet_chat.engine.engine import ChatEngine
from quintet_chat.engine.padded import Graphs
from quintet_chat.engine.paging import BLOCK, Paging
from quintet_chat.engine.runner import Piece, Runner
from quintet_chat.protocol import Delta, Generate, Sampling, TokenLogprob
from quintet_common.errors import ApiError
from quintet_common.models_yml import ModelSpec
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch.nn.attention.varlen import varlen_attn

QWEN2 = {
    "0.5B": {"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14,
             "num_key_value_heads": 2, "vocab_size": 151936, "tie_word_embeddings": True},
    "7B": {"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28,
           "num_key_value_heads": 4, "vocab_size": 152064},
    "tiny": {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
             "num_key_value_heads": 2, "vocab_size": 320},
}  # fmt: skip
PROMPT_TOKENS, NEW_TOKENS = 128, 128


def check(setup: Setup) -> Iterator[Table]:
    """A table of correctness and one of speed for each size of model."""
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    logging.getLogger("ContinuousBatchingLogger").setLevel(logging.ERROR)
    sizes = ["tiny"] if setup.tiny else ["0.5B", "7B"]
    with tempfile.TemporaryDirectory() as folder:
        for size in sizes:
            path = save_model(setup, Path(folder) / size, QWEN2[size])
            if size != "7B":
                yield correctness(setup, size, path)
                setup.free()
            yield speed(setup, size, path)
            setup.free()
            yield readings(setup, size, path)
            setup.free()


def save_model(setup: Setup, path: Path, shape: dict[str, Any]) -> Path:
    """A Qwen2 of that shape with random weights, and a tokenizer of bytes, as a directory."""
    torch.manual_seed(0)
    config = transformers.Qwen2Config(**shape, max_position_embeddings=8192, eos_token_id=0, bos_token_id=0)
    with setup.device:
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(path)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE({"<end>": 0, **{char: i + 1 for i, char in enumerate(alphabet)}}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    transformers.PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<end>").save_pretrained(path)
    return path


def prompts(count: int, vocabulary: int, longest: int = PROMPT_TOKENS) -> list[list[int]]:
    """Random prompts of ``longest`` tokens and less, down to half."""
    chooser = random.Random(count)
    lengths = [longest - i % (longest // 2) for i in range(count)]
    return [[chooser.randrange(1, min(vocabulary, 256)) for _ in range(length)] for length in lengths]


class Ended:
    """Takes the place of the worker's Emit: keeps the token texts of one request and when it ended."""

    def __init__(self) -> None:
        self.texts: list[TokenLogprob] = []
        self.error: ApiError | None = None
        self.event = threading.Event()

    def __call__(self, event: Any) -> None:
        if isinstance(event, Delta):
            self.texts += event.logprobs

    def done(self) -> None:
        self.event.set()

    def fail(self, error: ApiError) -> None:
        self.error = error
        self.event.set()


class Ours:
    """Our engine, in this process, on requests without HTTP."""

    def __init__(self, setup: Setup, path: Path, dtype: torch.dtype, paging: Paging | None = None) -> None:
        name = str(dtype).removeprefix("torch.")
        self._engine = ChatEngine(
            ModelSpec(id="m", kind="chat", path=str(path), dtype=name, device=str(setup.device), max_batch=128)
        )
        with patch.object(loader, "Runner", partial(Runner, paging=paging)):
            self.info = self._engine.load(lambda _fraction, _note: None)
        self._ids = itertools.count(1)

    def __call__(self, inputs: list[list[int]], new: int, logprobs: int | None = None) -> list[Ended]:
        heard = []
        sampling = Sampling(temperature=0.0, max_tokens=new, ignore_eos=True, logprobs=logprobs)
        for prompt in inputs:
            heard.append(Ended())
            self._engine.submit(next(self._ids), Generate(prompt=prompt, sampling=sampling), heard[-1])  # type: ignore[arg-type]
        for each in heard:
            each.event.wait()
            if each.error:
                raise each.error
        return heard

    @property
    def runner(self) -> Runner:
        """For use once the engine is closed: till then its thread has it."""
        return self._engine._scheduler._runner

    def close(self) -> None:
        self._engine.close()


def load(setup: Setup, path: Path, dtype: torch.dtype) -> Any:
    model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=dtype, device_map=setup.device)
    model.generation_config.eos_token_id = None
    return model.eval()


def generate(setup: Setup, model: Any, inputs: list[list[int]], new: int) -> list[list[int]]:
    """Plain batched ``generate()``: greedy, padded on the left, every answer ``new`` tokens long."""
    longest = max(map(len, inputs))
    ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in inputs], device=setup.device)
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in inputs], device=setup.device)
    out = model.generate(ids, attention_mask=mask, max_new_tokens=new, do_sample=False, pad_token_id=0)
    tokens: list[list[int]] = out[:, longest:].tolist()
    return tokens


def correctness(setup: Setup, size: str, path: Path) -> Table:
    """Greedy tokens of prompts of several lengths, one after the other and together, against ``generate()``."""
    table = Table(f"chat: Qwen2-{size}, float32, greedy tokens as generate() has them", ["case", "answers", "equal"])
    torch.backends.cuda.matmul.allow_tf32 = False
    inputs = prompts(12, 256) + [prompt * 3 for prompt in prompts(2, 256)]
    new = 16 if setup.tiny else 64
    model = load(setup, path, torch.float32)
    expected = [generate(setup, model, [prompt], new)[0] for prompt in inputs]
    del model
    setup.free()
    engine = Ours(setup, path, torch.float32)
    text = engine._engine._output._token_text
    wanted = [[text(token)[0] for token in answer] for answer in expected]
    cases = {
        "alone": lambda: [engine([prompt], new, 0)[0] for prompt in inputs],
        "together, prompts seen before": lambda: engine(inputs, new, 0),
        "together, twice over": lambda: engine(inputs + inputs, new, 0),
    }
    for case, answer in cases.items():
        said = [[logprob.token for logprob in ended.texts] for ended in answer()]
        equal = sum(mine == theirs for mine, theirs in zip(said, wanted * 2, strict=False))
        verdict = table.verdict(equal == len(said), f"{case}: {len(said) - equal} of {len(said)} answers differ")
        table.add(case, len(said), f"{equal} {verdict}")
    engine.close()
    return table


def speed(setup: Setup, size: str, path: Path) -> Table:
    """Generated tokens per second, prefill included, best of two rounds after one to warm up."""
    counts = [1, 4] if setup.tiny else [1, 8, 32, 128]
    new = 8 if setup.tiny else NEW_TOKENS
    name = str(setup.dtype).removeprefix("torch.")
    table = Table(
        f"chat: Qwen2-{size}, {name}, generated tokens per second ({PROMPT_TOKENS} tokens in, {new} out)",
        ["sequences", "quintet", "transformers continuous batching", "batched generate()", "quintet / continuous"],
    )
    inputs = {count: prompts(count, 256) for count in counts}
    engine: Any = Ours(setup, path, setup.dtype)
    ours = {n: best(setup, n, new, lambda n=n: engine(inputs[n], new)) for n in counts}  # type: ignore[misc]
    engine.close()
    engine = None
    setup.free()
    model = load(setup, path, setup.dtype)
    plain = {n: best(setup, n, new, lambda n=n: generate(setup, model, inputs[n], new)) for n in counts}  # type: ignore[misc]
    # Its manager is made once, for the first batch; the largest comes first, so that the others fit.
    theirs = {n: best(setup, n, new, lambda n=n: continuous(model, inputs[n], new)) for n in counts[::-1]}  # type: ignore[misc]
    for n in counts:
        ratio = f"{ours[n] / theirs[n]:.2f}" if theirs[n] else "-"
        table.add(n, f"{ours[n]:.0f}", f"{theirs[n]:.0f}" if theirs[n] else "failed", f"{plain[n]:.0f}", ratio)
    return table


def readings(setup: Setup, size: str, path: Path) -> Table:
    """Keys and values in blocks, gathered and read where they lie: what is said, how fast, and what memory it takes.

    Many short sequences, and as many of which one is long: it must cost no more than its own tokens.
    """
    count, long, short, new = (4, 512, 16, 8) if setup.tiny else (32, 4096, PROMPT_TOKENS, NEW_TOKENS)
    name = str(setup.dtype).removeprefix("torch.")
    table = Table(
        f"chat: Qwen2-{size}, {name}, keys and values in blocks, {count} sequences of {short} tokens, {new} out",
        ["asked for", "used", "likeness", "tokens/s", f"tokens/s, one of {long}", "MB held then", "MB of its tokens"],
    )
    for asked, kernel in (("gathered", None), ("by FlashAttention", varlen_attn)):
        record = Graphs(setup.device) if setup.device.type == "cuda" else None
        engine = Ours(setup, path, setup.dtype, Paging(BLOCK, record, kernel))
        few = prompts(count, 256, short)
        mixed = [prompts(1, 256, long)[0], *few[1:]]
        fast = best(setup, count, new, partial(engine, few, new))
        uneven = best(setup, count, new, partial(engine, mixed, new))
        held, per_token = most_held(engine, mixed, new), engine.runner.slots.bytes_per_token / 1e6
        tokens = sum(map(len, mixed)) + count * new
        limit = tokens + 2 * count * BLOCK
        table.verdict(held <= limit, f"{asked}: memory held for {held} tokens, of {tokens} that there were at most")
        megabytes = f"{held * per_token:.1f}", f"{tokens * per_token:.1f}"
        engine.close()
        alike = likeness(engine.runner)
        verdict = table.verdict(alike > engine.runner.least_likeness, f"{asked}: logits with a likeness of {alike:.4f}")
        table.add(asked, engine.runner.reading, f"{alike:.4f} {verdict}", f"{fast:.0f}", f"{uneven:.0f}", *megabytes)
        del engine
        setup.free()
    return table


@torch.inference_mode()
def likeness(runner: Runner) -> float:
    """The least cosine between logits of three sequences in a batch, in pieces and steps, and of the model alone."""
    inputs = [[1 + (7 * row + 3 * i) % 200 for i in range(length)] for row, length in enumerate((700, 250, 9))]
    cuts = [len(each) - 8 - row for row, each in enumerate(inputs)]
    cuts[-1] = 2
    assert runner.slots.reserve([len(each) + 1 for each in inputs])
    runner.prefill(0, [Piece(0, each[:cut]) for each, cut in zip(inputs, cuts, strict=True)])
    ours = [runner.prefill(0, [Piece(cut, each[cut:-4]) for each, cut in zip(inputs, cuts, strict=True)])]
    ours += [
        runner.decode([each[-i] for each in inputs], [len(each) - i for each in inputs]).clone() for i in (4, 3, 2, 1)
    ]
    least = 1.0
    for row, each in enumerate(inputs):
        with flash.plainly(runner.config):
            alone = runner._model(torch.tensor([each], device=runner.device), use_cache=False).logits[0, -5:].float()
        mine = torch.stack([logits[row] for logits in ours])
        least = min(least, float(torch.cosine_similarity(mine - mine.mean(), alone - alone.mean()).min()))
    runner.slots.rest()
    return least


def most_held(engine: Ours, inputs: list[list[int]], new: int) -> int:
    """The most tokens that memory was taken for at any time while ``inputs`` were answered."""
    slots = engine.runner.slots
    assert isinstance(slots, BlockCache)
    run = threading.Thread(target=engine, args=(inputs, new))
    run.start()
    held = 0
    while run.is_alive():
        held = max(held, slots.held)
        time.sleep(0.001)
    return held


def best(setup: Setup, count: int, new: int, do: Any) -> float:
    """Tokens per second of the better of two runs, after one that warms up; 0 when it fails."""
    try:
        do()
        return max(count * new / setup.timed(do)[0] for _ in range(2))
    except Exception as error:  # a peer that fails is a result, not the end of the table
        print(f"{type(error).__name__}: {error}")
        return 0.0


def continuous(model: Any, inputs: list[list[int]], new: int) -> None:
    """transformers' continuous batching, what ``transformers serve --continuous-batching`` runs on."""
    generation = transformers.GenerationConfig(max_new_tokens=new, do_sample=False, eos_token_id=-1, pad_token_id=0)
    limits: dict[str, Any] = {}
    if model.device.type == "cpu":
        limits["continuous_batching_config"] = transformers.ContinuousBatchingConfig(
            num_blocks=64, max_batch_tokens=256
        )
    outputs = model.generate_batch(
        inputs, generation_config=generation, progress_bar=False, persistent_manager=True, **limits
    )
    short = [len(output.generated_tokens) for output in outputs.values() if len(output.generated_tokens) != new]
    if short or len(outputs) != len(inputs):
        raise RuntimeError(f"{len(outputs)} of {len(inputs)} answers, {len(short)} of them of the wrong length")
