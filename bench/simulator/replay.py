"""A trace played to the core once more: the same events must lead to the same commands.

    python -m bench.simulator.replay run.trace

So whatever went wrong in a run can be watched again, in a debugger, without its models and its network. It also shows
whether a change of the core changes what it does on recorded traffic.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from coordinator.core.events import Event
from coordinator.core.limits import Limits
from coordinator.core.pipeline import Pipeline
from paceline.errors import InvalidInput
from paceline.plain import from_plain, to_plain
from paceline.trace import Opened, Record, Step, read
from paceline.types import Rows

MAX_SHOWN = 10


@dataclass(frozen=True, slots=True)
class Difference:
    """A step in which the core did something else than it did when the trace was written."""

    number: int  # of the step, from 1
    event: Any  # plain, as are the others
    then: Any
    now: Any


def replay(records: Iterable[Record]) -> Iterator[Difference | None]:
    """For each step of a trace what is different now, or None. Raises InvalidInput for an event unknown to the core."""
    pipeline, number = Pipeline(), 0
    for record in records:
        if isinstance(record, Opened):
            pipeline = Pipeline(from_plain(Limits, record.settings["limits"]))
        elif isinstance(record, Step):
            number += 1
            event: Event = from_plain(Event, record.event)  # type: ignore[arg-type]
            now = _decided(to_plain(pipeline.handle(event, record.at_s), without=(Rows,)))
            then = _decided(record.commands)
            yield None if now == then else Difference(number, record.event, then, now)


def _decided(commands: Iterable[Any]) -> list[Any]:
    """The commands without the one figure in them that the shell adds, which has a clock."""
    decided = []
    for command in commands:
        if command["is"] == "Finish":
            command = {**command, "metrics": {**command["metrics"], "coordinator_ms": 0.0}}
        decided.append(command)
    return decided


def main(arguments: list[str]) -> int:
    """1 if anything is different."""
    if len(arguments) != 1:
        print("usage: python -m bench.simulator.replay FILE", file=sys.stderr)
        return 2
    num_steps = num_different = 0
    try:
        for difference in replay(read(arguments[0])):
            num_steps += 1
            if difference is None:
                continue
            num_different += 1
            if num_different <= MAX_SHOWN:
                print(
                    f"step {difference.number}: {difference.event}\n  then {difference.then}\n  now  {difference.now}"
                )
    except InvalidInput as error:
        print(error, file=sys.stderr)
        return 2
    print(f"{num_steps} steps, {num_different} of them different")
    return 1 if num_different else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
