"""What the coordinator's core takes for an event, however many requests are under way.

    python -m bench.core --requests 10,100,1000,10000,100000

Every request has its place on a verifier and on a drafter. Then drafts and verdicts come for requests in turn, each
draft kept whole, which is the core's usual day: admit, forward, commit, tell the client and the drafter. Nothing else
runs: no codec, no sockets, no models. Times are of the processor, so other work on the machine does not count, except
for the caches that it takes.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.progress import track
from rich.table import Table

from bench import output, system
from bench.options import Parser
from coordinator.core.events import Arrived, Drafted, Event, RequestSpec, Verified, WorkerUp
from coordinator.core.limits import Limits
from coordinator.core.pipeline import Pipeline
from paceline.types import Draft, Mode, Role, SamplingParams, Source, Verdict, WorkerInfo

PLACES = 64  # requests of a worker
LENGTH = 6  # tokens of a draft
PROMPT = (1,) * 64
SPAN = 1000  # events timed together, since the clock's own reading costs as much as a tenth of one


class Rounds:
    """A core with `num_requests` running ones, and the events that carry them on."""

    def __init__(self, num_requests: int) -> None:
        self.pipeline = Pipeline(Limits(max_waiting=num_requests))
        self._starts = [len(PROMPT) + 1] * num_requests
        num_workers = -(-num_requests // PLACES)
        for role in Role:
            for i in range(num_workers):
                info = WorkerInfo(role, "", 1, "toy", "", "", 50, 1 << 30, PLACES, (), "float32", "cpu")
                self.pipeline.handle(WorkerUp(f"{role}{i}", info), 0.0)
        for i in range(num_requests):
            self.pipeline.handle(Arrived(_spec(f"r{i}")), 0.0)
        self._holders = {
            role: {name: w.name for w in self.pipeline.pools if w.info.role is role for name in w.requests}
            for role in Role
        }
        for i in range(num_requests):
            self.pipeline.handle(self._verified(i, len(PROMPT), (1,), 0), 0.0)

    def events(self) -> Iterator[Event]:
        """A draft and its verdict for each request in turn, for ever."""
        tokens = (1,) * LENGTH
        while True:
            for i, start in enumerate(self._starts):
                draft = Draft(f"r{i}", 1, start, tokens, True, None, 5.0)
                yield Drafted(self._holders[Role.DRAFTER][f"r{i}"], draft)
                yield self._verified(i, start, tokens, 1)
                self._starts[i] = start + LENGTH

    def _verified(self, i: int, start: int, tokens: tuple[int, ...], num_drafts: int) -> Verified:
        name = f"r{i}"
        sources = (Source.ACCEPTED if num_drafts else Source.SELF_DECODED,) * len(tokens)
        num_tested = len(tokens) * num_drafts
        verdict = Verdict(name, 1, start, tokens, sources, num_tested, num_drafts, 20.0, 1.0, 64)
        return Verified(self._holders[Role.VERIFIER][name], verdict)


def _spec(name: str) -> RequestSpec:
    sampling = SamplingParams(temperature=0)
    return RequestSpec(name, PROMPT, 1 << 20, sampling, seed=1, draft_seed=2, mode=Mode.PEARL)


def measure(num_requests: int, num_events: int) -> list[float]:
    """Microseconds an event, over spans of `SPAN`."""
    rounds = Rounds(num_requests)
    handle, events = rounds.pipeline.handle, rounds.events()
    now_s, num_commands, spans = 0.0, 0, []
    for _ in range(num_events // SPAN):
        batch = [next(events) for _ in range(SPAN)]
        started_s = time.process_time()
        for event in batch:
            now_s += 1e-5
            num_commands += len(handle(event, now_s))
            rounds.pipeline.next_deadline_s()  # as the server does after every event
        spans.append(1e6 * (time.process_time() - started_s) / SPAN)
    # A draft leads to an ask of the verifier, a verdict to one of the drafter and to tokens for the client.
    assert num_commands == 1.5 * SPAN * len(spans), "the core took the events for something else"
    return spans


def main(arguments: Sequence[str] | None = None) -> int:
    parser = Parser("core", __doc__)
    parser.add_argument("--requests", default="10,100,1000,10000,100000", help="running at a time, comma separated")
    parser.add_argument("--events", type=int, default=200_000, help="of each number (200000)")
    parser.add_json()
    given = parser.parse_args(arguments)
    numbers = [int(item) for item in given.requests.split(",")]
    found = {number: measure(number, given.events) for number in track(numbers, "core", console=Console(stderr=True))}
    table = Table(title=f"core, {given.events} events each; commit {system.commit()}; {system.machine()}")
    for column in ("requests", "µs an event, median", "quartiles", "events/s", "against the first"):
        table.add_column(column, justify="right")
    first = statistics.median(found[numbers[0]])
    for number, spans in found.items():
        median = statistics.median(spans)
        low, _, high = statistics.quantiles(spans, n=4)
        cells = (f"{median:.1f}", f"{low:.1f}–{high:.1f}", f"{1e6 / median:,.0f}", f"{median / first:.2f}")
        table.add_row(f"{number:,}", *cells)
    output.console(given.json, 110).print(table)
    output.save(given.json, {"commit": system.commit(), "us_per_event": found})
    return 0


if __name__ == "__main__":
    sys.exit(main())
