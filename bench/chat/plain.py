"""Plain batched ``generate()``, without a server: reads lines ``clients tokens seed`` and answers each with figures.

    python plain.py MODEL

Answers ``tokens seconds cpu-seconds``. All prompts are there from the beginning, which no server can hope for.
"""

from __future__ import annotations

import sys
import time

import torch
import transformers
from load import questions


def main() -> None:
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    path = sys.argv[1]
    model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16).eval()
    model.generation_config.eos_token_id = None
    tokenizer = transformers.AutoTokenizer.from_pretrained(path, padding_side="left")
    print("ready", flush=True)
    for line in sys.stdin:
        clients, tokens, seed = map(int, line.split())
        wall, cpu = time.perf_counter(), time.process_time()
        chats = [[{"role": "user", "content": text}] for text in questions(clients, seed)]
        inputs = tokenizer.apply_chat_template(
            chats, add_generation_prompt=True, return_dict=True, return_tensors="pt", padding=True
        )
        model.generate(**inputs, max_new_tokens=tokens, do_sample=False, pad_token_id=0)
        print(clients * tokens, time.perf_counter() - wall, time.process_time() - cpu, flush=True)


if __name__ == "__main__":
    main()
