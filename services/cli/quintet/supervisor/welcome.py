"""What is printed when everything is up: the table of models, the address, and something to try."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from quintet.supervisor.plan import ENDPOINTS, UNUSABLE, UPSTREAM
from quintet.supervisor.states import ModelState, UpstreamState
from quintet.terminal.table import table

HEADER = ("model", "kind", "engine", "endpoint", "state")


def lines(
    url: str,
    states: Sequence[ModelState],
    ports: Mapping[str, int],
    logs: Path | None,
    locked: bool,
    columns: int | None,
    upstreams: Sequence[UpstreamState] = (),
) -> list[str]:
    """The lines. ``ports`` are those of the services, by name; each has ``/health`` and ``/metrics`` there. ``locked``:
    the router asks for a key. ``columns`` are those of the terminal, if it is one. ``upstreams`` are other servers."""
    rows = [(s.id, s.kind, s.engine, f"POST {ENDPOINTS.get(s.kind, '')}", s.state) for s in states]
    notes = {index: s.reason for index, s in enumerate(states) if s.state == "failed" and s.note}
    for each in upstreams:
        count = len(each.models)
        state = UNUSABLE if each.trouble else f"up, {count} {'model' if count == 1 else 'models'}"
        notes |= {len(rows): each.trouble} if each.trouble else {}
        rows.append((each.upstream, UPSTREAM, "", "", state))
    places = [f"docs {url}/docs", f"metrics {url}/metrics"] + ([f"logs {logs}"] if logs else [])
    return [
        "",
        *table(HEADER, rows, columns, notes),
        "",
        f"Quintet is up: {url}/v1    Ctrl-C stops it.",
        "   ".join(places),
        "services " + "  ".join(f"{name} :{port}" for name, port in ports.items()),
        *_try(url, states, locked),
    ]


def _try(url: str, states: Sequence[ModelState], locked: bool) -> list[str]:
    """One curl and one Python line for the first chat model that answers."""
    model = next((state.id for state in states if state.kind == "chat" and state.state == "ready"), None)
    if model is None:
        return []
    body = f'{{"model": "{model}", "messages": [{{"role": "user", "content": "Hello!"}}]}}'
    ask = f"chat.completions.create(model='{model}', messages=[{{'role': 'user', 'content': 'Hello!'}}])"
    header = " -H 'authorization: Bearer YOUR_KEY'" if locked else ""
    client = f"OpenAI(base_url='{url}/v1', api_key='{'YOUR_KEY' if locked else 'none'}')"
    code = f"from openai import OpenAI; print({client}.{ask}.choices[0].message.content)"
    return [
        "",
        "Try it:",
        f"  curl {url}/v1/chat/completions -H 'content-type: application/json'{header} -d '{body}'",
        f'  {_python()} -c "{code}"',
    ]


def _python() -> str:
    """The interpreter that has the OpenAI SDK, as short as the current folder allows."""
    executable = Path(sys.executable)
    return str(executable.relative_to(Path.cwd())) if executable.is_relative_to(Path.cwd()) else os.fspath(executable)
