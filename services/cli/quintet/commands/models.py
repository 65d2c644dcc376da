"""``quintet models``: what a running endpoint serves, and the state of each model."""

from __future__ import annotations

import argparse
import sys

import openai

from quintet.client import Card, add_url, cards, connect, explain
from quintet.supervisor.plan import ENDPOINTS
from quintet.terminal.table import columns_of, table

HEADER = ("model", "aliases", "kind", "engine", "endpoint", "state")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_url(parser)


def run(options: argparse.Namespace) -> int:
    """Print the table. 1 when the endpoint does not answer."""
    try:
        found = cards(connect(options.url))
    except openai.OpenAIError as error:
        print(explain(error, options.url), file=sys.stderr)
        return 1
    notes = {index: card.note.removeprefix(f"{card.id}: ") for index, card in enumerate(found) if card.note}
    print("\n".join(table(HEADER, [_row(card) for card in found], columns_of(sys.stdout), notes)))
    return 0


def _row(card: Card) -> tuple[str, ...]:
    state = f"{card.state} {card.progress:.0%}" if card.state == "loading" else card.state
    return (card.id, ", ".join(card.aliases), card.kind, card.engine, ENDPOINTS.get(card.kind, ""), state)
