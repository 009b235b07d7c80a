"""Feed every decoder and every public method with messages that are slightly, or utterly, wrong.

    paceline bench fuzz --messages 1000000 --calls 20000

Decoders are called in this process: each must give a value or one of our own errors, soon. Methods are called over real
gRPC and HTTP, on processes that serve the demo pair: whatever they are sent, the answer must be a status that is the
caller's to mend, never an internal error, never silence. Afterwards every process must still be there, hold nothing,
and serve an honest client the tokens that it served before.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import http.client
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, urlsplit

from rich.console import Console
from rich.table import Table

from bench import options, report
from bench.garble import garbled
from bench.pools import Pools, Setup
from bench.specimens import HTTP, HTTP_PATHS, REFUSALS, STREAMS, UNARY, Decoder, decoders
from paceline import rpc
from paceline.client import Client
from paceline.types import Role

SLOW_S = 1.0  # a message that takes longer has hung its reader, as good as
CALL_TIMEOUT_S = 30.0
A_STREAM = 8  # asks
# What a peer may be told. INTERNAL and a 500 stand for a bug of ours, DEADLINE_EXCEEDED for a hang.
HONEST = {
    *("OK", "CANCELLED", "INVALID_ARGUMENT", "FAILED_PRECONDITION", "NOT_FOUND", "RESOURCE_EXHAUSTED"),
    *("200", "307", "400", "404", "405", "413", "415", "422", "429"),
}


@dataclass
class Tally:
    """What one decoder, or one method, did with what it was fed."""

    name: str
    answers: Counter[str] = field(default_factory=Counter)
    longest_s: float = 0.0
    bugs: list[str] = field(default_factory=list)  # the message in hexadecimal, and what came of it

    def count(self, answer: str, took_s: float, message: bytes, *, is_honest: bool) -> None:
        self.answers[answer] += 1
        self.longest_s = max(self.longest_s, took_s)
        if not is_honest and len(self.bugs) < 10:
            self.bugs.append(f"{answer}: {message.hex()}")

    def figures(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "messages": self.answers.total(),
            "longest_ms": 1e3 * self.longest_s,
            "answers": dict(self.answers),
            "bugs": self.bugs,
        }


def decode(name: str, decoder: Decoder, others: bytes, num: int, rng: random.Random) -> Tally:
    """`num` messages for one decoder."""
    tally = Tally(name)
    for message in decoder.good:
        decoder.decode(message)  # what is not understood when it is good would prove nothing when it is not
    for _ in range(num):
        message = garbled(rng.choice(decoder.good), others, rng)
        started_s = time.perf_counter()
        try:
            decoder.decode(message)
            answer, is_honest = "value", True
        except REFUSALS as error:
            answer, is_honest = type(error).__name__, True
        except Exception as error:
            answer, is_honest = f"{type(error).__name__} ({error})", False
        took_s = time.perf_counter() - started_s
        tally.count(answer, took_s, message, is_honest=is_honest and took_s < SLOW_S)
    return tally


def decode_all(num: int, seed: int) -> list[Tally]:
    """`num` messages over all decoders in equal parts."""
    table = decoders()
    others = b"".join(message for decoder in table.values() for message in decoder.good)
    share = -(-num // len(table))
    return [decode(name, it, others, share, random.Random(f"{seed} {name}")) for name, it in table.items()]


async def call_methods(address: str, num: int, rng: random.Random) -> list[Tally]:
    """Every method of the coordinator, `num` times each."""
    tallies = []
    async with rpc.connect(address) as channel:
        for method, good in UNARY.items():
            tally = Tally(f"gRPC {method}")
            path = f"/paceline.wire.Coordinator/{method}"
            is_stream = method in ("Generate", "GetTrace")
            make = channel.unary_stream(path) if is_stream else channel.unary_unary(path)
            for _ in range(num):
                message = garbled(rng.choice(good), b"".join(good), rng)
                started_s = time.perf_counter()
                call = make(message, timeout=CALL_TIMEOUT_S)
                if is_stream:  # the first reply will do: what is asked for may be long
                    with contextlib.suppress(Exception):
                        await call.read()
                        call.cancel()
                code = (await call.code()).name
                tally.count(code, time.perf_counter() - started_s, message, is_honest=code in HONEST)
            tallies.append(tally)
    return tallies


async def call_streams(role: Role, address: str, num: int, rng: random.Random) -> Tally:
    """`num` asks to a worker, several over each stream."""
    tally = Tally(f"gRPC {role.title()}.Connect")
    good = decoders()[STREAMS[role]].good
    async with rpc.connect(address) as channel:
        make = channel.stream_stream(f"/paceline.wire.{role.title()}/Connect")
        for _ in range(-(-num // A_STREAM)):
            messages = [garbled(rng.choice(good), b"".join(good), rng) for _ in range(A_STREAM)]
            started_s = time.perf_counter()
            call = make(timeout=CALL_TIMEOUT_S)
            with contextlib.suppress(Exception):  # the status says what became of it
                for message in messages:
                    await call.write(message)
                await call.done_writing()
                while await call.read():
                    pass
            code, details = (await call.code()).name, str(await call.details())
            # A write that meets the end of the stream makes the library itself say INTERNAL, on this side.
            is_honest = code in HONEST or (code == "INTERNAL" and "the server's log" not in details)
            took_s = time.perf_counter() - started_s
            for message in messages:
                tally.count(code, took_s, message, is_honest=is_honest)
    return tally


def call_http(url: str, num: int, rng: random.Random) -> list[Tally]:
    """Every path that takes a body, and every one that takes a name, `num` times each."""
    return [
        *(_call_path(url, path, good, num, rng, has_body=True) for path, good in HTTP.items()),
        *(_call_path(url, path, good, num, rng, has_body=False) for path, good in HTTP_PATHS.items()),
    ]


def _call_path(url: str, path: str, good: bytes, num: int, rng: random.Random, *, has_body: bool) -> Tally:
    tally = Tally(f"HTTP {path}")
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=CALL_TIMEOUT_S)
    for _ in range(num):
        message = garbled(good, b"".join(HTTP.values()), rng)
        started_s = time.perf_counter()
        try:
            if has_body:
                connection.request("POST", path, message, {"Content-Type": "application/json"})
            else:
                connection.request("GET", path + quote(message))
            response = connection.getresponse()
            response.read()
            answer = str(response.status)
        except (OSError, http.client.HTTPException) as error:
            answer = type(error).__name__
            connection.close()
        tally.count(answer, time.perf_counter() - started_s, message, is_honest=answer in HONEST)
    connection.close()
    return tally


def serving(given: argparse.Namespace) -> list[Tally]:
    """All methods of real processes; what is wrong with them afterwards is a bug too."""
    rng = random.Random(given.seed)
    num_kinds = len(UNARY) + len(STREAMS) + len(HTTP) + len(HTTP_PATHS)
    num = -(-given.calls // num_kinds)
    setup = Setup(
        given.target,
        given.drafter,
        coordinator=("--port", "0", "--served-model-name", "m", "--max-workers", "20"),
        logs=given.logs,
    )
    with Pools(setup) as pools:
        pools.start("verifier-1", "drafter-1")
        before = _honest(pools.address)
        tallies = asyncio.run(call_methods(pools.address, num, rng))
        for name, role in (("verifier-1", Role.VERIFIER), ("drafter-1", Role.DRAFTER)):
            tallies.append(asyncio.run(call_streams(role, pools.workers[name].address, num, rng)))
        tallies += call_http(pools.coordinator.url, num, rng)
        after = Tally("afterwards")
        is_same = _within(CALL_TIMEOUT_S, lambda: _honest(pools.address) == before)
        after.count("same tokens" if is_same else "other tokens", 0, b"", is_honest=is_same)
        is_empty = _within(CALL_TIMEOUT_S, lambda: all(not held.get("requests") for held in pools.holds().values()))
        after.count("nothing held" if is_empty else f"held: {pools.holds()}", 0, b"", is_honest=is_empty)
    return [*tallies, after]


def _honest(address: str) -> tuple[int, ...]:
    with Client(address) as client:
        return client.complete("One two", max_tokens=16, ignore_eos=True, timeout_s=CALL_TIMEOUT_S).token_ids


def _within(seconds: float, condition: Callable[[], bool]) -> bool:
    until_s = time.monotonic() + seconds
    while not (holds := condition()) and time.monotonic() < until_s:
        time.sleep(0.1)
    return holds


def show(tallies: Sequence[Tally], console: Console) -> None:
    table = Table(title=f"{sum(tally.answers.total() for tally in tallies):,} messages")
    for column in ("fed", "messages", "longest ms", "bugs", "answers"):
        table.add_column(column, justify="right" if column in ("messages", "longest ms", "bugs") else "left")
    for tally in tallies:
        answers = ", ".join(f"{answer} {count:,}" for answer, count in tally.answers.most_common(6))
        row = (tally.name, f"{tally.answers.total():,}", f"{1e3 * tally.longest_s:.1f}", str(len(tally.bugs)), answers)
        table.add_row(*row)
    console.print(table)
    for tally in tallies:
        for bug in tally.bugs:
            console.print(f"{tally.name}: {bug}", markup=False)


def main(arguments: Sequence[str] | None = None) -> int:
    given = parser().parse_args(arguments)
    console = report.console(given)
    tallies = decode_all(given.messages, given.seed) if given.messages else []
    if given.calls:
        tallies += serving(given)
    show(tallies, console)
    figures: Mapping[str, Any] = {"fed": [tally.figures() for tally in tallies]}
    report.write(given, json.loads(json.dumps(figures, default=str)))
    return 1 if any(tally.bugs for tally in tallies) else 0


def parser() -> argparse.ArgumentParser:
    it = report.parser("fuzz", __doc__)
    it.add_argument("--messages", type=options.count(0), default=1_000_000, help="for the decoders")
    it.add_argument("--calls", type=options.count(0), default=20_000, help="of the methods of real processes")
    it.add_argument("--seed", type=int, default=0)
    return it


if __name__ == "__main__":
    sys.exit(main())
