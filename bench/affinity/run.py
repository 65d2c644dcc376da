"""What prefix affinity is worth: recorded conversations over simulated replicas, with the router's own code choosing.

    python bench/affinity/run.py [--conversations N] [--cache TOKENS] [--write]

Each replica has a cache for ``--cache`` tokens of keys and values, and forgets what was not used for longest. Prompt
tokens that are in it cost no reading. A row says how many of all prompt tokens were, how much more the busiest replica
had to compute than the mean, and the most requests at one replica beside the mean of all.
"""

from __future__ import annotations

import argparse
import heapq
import random
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from conversations import BYTES_PER_TOKEN, Recording, Turn
from quintet_common.models_yml import Balance, UpstreamSpec
from quintet_router.affinity import CHUNK, Conversation, conversation_in
from quintet_router.balance import Balancer
from quintet_router.body import json_body
from quintet_router.catalog import Target
from quintet_router.settings import Settings
from quintet_router.upstream.upstream import Upstream

REPLICAS = (2, 8, 64)
POLICIES: tuple[tuple[str, Balance], ...] = (
    ("least outstanding", "least"),
    ("session header", "session"),
    ("prefix", "prefix"),
)
DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "benchmarks.md"
BEGIN, END = "<!-- affinity: begin -->", "<!-- affinity: end -->"
TEXT = """\
`make bench-affinity`: recorded conversations of a help desk, a chat and an agent ({conversations} for each replica, to
40 replicas) go through the router's own balancer to simulated replicas. Each has a cache for the keys and values of
{cache} tokens and forgets what was not used for longest. What every policy could reach at most is the share that one
endless cache would reuse.

{table}

*Prefix* needs nothing from the client; *session header* needs an id that the client sends with every request of a
conversation. Both keep a replica within 1.25 times the mean of outstanding requests, and one."""
STARTS_PER_REPLICA = 0.1
"""Conversations that begin, per second and replica."""
READ_SECONDS = 1 / 5000
WRITE_SECONDS = 1 / 50
"""Per token, of a replica with nothing else to do."""


@dataclass
class Replica:
    target: Target
    capacity: int
    """In chunks."""
    held: OrderedDict[int, None] = field(default_factory=OrderedDict)
    computed: float = 0.0

    def read(self, chunks: list[int]) -> int:
        """How many chunks from the beginning are in the cache; then all of them are."""
        known = next((depth for depth, chunk in enumerate(chunks) if chunk not in self.held), len(chunks))
        for chunk in reversed(chunks):  # what comes first is needed by more, and forgotten last
            self.held[chunk] = None
            self.held.move_to_end(chunk)
        while len(self.held) > self.capacity:
            self.held.popitem(last=False)
        return known


@dataclass
class Result:
    reused: float
    busiest: float
    longest: float


def simulate(talks: list[list[tuple[Turn, list[int]]]], count: int, policy: Balance, capacity: int) -> Result:
    """Run the conversations, each turn after the answer to the one before it."""
    random.seed(7)
    rng = random.Random(7)
    balancer = Balancer(Settings(balance=policy))
    replicas = {}
    for slot in range(count):
        upstream = Upstream(UpstreamSpec(url=f"http://replica-{slot}:80"), Settings())
        upstream.slot = slot
        replicas[upstream] = Replica(Target(upstream, None, "ready"), capacity)
    targets = [replica.target for replica in replicas.values()]
    events: list[tuple[float, int, Upstream | None, int, int]] = []
    clock, reused, asked, crowds = 0.0, 0, 0, []
    for number in range(len(talks)):
        clock += rng.expovariate(STARTS_PER_REPLICA * count)
        events.append((clock, len(events), None, number, 0))
    serial = len(events)
    while events:
        now, _, done, number, turn = heapq.heappop(events)
        serial += 1
        if done is not None:
            done.outstanding -= 1
            if turn + 1 < len(talks[number]):
                heapq.heappush(events, (now + talks[number][turn + 1][0].pause, serial, None, number, turn + 1))
            continue
        request, chunks = talks[number][turn]
        session = b"%d" % number if policy == "session" else None
        hint = balancer.hint(targets, session, json_body(request.body, True))
        chosen = balancer.choose(targets, [], now, hint)
        assert chosen is not None
        replica = replicas[chosen.upstream]
        known = replica.read(chunks)
        reused, asked = reused + known, asked + len(chunks)
        reading = (len(chunks) - known) * CHUNK / BYTES_PER_TOKEN * READ_SECONDS
        replica.computed += reading + request.answer_tokens * WRITE_SECONDS / 10  # answers are written in batches
        chosen.upstream.outstanding += 1
        seconds = reading + request.answer_tokens * WRITE_SECONDS
        heapq.heappush(events, (now + seconds, serial, chosen.upstream, number, turn))
        mean = sum(upstream.outstanding for upstream in replicas) / count
        if mean >= 1:
            crowds.append(max(upstream.outstanding for upstream in replicas) / mean)
    work = [replica.computed for replica in replicas.values()]
    return Result(reused / asked, max(work) * count / sum(work), sum(crowds) / max(1, len(crowds)))


def conversation_of(turn: Turn) -> Conversation | None:
    return conversation_in(json_body(turn.body, True).talk)


def rows(conversations: int, cache: int) -> Iterator[str]:
    """The table in Markdown."""
    yield "| replicas | requests | balance | prompt tokens reused | most work / mean | most requests / mean |"
    yield "|---|---|---|---|---|---|"
    for count in REPLICAS:
        talks = []
        for turns in Recording(min(conversations * count, 40 * conversations)):
            read = [(turn, found.chunks) for turn in turns if (found := conversation_of(turn)) is not None]
            talks.append(read)
        requests = sum(map(len, talks))
        yield f"| {count} | {requests} | (a cache without end, shared by all) | {_best(talks):.1%} | | |"
        for name, policy in POLICIES:
            result = simulate(talks, count, policy, cache * BYTES_PER_TOKEN // CHUNK)
            numbers = f"{result.reused:.1%} | {result.busiest:.2f} | {result.longest:.2f}"
            yield f"| {count} | {requests} | {name} | {numbers} |"


def _best(talks: list[list[tuple[Turn, list[int]]]]) -> float:
    seen: set[int] = set()
    reused = asked = 0
    for talk in talks:
        for _, chunks in talk:
            asked += len(chunks)
            reused += sum(chunk in seen for chunk in chunks)
            seen.update(chunks)
    return reused / asked


def write_section(text: str) -> None:
    """Put ``text`` into its place in the document, which is made where it is missing; nothing else changes."""
    section = f"{BEGIN}\n\n{text}\n\n{END}"
    old = DOCUMENT.read_text() if DOCUMENT.exists() else "# Benchmarks\n"
    if BEGIN in old and END in old:
        before, _, rest = old.partition(BEGIN)
        DOCUMENT.write_text(before + section + rest.partition(END)[2])
    else:
        DOCUMENT.write_text(f"{old.rstrip()}\n\n## Prefix affinity\n\n{section}\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--conversations", type=int, default=80, help="per replica, up to 40 replicas")
    parser.add_argument("--cache", type=int, default=100_000, help="tokens that a replica's cache holds")
    parser.add_argument("--write", action="store_true", help="put the table into docs/benchmarks.md")
    options = parser.parse_args()
    table = []
    for row in rows(options.conversations, options.cache):
        table.append(row)
        print(row, flush=True)
    if options.write:
        given = {"cache": options.cache, "conversations": options.conversations}
        write_section(TEXT.format(**given, table="\n".join(table)))


if __name__ == "__main__":
    main()
