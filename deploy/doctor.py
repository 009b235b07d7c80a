"""`paceline doctor`: is the set-up in order, how fast would each mode be, and does remote drafting pay at all?"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import datetime
import json
import os
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from bench.simulator.recorded import Profile
from deploy import doctor_setup as setup
from deploy import options
from deploy.connection import add_credentials, client_of
from deploy.demo import QUESTIONS
from deploy.demo_models import DRAFTER, TARGET
from deploy.doctor_forecast import (
    MODES,
    Advance,
    Forecast,
    advice,
    best_of,
    chosen_by_auto,
    forecasts,
    profiles,
    round_trip_ms,
    run_all,
)
from deploy.doctor_setup import BROKEN, OK, WARNING, Finding
from deploy.local import Supervisor
from deploy.options import Parser, UsageError
from deploy.role_options import add_drafter_dtype, add_dtype
from deploy.serve import SHARED_KV_CACHE_BYTES, Plan, start
from deploy.simulate_options import numbers
from paceline.client import AsyncClient
from paceline.errors import (
    Forbidden,
    InvalidInput,
    Overloaded,
    PacelineError,
    PeerFault,
    Unauthenticated,
    UnknownRequest,
)
from paceline.prompts import SHAPES, question, read_prompts
from paceline.types import Mode, Role

_STYLES = {OK: "green", WARNING: "yellow", BROKEN: "red"}
MAX_PROMPTS = 60  # a coordinator keeps the last 64 requests


@dataclass(slots=True)
class Report:
    """All that was found."""

    findings: list[Finding] = field(default_factory=list)
    forecasts: list[Forecast] = field(default_factory=list)
    advice: str = ""

    @property
    def is_broken(self) -> bool:
        return any(finding.state == BROKEN for finding in self.findings)

    def to_json(self) -> dict[str, Any]:
        best = best_of(self.forecasts) if self.forecasts else None
        return {
            "findings": [asdict(finding) for finding in self.findings],
            "predictions": [row.to_json() for row in self.forecasts],
            "recommended_mode": best.mode if best else None,
            "speed_up": best.speed_up if best else None,
            "advice": self.advice,
            "ok": not self.is_broken,
        }


def run(argv: Sequence[str]) -> int:
    values = parser().parse(argv, os.environ)
    if values.server and values.target:
        raise UsageError("--server, --target: give the address of a server, or models to start one with, not both")
    if values.drafter and not values.target:
        raise UsageError("--drafter: is for --target; a server that runs has its own")
    if not values.server and not values.target:
        values.target, values.drafter = str(TARGET), values.drafter or str(DRAFTER)
    prompts = read_prompts(values.prompts) if values.prompts else list(map(question, QUESTIONS))
    console = Console(stderr=values.json, highlight=False, markup=False, emoji=False)
    report = Report()
    try:
        asyncio.run(_examine(prompts[: values.num_prompts], values, report, console))
    except InvalidInput:
        raise
    except PacelineError as error:  # what was found until then is told all the same
        report.findings.append(failure(error))
        _tell(console, report.findings[-1:])
    if report.forecasts:
        console.print(_table(report.forecasts))
    if report.advice:
        console.print(report.advice, soft_wrap=True)
    if values.json:
        print(json.dumps(report.to_json()))
    return 1 if report.is_broken else 0


def failure(error: PacelineError) -> Finding:
    """What ended the examination, by what kind of failure it was."""
    match error:
        case UnknownRequest():
            fix = "it must keep as many requests as run at a time: start it with --keep-traces 64"
            return Finding("traces", "the server does not keep what it has run", BROKEN, fix)
        case Overloaded():
            return Finding("server", "is full", BROKEN, f"measure it when it has less to do ({error})")
        case Unauthenticated() | Forbidden():
            return Finding("server", "does not let this caller in", BROKEN, str(error))
        case PeerFault():
            return Finding("server", "answers what cannot be understood", BROKEN, str(error))
        case _:
            return Finding("server", "does not answer", BROKEN, str(error))


async def _examine(prompts: Sequence[str], values: argparse.Namespace, report: Report, console: Console) -> None:
    """Fill `report`; nothing is run on a set-up that is broken."""

    def found(findings: Iterator[Finding]) -> None:
        here = list(findings)
        report.findings += here
        _tell(console, here)

    found(setup.versions())
    found(setup.files(values, datetime.datetime.now(datetime.UTC)))
    if values.target:
        found(setup.models(values.target, values.drafter))
        found(setup.ports())
        found(setup.devices(values.device, values.dtype))
    if report.is_broken:
        return
    async with _client(values, console) as client:
        info = await client.server_info()
        found(setup.server(await client.model_info(), info))
        if report.is_broken:
            return
        found(iter([Finding("round trip to the coordinator", f"{await round_trip_ms(client):.2f} ms")]))
        has_drafter = any(worker.role is Role.DRAFTER for worker in info.workers)
        modes = MODES if has_drafter else MODES[:1]
        has_auto = has_drafter and info.mode in ("", "auto")
        num_runs = len(modes) * (1 + len(prompts) * (1 + values.verify)) + has_auto * len(prompts)
        with _progress(console, "measuring", num_runs) as advance:
            runs = await run_all(client, prompts, modes, values.max_tokens, 1 + values.verify, advance)
            chosen = await chosen_by_auto(client, prompts, values.max_tokens, advance) if has_auto else Counter[str]()
        known = profiles(runs[0], (await client.server_info()).workers)
        found(_measured(known))
        found(_auto(chosen))
        report.forecasts = forecasts(known, runs[0], sorted({0.0, *values.rtt_ms}) if has_drafter else [0.0])
        if values.verify:
            report.forecasts = [
                replace(row, measured=runs[1][Mode(row.mode)].tokens_per_s) if row.rtt_ms == 0 else row
                for row in report.forecasts
            ]
    report.advice = advice(report.forecasts)


def _measured(known: dict[Mode, Profile]) -> Iterator[Finding]:
    plain = known[Mode.OFF]
    yield Finding("verifying", f"{plain.verify.ms(1, 1, 0):.1f} ms for a token")
    if Mode.SEQUENTIAL not in known:
        return
    one = known[Mode.SEQUENTIAL]
    sizes = ", ".join(f"{one.verify.ms(size, 1, 0):.1f} ms for {size}" for size in (2, 4, 8, 16))
    yield Finding("verifying, by tokens in a pass", sizes)
    yield Finding("drafting", f"{one.draft.ms(1, 1, 0):.2f} ms a token")
    yield Finding("round trip to the drafter", f"{2e3 * one.drafter_hop_s:.2f} ms")
    yield Finding("round trip to the verifier", f"{2e3 * one.verifier_hop_s:.2f} ms")
    few = one.acceptance < 0.4
    fix = "a drafter that is more like the target (distilled from it) is accepted more often"
    yield Finding("acceptance", f"{one.acceptance:.2f} of tested tokens", WARNING if few else OK, fix if few else "")


def _auto(chosen: Counter[str]) -> Iterator[Finding]:
    total = sum(chosen.values())
    if total:
        told = ", ".join(f"{mode} for {count / total:.0%}" for mode, count in chosen.most_common())
        yield Finding("mode auto chose", f"{told} of {total} tokens")


@contextlib.asynccontextmanager
async def _client(values: argparse.Namespace, console: Console) -> AsyncIterator[AsyncClient]:
    """Of the server that was named, or of one that is started with the models."""
    if values.server:
        async with client_of(values) as client:
            yield client
        return
    async with Supervisor(log=lambda line: console.print(line, style="dim", soft_wrap=True)) as supervisor:
        console.print("Starting coordinator, drafter and verifier …", style="dim")
        async with AsyncClient(await start(supervisor, plan_of(values))) as client:
            yield client


def plan_of(values: argparse.Namespace) -> Plan:
    """Of the server that is examined: its workers share the device, so neither may take what is left of it."""
    shared = ("--device", values.device, "--kv-cache-memory", str(SHARED_KV_CACHE_BYTES))
    return Plan(
        values.target,
        values.drafter,
        num_drafters=1 if values.drafter else 0,
        verifier=("--dtype", values.dtype, *shared),
        drafters=("--dtype", values.drafter_dtype or values.dtype, *shared),
    )


def _tell(console: Console, findings: Sequence[Finding]) -> None:
    for finding in findings:
        console.print(f"{finding.state:8}", style=_STYLES[finding.state], end="")
        console.print(f"{finding.what}: {finding.value}", soft_wrap=True)
        if finding.fix:
            console.print(f"        → {finding.fix}", soft_wrap=True)


@contextlib.contextmanager
def _progress(console: Console, what: str, count: int) -> Iterator[Advance]:
    if not console.is_terminal:
        yield lambda: None
        return
    # Drawn only when something has happened: the cores are at work on what is measured.
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=console, transient=True, auto_refresh=False) as progress:
        task = progress.add_task("", total=count)
        yield lambda: progress.update(task, advance=1, refresh=True)


def _table(rows: Sequence[Forecast]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, title="predicted", title_justify="left", padding=(0, 1), pad_edge=False)
    names = ["RTT ms more", "mode", "tokens/s", "speed-up"]
    has_measured = any(row.measured for row in rows)
    for name in [*names, *(("measured", "ratio", "simulated alone") if has_measured else ())]:
        table.add_column(name, justify="left" if name == "mode" else "right")
    for row in rows:
        cells = [f"{row.rtt_ms:g}", row.mode, f"{row.tokens_per_s:.1f}", f"{row.speed_up:.2f}"]
        if has_measured:
            found = (row.measured, row.ratio, row.raw_ratio)
            cells += [f"{one:.{digits}f}" if one else "–" for one, digits in zip(found, (1, 2, 2), strict=True)]
        table.add_row(*cells)
    return table


def parser() -> Parser:
    it = Parser(
        "doctor",
        """Is the set-up in order, how fast would each mode be, and does remote drafting pay at all?

Checks versions, models, ports, devices, certificates and keys; then runs your prompts on a server, or on one that it
starts with your models; and predicts by the simulator what each mode makes of them, here and with the drafter further
away. Exit code 1 if something is broken.

  paceline doctor                                                  the demo pair on this machine
  paceline doctor --target big/ --drafter small/ --prompts mine.jsonl --rtt-ms 5,20
  paceline doctor --server 10.0.0.1:50051 --prompts mine.jsonl --verify --json""",
    )
    what = it.group("what")
    what.add(
        "--server",
        kind=options.addresses,
        default=(),
        shown="none: a server is started",
        metavar="HOST:PORT[,…]",
        help="a running coordinator's gRPC address",
    )
    what.add("--target", kind=options.text, metavar="DIR", shown="the demo's", help="or a target, to start a server")
    what.add(
        "--drafter", kind=options.text, metavar="DIR", shown="none, or the demo's", help="and a drafter, as for serve"
    )
    what.add("--prompts", kind=options.text, metavar="FILE", shown="a few of our own", help=f"a JSONL file: {SHAPES}")
    whole = options.whole(1, MAX_PROMPTS)
    what.add("--num-prompts", kind=whole, default=6, metavar="N", help="prompts to run, of those given")
    what.add("--max-tokens", kind=options.whole(1), default=64, metavar="N", help="tokens of each answer")
    what.add(
        "--rtt-ms",
        kind=numbers(1, 16, 0, 60_000),
        default=(10.0, 30.0, 100.0),
        shown="10,30,100",
        metavar="MS,…",
        help="predict also with the drafter so much further away",
    )
    what.add("--verify", kind=options.boolean, default=False, help="run the modes twice, and compare the second runs")
    what.add("--json", kind=options.boolean, default=False, help="print one JSON object; all else goes to stderr")
    what.add("--api-keys", kind=options.text, metavar="FILE", help="a server's file of keys, to be checked")
    models = it.group("models")
    add_dtype(models)
    add_drafter_dtype(models)
    add_credentials(it)
    return it
