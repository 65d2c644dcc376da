"""Correctness and speed on the GPU of this machine, with models of full size and random weights.

    python bench/gpu/run.py [--only chat,embed] [--device cuda] [--tiny]

Runs every ``check_*.py`` of this folder, prints their tables, and exits with 1 when one of them failed. Without a GPU
it says so and exits with 0; ``--device cpu --tiny`` shows then that the checks themselves run.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import traceback
from pathlib import Path

import torch
from check import Setup

HERE = Path(__file__).resolve().parent


def run(name: str, setup: Setup) -> bool:
    """Print the tables of one check; whether all passed."""
    passed = True
    try:
        for table in importlib.import_module(f"check_{name}").check(setup):
            print(table, flush=True)
            passed &= not table.failures
    except Exception:
        traceback.print_exc()
        print(f"FAILED: the check {name!r} did not come to its end\n", flush=True)
        passed = False
    setup.free()
    return passed


def main() -> int:
    names = sorted(path.stem.removeprefix("check_") for path in HERE.glob("check_*.py"))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(names), help=f"names of checks, of {','.join(names)}")
    parser.add_argument("--device", default="cuda", help="where to run (default: cuda)")
    parser.add_argument("--tiny", action="store_true", help="tiny models: shows that the checks run")
    options = parser.parse_args()
    wanted = options.only.split(",")
    if unknown := sorted(set(wanted) - set(names)):
        parser.error(f"no check is called {', '.join(unknown)}")
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        print("There is no GPU here that torch can use: nothing was checked.")
        return 0
    setup = Setup(torch.device(options.device), options.tiny)
    print(f"# On {setup.where}, torch {torch.__version__}\n", flush=True)
    passed = [run(name, setup) for name in wanted]
    return 0 if all(passed) else 1


if __name__ == "__main__":
    sys.exit(main())
