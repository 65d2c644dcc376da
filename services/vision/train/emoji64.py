"""Train emoji-64, on from the weights in the package or anew. Prints the loss, writes sheets of samples.

    python services/vision/train/emoji64.py --minutes 60 --out build/emoji64 [--resume DIR | --new] [--threads 2]
    python services/vision/train/emoji64.py --minutes 0 --out build/emoji64      # only measure and draw a sheet

Writes OUT/transformer (as save_pretrained does), OUT/sheet_*.png and prints nearest-neighbour accuracy: the share of
emoji whose picture, drawn from the caption "a NAME", is nearest to the emoji itself among all of them, in pixels.
"""

from __future__ import annotations

import argparse
import copy
import random
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from emoji_data import LATER, Emoji, captions, emoji
from PIL import Image
from quintet_vision.backends.emoji64 import FOLDER, load_pipeline
from quintet_vision.emoji64.pipeline import Emoji64Pipeline
from quintet_vision.emoji64.transformer import Emoji64Transformer
from torch import Tensor

BATCH = 64
CAPTIONS = 24
EMA = 0.999
DROP_TEXT = 0.1
SHEET = [
    "red apple",
    "a cat",
    "a dog",
    "sun",
    "banana",
    "strawberry",
    "rainbow",
    "rocket",
    "snowman",
    "umbrella",
    "a slice of pizza",
    "crescent moon",
    "a green frog",
    "an orange cat",
    "birthday cake",
    "hot beverage",
    "panda",
    "lemon",
    "tiger",
    "a car",
    "house with a garden",
    "a tree",
    "sunflower",
    "a smiling face with sunglasses",
    "a blue heart",
    "snow on a mountain",
    "a sad face",
    "fire",
    "guitar",
    "ship",
    "a red heart",
    "a cup of coffee",
    "a purple grape",
    "an elephant",
    "a blue butterfly",
    "a golden star",
    "a robot",
    "a pink pig",
    "ocean wave",
    "a burger with fries",
]


@dataclass
class Data:
    pictures: Tensor
    """(emoji, 3, 64, 64), -1 to 1"""
    states: Tensor
    """(emoji, captions, tokens, width), half precision to keep memory small"""
    nothing: Tensor
    """States of the empty caption, for classifier-free guidance."""
    weights: Tensor
    """How often each emoji is drawn."""


def prepare(pipe: Emoji64Pipeline, every: list[Emoji], rng: random.Random) -> Data:
    pictures = torch.stack([torch.tensor(one.picture) for one in every]).permute(0, 3, 1, 2) / 127.5 - 1
    states = torch.stack([pipe.encode_prompt(captions(one, every, CAPTIONS, rng)).half() for one in every])
    weights = torch.tensor([2.0 if one.char in LATER else 1.0 for one in every])
    return Data(pictures, states, pipe.encode_prompt([""]), weights)


def loss_of(model: Emoji64Transformer, data: Data) -> tuple[Tensor, float]:
    """The velocity's squared error, from the predicted picture; also that of the picture, for the log."""
    which = torch.multinomial(data.weights, BATCH, replacement=True)
    picture = data.pictures[which]
    states = data.states[which, torch.randint(0, data.states.shape[1], (BATCH,))].float()
    states[torch.rand(BATCH) < DROP_TEXT] = data.nothing
    noise = torch.randn_like(picture)
    moment = torch.sigmoid(torch.randn(BATCH) - 0.4)  # more of the middle of the path, where pictures are decided
    at = moment[:, None, None, None]
    with torch.autocast("cpu", torch.bfloat16):
        predicted = model(at * picture + (1 - at) * noise, moment, states)
    error = predicted.float() - picture
    return (error / (1 - at).clamp(min=0.1)).square().clamp(max=400).mean(), error.square().mean().item()


def train(model: Emoji64Transformer, data: Data, seconds: float, peak: float, tell: object) -> Emoji64Transformer:
    """Train for ``seconds`` of every thread's time and return the moving average of the weights."""
    average = copy.deepcopy(model).requires_grad_(False)
    optimizer = torch.optim.AdamW(model.parameters(), peak, betas=(0.9, 0.95), weight_decay=0)
    started, step, error = _seconds(), 0, 0.0
    while (done := (_seconds() - started) / max(seconds, 1e-9)) < 1:
        for group in optimizer.param_groups:
            group["lr"] = peak * min(1, (step + 1) / 100) * min(1, (1 - done) * 1.6) + 1e-6
        loss, picture_error = loss_of(model, data)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        step, error = step + 1, error + picture_error
        torch._foreach_lerp_(
            list(average.parameters()), list(model.parameters()), 1 - min(EMA, (1 + step) / (10 + step))
        )
        if step % 100 == 0:
            rate = step * BATCH / (_seconds() - started)
            print(f"step {step}  {done:.0%}  picture error {error / 100:.4f}  {rate:.0f} pictures/s", flush=True)
            error = 0.0
        if callable(tell) and step % 1000 == 0:
            tell(average, step)
    return average


def _seconds() -> float:
    """Processor time per thread: what a run does with its minutes is the same on a busy machine."""
    return time.process_time() / torch.get_num_threads()


def drawn(pipe: Emoji64Pipeline, prompts: list[str], steps: int) -> Tensor:
    """Pictures of all prompts, seed 0 each, (prompts, 3, 64, 64) in 0 to 1."""
    parts = []
    for start in range(0, len(prompts), 32):
        some = prompts[start : start + 32]
        generators = [torch.Generator().manual_seed(0) for _ in some]
        with torch.autocast("cpu", torch.bfloat16):
            parts.append(pipe(some, generator=generators, num_inference_steps=steps, output_type="pt").images.float())
    return torch.cat(parts)


def accuracy(pipe: Emoji64Pipeline, every: list[Emoji], data: Data) -> float:
    made = drawn(pipe, [f"a {one.names[0]}" for one in every], 12) * 2 - 1
    nearest = torch.cdist(made.flatten(1), data.pictures.flatten(1)).argmin(1)
    return (nearest == torch.arange(len(every))).float().mean().item()


def sheet(pipe: Emoji64Pipeline, path: Path, columns: int = 10, scale: int = 2) -> None:
    pictures = pipe.numpy_to_pil(drawn(pipe, SHEET, 16).permute(0, 2, 3, 1).numpy())
    rows = -(-len(pictures) // columns)
    page = Image.new("RGB", (columns * 64, rows * 64), "white")
    for index, picture in enumerate(pictures):
        page.paste(picture, (index % columns * 64, index // columns * 64))
    page.resize((page.width * scale, page.height * scale), Image.Resampling.NEAREST).save(path)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--minutes", type=float, default=60, help="processor time of each thread")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--resume", type=Path, default=FOLDER / "transformer", help="go on from these weights")
    parser.add_argument("--new", action="store_true", help="start from random weights")
    parser.add_argument("--rate", type=float, help="peak learning rate (default: 4e-4, 1e-3 with --new)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def main() -> None:
    options = arguments()
    options.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    every, pipe = emoji(), load_pipeline()
    pipe.set_progress_bar_config(disable=True)
    data = prepare(pipe, every, random.Random(options.seed))
    model = Emoji64Transformer()
    if not options.new:  # into a fresh one, whose saved config names no folder that it came from
        model.load_state_dict(Emoji64Transformer.from_pretrained(options.resume).float().state_dict())
    print(f"{len(every)} emoji, {data.states.shape[1]} captions each", flush=True)

    def judge(weights: Emoji64Transformer, tag: str) -> None:
        pipe.transformer = weights.eval()
        print(f"{tag}: nearest-neighbour accuracy {accuracy(pipe, every, data):.1%}", flush=True)
        sheet(pipe, options.out / f"sheet_{tag}.png")
        copy.deepcopy(weights).half().save_pretrained(options.out / "transformer")

    if options.minutes == 0:
        judge(model, "start")
    else:
        average = train(
            model,
            data,
            options.minutes * 60,
            options.rate or (1e-3 if options.new else 4e-4),
            lambda w, s: judge(w, f"{s:06}"),
        )
        judge(average, "end")


if __name__ == "__main__":
    main()
