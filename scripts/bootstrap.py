"""Make .venv and install everything that is locked, with nothing prepared but Python. Run by make; safe to run again.

    python3 scripts/bootstrap.py

Packages come from where this machine's pip takes them (its configuration and PIP_* variables hold). torch is the build
for this machine: TORCH_BACKEND=cu130 (or cpu, rocm7.2, ...) chooses another. Needs nothing but the standard library.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

OLDEST = (3, 11)
UV = "uv==0.13.9"
TORCH = "torch==2.13.0"

TOP = Path(__file__).resolve().parent.parent
VENV = TOP / ".venv"
PYTHON = VENV / "bin" / "python"
STAMP = VENV / "installed"
LOCK = TOP / "requirements.lock"


def main() -> None:
    require_python()
    wanted = fingerprint()
    if STAMP.is_file() and STAMP.read_text() == wanted and PYTHON.exists():
        return
    started = time.monotonic()
    say("Installing Quintet into .venv (once; about 2 GB on disk).")
    make_venv()
    run([PYTHON, "-m", "pip", "install", "-qq", "--disable-pip-version-check", UV], "the installer, " + UV)
    install_torch()
    count = sum(1 for line in LOCK.read_text().splitlines() if line[:1].isalnum())
    uv_install("%d packages of requirements.lock" % count, ["--no-deps", "-r", str(LOCK)], pip_sources())
    services = sorted(str(file.parent) for file in TOP.glob("services/*/pyproject.toml"))
    editable = [word for service in services for word in ("-e", service)]
    uv_install("Quintet's own %d packages" % len(services), ["--no-deps", *editable], pip_sources())
    STAMP.write_text(wanted)
    say("Installed in %.0f s." % (time.monotonic() - started))


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def require_python() -> None:
    """Go on with a newer Python of this machine if this one is too old, or end with one line."""
    if sys.version_info >= OLDEST:
        return
    for name in ("python3.13", "python3.12", "python3.11"):
        other = shutil.which(name)
        if other and subprocess.call([other, "-c", "import ensurepip, venv"], stderr=subprocess.DEVNULL) == 0:
            os.execv(other, [other, *sys.argv])
    sys.exit(
        "Quintet needs Python 3.11 or newer; this is %d.%d (%s) and no newer one was found. "
        "Name one with make PYTHON=/path/to/python3.12." % (*sys.version_info[:2], sys.executable)
    )


def fingerprint() -> str:
    """What the installation depends on, as a hash: when it is the one of last time there is nothing to do."""
    digest = hashlib.sha256(repr((sys.version_info[:2], os.environ.get("TORCH_BACKEND"), str(TOP))).encode())
    for file in [Path(__file__), LOCK, *sorted(TOP.glob("services/*/pyproject.toml"))]:
        digest.update(file.read_bytes())
    return digest.hexdigest()


def make_venv() -> None:
    version = "%d.%d" % sys.version_info[:2]
    config = VENV / "pyvenv.cfg"
    # A folder that was moved needs a new one: its commands begin with the old place.
    usable = PYTHON.exists() and config.is_file() and str(VENV) in config.read_text()
    if usable and (VENV / "lib" / ("python" + version)).is_dir():
        return
    made = subprocess.run(
        [sys.executable, "-m", "venv", "--clear", str(VENV)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    if made.returncode != 0:
        why = made.stdout.decode(errors="replace").strip()
        sys.exit("%s\nPython's venv module does not work here; on Debian: apt install python3-venv." % why)


def run(command: Sequence[object], what: str, env: dict[str, str] | None = None) -> None:
    """Run a step, and end with one line if it fails; its own output is above that line."""
    say("  " + what)
    if subprocess.call([str(word) for word in command], env=env) != 0:
        sys.exit("Could not install %s; the reason is above. make tries again from here." % what)


# Where packages come from


def pip_settings() -> dict[str, str]:
    """pip's configuration as ``name: value``: files, then PIP_* variables, which win."""
    listed = subprocess.run([str(PYTHON), "-m", "pip", "config", "list"], stdout=subprocess.PIPE, check=True)
    found: dict[str, str] = {}
    from_variables: dict[str, str] = {}
    for line in listed.stdout.decode(errors="replace").splitlines():
        key, _, value = line.partition("=")
        scope, _, name = key.rpartition(".")
        if scope in ("global", "install", ":env:"):
            (from_variables if scope == ":env:" else found)[name] = value.strip("'\"")
    return {**found, **from_variables}


def pip_sources() -> list[str]:
    """uv's options for the places that pip is set to take packages from; empty where pip has its defaults."""
    settings = pip_settings()
    options: list[str] = []
    for place in settings.get("find-links", "").split():
        options += ["--find-links", place]
    for index in settings.get("extra-index-url", "").split():
        if not index.startswith("file://") or Path(index[len("file://") :]).is_dir():
            options += ["--index", index]
    if "index-url" in settings:
        options += ["--default-index", settings["index-url"]]
    for host in settings.get("trusted-host", "").split():
        options += ["--allow-insecure-host", host]
    # pip takes the best version of all indexes; uv would stop at the first index that knows the name.
    return [*options, "--index-strategy", "unsafe-best-match"] if "--index" in options else options


def uv_command(arguments: list[str]) -> list[str]:
    return [str(VENV / "bin" / "uv"), "pip", "install", "--python", str(PYTHON), *arguments]


def uv_environment() -> dict[str, str]:
    env = dict(os.environ)
    certificates = pip_settings().get("cert")
    if certificates and "SSL_CERT_FILE" not in env:
        env["SSL_CERT_FILE"] = certificates
    return env


def uv_install(what: str, arguments: list[str], sources: list[str]) -> None:
    # Compiled now, or every first start of a service would compile; some machines never keep what Python compiles.
    run(uv_command(["--compile-bytecode", *arguments, *sources]), what, uv_environment())


# torch


def install_torch() -> None:
    """torch in the build for this machine: the first way of those below that works."""
    ways = torch_ways()
    for index, (what, options) in enumerate(ways):
        say("  %s, %s" % (TORCH, what))
        command = uv_command(["--compile-bytecode", TORCH, "--constraints", str(LOCK), *options])
        if subprocess.call(command, env=uv_environment()) == 0:
            return
        if index + 1 < len(ways):
            say("  That did not work; trying another way.")
    sys.exit("Could not install torch; the reason is above. TORCH_BACKEND=cpu (or cu130, ...) chooses its build.")


def torch_ways() -> list[tuple[str, list[str]]]:
    """How to get torch, best first.

    The package indexes' torch for Linux brings 2 GB of CUDA libraries, which a machine without a GPU must not load.
    So it comes first only where pip's own sources offer a build without them.
    """
    chosen = os.environ.get("TORCH_BACKEND") or os.environ.get("UV_TORCH_BACKEND")
    sources = pip_sources()
    if chosen:
        return [("the build for " + chosen, [*sources, "--torch-backend", chosen])]
    of_this_machine = ("the build for this machine", [*sources, "--torch-backend", "auto"])
    light = sources and not brings_cuda(sources)
    of_pip = ("from where pip takes it" + ("" if light else " (with CUDA, 2 GB more)"), sources)
    return [of_pip, of_this_machine] if light else [of_this_machine, of_pip]


def brings_cuda(sources: list[str]) -> bool:
    """Whether torch from ``sources`` would bring CUDA's libraries along; also when that cannot be found out."""
    command = uv_command(["--dry-run", TORCH, "--constraints", str(LOCK), *sources])
    asked = subprocess.run(command, env=uv_environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    return asked.returncode != 0 or b" nvidia-" in asked.stdout


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("\nStopped. make goes on from here.")
