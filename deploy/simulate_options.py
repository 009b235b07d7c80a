"""The options of `paceline simulate`, group by group."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from deploy import options
from deploy.options import Group, Kind, Parser
from paceline.errors import InvalidInput
from paceline.types import Role, StepCost

MAX_SIMULATED = 10_000_000


def numbers(least: int, most: int, low: float = 0.0, high: float = 1e9) -> Kind:
    """So many numbers, comma separated."""
    one = options.number(low, high)

    def parse(value: str) -> tuple[float, ...]:
        items = [item for item in value.split(",") if item.strip()]
        if not least <= len(items) <= most:
            raise ValueError(f"write {least} to {most} numbers, comma separated")
        return tuple(one(item) for item in items)

    return parse


def counts(value: str) -> tuple[int, ...]:
    return tuple(options.whole(1, 100_000)(item.strip()) for item in value.split(","))


_DRAFTERS = re.compile(r"(\d{1,6})x(\d+(?:\.\d+)?)(?:@(\d+(?:\.\d+)?))?(?::(\d(?:\.\d+)?))?")


@dataclass(frozen=True, slots=True)
class Drafters:
    """Some drafters of a kind."""

    num_workers: int
    base_ms: float  # a token
    rtt_ms: float = 0.0  # beyond that of all drafters
    acceptance: float | None = None  # None = that of all drafters


def drafters(value: str) -> tuple[Drafters, ...]:
    """Example: 2x1.3,1x8@30:0.6."""
    found = []
    for item in value.split(","):
        match = _DRAFTERS.fullmatch(item.strip())
        if match is None or not int(match[1]) or float(match[4] or 0) > 1:
            raise ValueError("write NxMS, or NxMS@RTT_MS:ACCEPTANCE, comma separated, such as 2x1.3,1x8@30:0.6")
        found.append(
            Drafters(int(match[1]), float(match[2]), float(match[3] or 0), float(match[4]) if match[4] else None)
        )
    return tuple(found)


def add_workers(parser: Parser) -> None:
    group = parser.group(
        "workers", "A pass takes BASE, and so much more for every token, request and cached token of a request in it."
    )
    group.add("--num-verifiers", kind=options.whole(1, 100_000), default=1, metavar="N", help="copies of the target")
    group.add(
        "--num-drafters",
        kind=counts,
        shown="1, or as in the trace",
        metavar="N,…",
        help="drafters; several numbers = a sweep",
    )
    group.add(
        "--drafters",
        kind=drafters,
        metavar="NxMS[@RTT_MS][:SHARE],…",
        help="drafters of several kinds, instead of --num-drafters and --draft-ms: so many that take so long for a "
        "token, so much farther away, and right with such a chance, such as 2x1.3,1x8@30:0.6",
    )
    cost = "BASE[,TOKEN[,REQUEST[,CONTEXT]]]"
    group.add("--verify-ms", kind=numbers(1, 4), shown="28,1.1", metavar=cost, help="a verifier's pass")
    group.add("--draft-ms", kind=numbers(1, 4), shown="1.3", metavar=cost, help="a drafter's pass: one token a request")
    group.add(
        "--cost",
        kind=options.text,
        metavar="FILE",
        help='JSON with a pass of each, as in GetServerInfo: {"verifier": {"base_ms": 28, "per_token_ms": 1.1}, '
        '"drafter": …}',
    )
    group.add(
        "--acceptance",
        kind=options.number(0, 1),
        default=0.8,
        metavar="SHARE",
        help="chance that a drafted token is the target's",
    )
    group.add(
        "--trace",
        kind=options.text,
        metavar="FILE",
        help="take passes, acceptance place by place, hops, and the requests' lengths from a trace that serve wrote",
    )
    for role, default in ((Role.VERIFIER, 64), (Role.DRAFTER, 64)):
        kind = options.whole(1, 65536)
        group.add(f"--{role}-places", kind=kind, default=default, metavar="N", help=f"requests that a {role} takes")
    for role in Role:
        _seconds(group, f"--{role}-life-s", 0, f"a {role} dies after about this long (exponential); 0 = never")
    _seconds(group, "--restart-s", 5, "and another takes its place so much later")
    _seconds(group, "--seen-s", 0, "the coordinator learns of a death so much later")


def _seconds(group: Group, flag: str, default: float, help: str) -> None:
    group.add(flag, kind=options.number(0, 1e9), default=default, metavar="S", help=help)


def _share(group: Group, flag: str, help: str) -> None:
    group.add(flag, kind=options.number(0, 0.99), default=0.0, metavar="SHARE", help=help)


def add_network(parser: Parser) -> None:
    group = parser.group("network", "Between the coordinator and the workers: streams over TCP, unless told otherwise.")
    group.add(
        "--rtt-ms",
        kind=numbers(1, 64, 0, 60_000),
        default=(0.0,),
        shown="0",
        metavar="MS,…",
        help="round trip to the drafters; several numbers = a sweep",
    )
    milliseconds = options.number(0, 60_000)
    group.add("--verifier-rtt-ms", kind=milliseconds, default=0, metavar="MS", help="round trip to the verifiers")
    group.add("--hop-ms", kind=milliseconds, default=0.1, metavar="MS", help="what processes add to a message, one way")
    group.add("--jitter-ms", kind=milliseconds, default=0, metavar="MS", help="up to so much more, one way")
    _share(group, "--loss", "messages that TCP has to send again: they and all behind them come 200 ms later")
    _share(group, "--drop", "messages that never arrive (no TCP does so; the protocol survives it)")
    _share(group, "--duplicate", "messages that arrive twice (likewise)")
    group.add("--reorder", kind=options.boolean, default=False, help="let jitter change the order (likewise)")
    group.add(
        "--coordinator-ms",
        kind=milliseconds,
        default=0,
        metavar="MS",
        help="what the coordinator computes for an event; events wait for one another",
    )


def add_load(parser: Parser) -> None:
    group = parser.group("load", "Closed (so many clients, each asks again when answered) unless --rate is given.")
    whole = options.whole(1, MAX_SIMULATED)
    shown = "32, or as in the trace"
    group.add("--num-requests", kind=whole, shown=shown, metavar="N", help="requests of each world")
    group.add("--concurrency", kind=whole, default=1, metavar="N", help="clients that ask one request after another")
    group.add(
        "--rate",
        kind=options.number(0, 1e6),
        default=0,
        shown="closed",
        metavar="PER_S",
        help="requests a second, at random (Poisson), whatever becomes of those before",
    )
    group.add("--burst", kind=whole, default=1, metavar="N", help="with --rate: so many at once, and so much rarer")
    group.add("--prompt-tokens", kind=whole, default=64, metavar="N", help="of each request")
    group.add("--max-tokens", kind=whole, default=96, metavar="N", help="output of each request")


def add_report(parser: Parser) -> None:
    group = parser.group("report")
    group.add("--seed", kind=options.whole(0), default=0, metavar="N", help="same seed, same world, same figures")
    group.add(
        "--max-events",
        kind=options.whole(0, 2**31 - 1),
        default=0,
        shown="by size",
        metavar="N",
        help="give up after so many: a world that never ends is an error",
    )
    group.add("--json", kind=options.boolean, default=False, help="figures to standard output, the table to stderr")
    group.add("--plot", kind=options.text, metavar="FILE.png", help="draw what was swept (needs matplotlib)")


def cost_file(path: str) -> dict[str, StepCost]:
    """The costs in a JSON file, by role. Raises InvalidInput."""
    try:
        with open(path, encoding="utf-8") as file:
            given: Any = json.load(file)
        return {role: _step_cost(role, given[role]) for role in Role if role in given}
    except (OSError, ValueError, TypeError) as error:
        raise InvalidInput("--cost", path, f"cannot be read as JSON: {error}") from None


def _step_cost(role: str, given: Any) -> StepCost:
    names = StepCost.__slots__
    if not isinstance(given, dict) or set(given) - set(names) or "base_ms" not in given:
        raise InvalidInput("--cost", given, f"{role} must have base_ms, and may have the others of {', '.join(names)}")
    for name, value in given.items():
        if type(value) not in (int, float) or not 0 <= value < 1e9:
            raise InvalidInput("--cost", value, f"{role}.{name} must be a number of milliseconds, and not negative")
    return StepCost(*(float(given.get(name, 0)) for name in names))
