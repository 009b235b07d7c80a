"""`paceline trace`: what happened to a request, as a picture that Perfetto or Chrome draws."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from coordinator.chrome_trace import chrome_trace
from coordinator.core.commands import Ask, Command, Emit, Fail, Finish
from coordinator.core.events import Event
from coordinator.core.metrics import RequestMetrics
from coordinator.recent import RecentRequests, Seen, names_of
from deploy import options
from deploy.connection import add_credentials, add_server, client_of
from deploy.options import Parser, UsageError
from paceline.errors import InvalidInput, UnknownRequest, did_you_mean
from paceline.fetched import TraceSummary
from paceline.plain import from_plain
from paceline.trace import FULL, Closed, Opened, Record, Step, read
from paceline.types import FinishReason

WHERE = "open it in https://ui.perfetto.dev or chrome://tracing; it is read in the browser and sent nowhere"
_WIDTH = 220  # of the list: an id may have 128 characters
EVERYTHING = 1_000_000  # requests of a file


def run(argv: Sequence[str]) -> int:
    values = parser().parse(argv, os.environ)
    if values.request is None and values.output is not None:
        raise UsageError("--output: says where to write one request's trace; name the request, too")
    traces, drawn = _from_file(values) if values.file else asyncio.run(_from_server(values))
    if drawn is None:
        _list(traces, as_json=values.json)
        return 0
    text = json.dumps(drawn)
    if values.output is None:
        print(text)
        return 0
    try:
        Path(values.output).write_text(text)
    except OSError as error:
        raise InvalidInput("--output", values.output, f"cannot be written: {error.strerror}") from None
    num_bars = sum(event["ph"] != "M" for event in drawn["traceEvents"])
    about = drawn["otherData"]
    if values.json:
        told = {"request_id": about["request_id"], "file": values.output, "events": num_bars, "is_cut": about["is_cut"]}
        print(json.dumps(told))
    else:
        cut = "cut, since no more of a request is kept; " if about["is_cut"] else ""
        print(f"{values.output}: {num_bars} events; {cut}{WHERE}", file=sys.stderr)
    return 0


async def _from_server(values: argparse.Namespace) -> tuple[Sequence[TraceSummary], dict[str, Any] | None]:
    """The requests that the server keeps, or the trace of the one that is asked for."""
    async with client_of(values) as client:
        if values.request is None:
            return await client.traces(), None
        try:
            records = await client.trace(values.request)
        except UnknownRequest:
            known = [one.request_id for one in await client.traces()]
            raise _unknown(values.request, known, "the last requests of this key, and only those") from None
        opened = next((record for record in records if isinstance(record, Opened)), None)
        request_id = str(opened.settings.get("request_id", values.request)) if opened else values.request
        unix_s = opened.unix_s if opened else 0.0
        return (), chrome_trace(request_id, list(steps(records)), unix_s, is_cut=Closed(FULL) in records)


def _from_file(values: argparse.Namespace) -> tuple[Sequence[TraceSummary], dict[str, Any] | None]:
    """Likewise from what `paceline serve --trace FILE` wrote."""
    recent = RecentRequests(EVERYTHING, bounded=False)
    begun: Opened | None = None
    is_full = False
    for record in read(values.file):
        is_full = is_full or record == Closed(FULL)
        if isinstance(record, Opened):
            begun = record
        elif isinstance(record, Step) and begun:
            (seen,) = steps([record])
            wall_s = begun.unix_s + seen.at_s - begun.clock_s
            recent.observe(seen.event, seen.commands, seen.at_s, unix_s=wall_s)
    everything = recent.all()
    if values.request is None:
        return [TraceSummary(**one.summary()) for one in everything], None
    for name in names_of(values.request):
        for one in everything:
            if one.spec.request_id == name:
                return (), chrome_trace(name, one.steps, one.unix_s, is_cut=is_full and not one.ended)
    raise _unknown(values.request, [one.spec.request_id for one in everything], f"the requests in {values.file}")


def _unknown(request_id: str, known: Sequence[str], which: str) -> InvalidInput:
    fix = f"is not among {which}; {did_you_mean(request_id, known)}`paceline trace` without a request lists them"
    return InvalidInput("REQUEST", request_id, fix)


def steps(records: Iterable[Record]) -> Iterator[Seen]:
    """The events and commands of `records`. Raises InvalidInput for what the core does not know."""
    for record in records:
        if isinstance(record, Step):
            event: Event = from_plain(Event, record.event)  # type: ignore[arg-type]
            yield Seen(record.at_s, event, tuple(map(_command, record.commands)))


def _command(plain: Mapping[str, Any]) -> Command:
    if plain.get("is") != "Finish":
        command: Command = from_plain(Ask | Emit | Fail, dict(plain))  # type: ignore[arg-type]
        return command
    try:
        figures: dict[str, Any] = {
            name: Counter(value) if isinstance(value, dict) else value
            for name, value in plain["metrics"].items()
            if name != "is"
        }
        return Finish(str(plain["request_id"]), FinishReason(plain["reason"]), RequestMetrics(**figures))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InvalidInput("Finish", "…", f"is not what it should be: {error}") from None


def _list(traces: Sequence[TraceSummary], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps([asdict(one) for one in traces]))
        return
    # An id that is cut or folded cannot be copied, so a narrow terminal wraps the lines instead.
    console = Console(highlight=False, markup=False, emoji=False, width=_WIDTH)
    if not traces:
        console.print("No requests are kept. A request is, once it has come, as long as it is one of the last.")
        return
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    for name in ("request", "arrived", "prompt", "output", "mode", "ended by", "ms"):
        table.add_column(name, justify="right" if name in ("prompt", "output", "ms") else "left", no_wrap=True)
    for one in traces:
        arrived = time.strftime("%H:%M:%S", time.localtime(one.unix_s))
        counts = (f"{one.num_prompt_tokens}", f"{one.num_generated_tokens}" if one.mode else "–")
        ended = (one.finish_reason or "(runs)", f"{one.e2e_ms:.0f}" if one.finish_reason else "–")
        table.add_row(one.request_id, arrived, *counts, one.mode or "–", *ended)
    console.print(table)


def parser() -> Parser:
    it = Parser(
        "trace",
        """Draw what happened to a request: who worked when, what was on its way, and what overlapped.

Coordinators keep the last requests (--keep-traces), each for its own client. Without REQUEST they are listed; the id is
the one that the answer named, and `paceline generate` prints it. The picture has a track for the client, the
coordinator, the drafter, the verifier and the network. It holds times and counts, no text.

  paceline trace                                          list the last requests
  paceline trace 0f3c…  -o t.json                         then open t.json in https://ui.perfetto.dev
  paceline trace 0f3c…  -o t.json --file run.trace        from what `paceline serve --trace run.trace` wrote""",
    )
    it.argument("request", metavar="REQUEST", help="the request's id; none = list those that are kept", required=False)
    what = it.group("what")
    add_server(what)
    what.add(
        "--file",
        kind=options.text,
        metavar="FILE",
        help="take it from a file that serve --trace wrote, not from a server",
    )
    what.add("--output", "-o", kind=options.text, metavar="FILE", shown="standard output", help="where to write it")
    what.add("--json", kind=options.boolean, default=False, help="print the list, or what was written, as JSON")
    add_credentials(it)
    return it
