"""``quintet models``: what a running endpoint serves, and the state of each model."""

from __future__ import annotations

import argparse
import sys

import openai

from quintet.client import Card, ClientError, add_url, cards, connect, explain, troubles
from quintet.supervisor.plan import ENDPOINTS, UNUSABLE, UPSTREAM
from quintet.terminal.table import columns_of, table

HEADER = ("model", "aliases", "kind", "engine", "endpoint", "state")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_url(parser)


def run(options: argparse.Namespace) -> int:
    """Print the table: models, and upstreams that cannot be used. 1 when the endpoint does not answer."""
    try:
        client = connect(options.url)
        found, unusable = cards(client), troubles(client)
    except openai.OpenAIError as error:
        print(explain(error, options.url), file=sys.stderr)
        return 1
    except ClientError as error:
        print(error, file=sys.stderr)
        return 1
    notes = {index: card.note.removeprefix(f"{card.id}: ") for index, card in enumerate(found) if card.note}
    notes |= dict(enumerate(unusable.values(), len(found)))
    rows = [*(_row(card) for card in found), *((label, "", UPSTREAM, "", "", UNUSABLE) for label in unusable)]
    print("\n".join(table(HEADER, rows, columns_of(sys.stdout), notes)))
    return 0


def _row(card: Card) -> tuple[str, ...]:
    state = f"{card.state} {card.progress:.0%}" if card.state == "loading" else card.state
    return (card.id, ", ".join(card.aliases), card.kind, card.engine, ENDPOINTS.get(card.kind, ""), state)
