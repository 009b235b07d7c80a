"""Load on a running server, measured as `vllm bench serve` does: its options, its table, its keys in the JSON.

    paceline bench serve --dataset-name custom --dataset-path prompts.jsonl --num-prompts 32 --max-concurrency 4
    paceline bench serve --dataset-name spec_bench --dataset-path question.jsonl --goodput ttft:500 tpot:40
    paceline bench serve --dataset-name random --random-input-len 64 --random-output-len 32 --request-rate 2
    paceline bench serve --dataset-path prompts.jsonl --compare off,sequential,pearl,auto --plot compare.png

Any server that speaks OpenAI's API will do, so the same command measures another one beside ours. A time between tokens
is one a token: tokens that come together share the time since the last evenly. `--compare` runs the modes of a Paceline
server in turn, prompt by prompt, and prints ratios with quartiles.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import math
import os
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import httpx2
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from bench import output, system
from bench.serving import compare, datasets, figures, load, plot, report
from bench.serving.call import Caller, agree
from bench.serving.datasets import Ask
from bench.serving.settings import parse
from paceline.errors import InvalidInput, Unavailable
from paceline.open_files import allow_open_files
from paceline.tokenizer import Tokenizer

REQUEST_TIMEOUT_S = 6 * 3600  # vLLM's: a queue may be long, and a bound on a whole run is the user's
READY_POLL_S = 1.0
TOO_MANY = (
    "429 says that more came at once than the server queues: set --max-concurrency or a lower --request-rate here, or "
    "there a larger --max-waiting (with keys --max-requests-per-key too)"
)


async def measure(given: argparse.Namespace, console: Console) -> int:
    allow_open_files()
    headers = dict(given.header)
    if key := os.environ.get("OPENAI_API_KEY"):
        headers.setdefault("authorization", f"Bearer {key}")
    limits = httpx2.Limits(max_connections=None, max_keepalive_connections=None)
    async with httpx2.AsyncClient(
        base_url=given.base_url,
        headers=headers,
        timeout=httpx2.Timeout(REQUEST_TIMEOUT_S, connect=30),
        limits=limits,
        verify=not given.insecure,
        trust_env=False,  # a proxy would be measured along
    ) as http:
        model = await _model(http, given)
        asks = datasets.read(given, lambda: Tokenizer.load(given.tokenizer or model))
        first = Ask(asks[0].prompt, min(asks[0].max_tokens, 4))
        caller = await agree(http, given.endpoint, model, given.body, first)
        caller = replace(caller, id_prefix=given.request_id_prefix)
        if not (caller.stream_options or {}).get("continuous_usage_stats"):
            console.print("the server does not say how many tokens a chunk carries: ITL is one a chunk", style="yellow")
        if given.compare:
            return await _compare(given, caller, asks, console)
        return await _load(given, caller, asks, console)


async def _load(given: argparse.Namespace, caller: Caller, asks: Sequence[Ask], console: Console) -> int:
    file = report.file_of(given, caller.model)
    for ask in asks[: given.num_warmups]:
        await caller.call(ask)
    times_s = load.arrivals_s(len(asks), given.request_rate, given.burstiness, random.Random(given.seed))
    before = figures.read_counters(await _metrics(caller.http))
    with _progress(given, len(asks)) as advance:
        begun_s = time.perf_counter()
        outcomes = await load.run(asks, caller.call, times_s, given.max_concurrency, advance)
        duration_s = time.perf_counter() - begun_s
    after = figures.read_counters(await _metrics(caller.http))
    bounds = figures.parse_goodput(given.goodput)
    found = figures.figures(outcomes, duration_s, goodput_ms=bounds, percentiles=given.metric_percentiles)
    found |= figures.spec_decode(before, after)
    result = report.result(found, outcomes, given, caller.model)
    console.print(report.table(found, given), highlight=False, markup=False)
    output.save(file, result, "--result-filename", appends=given.append_result)
    output.save(given.json, result)
    for target in filter(None, (file, given.json)):
        if target != "-":
            console.print(f"written to {target}", highlight=False)
    if given.plot and found["completed"]:
        plot.draw_times(outcomes, f"{caller.model}, {len(asks)} requests of {given.dataset_name}", given.plot)
    errors = dict.fromkeys(outcome.error for outcome in outcomes if outcome.error)
    for error in list(errors)[:5]:
        console.print(f"failed: {error}", style="red", highlight=False, markup=False)
    if any(error.startswith("429") for error in errors):
        console.print(TOO_MANY, highlight=False)
    return 1 if errors else 0


async def _compare(given: argparse.Namespace, caller: Caller, asks: Sequence[Ask], console: Console) -> int:
    concurrency = given.max_concurrency or 1
    num_rounds = (math.ceil(len(asks) / concurrency) + 1) * len(given.compare)
    with _progress(given, num_rounds) as advance:
        sides = await compare.compare(caller, asks, given.compare, concurrency, advance)
    base = next((side for side in sides if side.mode == "off"), sides[0])
    console.print(compare.table(sides, base))
    for doubt in compare.doubts(sides):
        console.print(doubt, style="yellow", highlight=False)
    found = [side.figures(base) for side in sides]
    result = {"commit": system.commit(), "machine": system.machine(), "arguments": _plain(given), "modes": found}
    output.save(report.file_of(given, caller.model), result, "--result-filename", appends=given.append_result)
    output.save(given.json, result)
    if given.plot:
        title = f"{caller.model}, {len(asks)} prompts of {given.dataset_name}, {concurrency} at a time"
        plot.draw_comparison(found, base.mode, title, given.plot)
    return 0


async def _model(http: httpx2.AsyncClient, given: argparse.Namespace) -> str:
    """The name to ask for; waits until the server answers. Raises Unavailable."""
    until_s = time.monotonic() + given.ready_check_timeout_sec
    while True:
        try:
            response = await http.get("/v1/models")
            response.raise_for_status()
            (first, *_) = response.json()["data"]
        except (httpx2.HTTPError, ValueError, KeyError) as error:
            if time.monotonic() >= until_s:
                reason = str(error) or type(error).__name__
                raise Unavailable(f"{given.base_url} does not say what it serves: {reason}") from None
            await asyncio.sleep(READY_POLL_S)
            continue
        given.tokenizer = given.tokenizer or first.get("root")
        return given.model or str(first["id"])


async def _metrics(http: httpx2.AsyncClient) -> str:
    """The page of metrics, empty where there is none."""
    try:
        response = await http.get("/metrics")
    except httpx2.HTTPError:
        return ""
    return response.text if response.status_code == 200 else ""


@contextlib.contextmanager
def _progress(given: argparse.Namespace, total: int) -> Iterator[Callable[[], None]]:
    """A bar on standard error; what it gives moves it by one."""
    columns = (TextColumn("requests"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), disable=given.disable_tqdm) as progress:
        task = progress.add_task("", total=total)
        yield lambda: progress.advance(task)


def _plain(given: argparse.Namespace) -> dict[str, Any]:
    return json.loads(json.dumps(vars(given), default=str))  # type: ignore[no-any-return]


def main(arguments: Sequence[str] | None = None) -> int:
    given = parse(arguments, __doc__ or "")
    try:
        return asyncio.run(measure(given, output.console(given.json, 130)))
    except httpx2.InvalidURL as error:
        raise InvalidInput("--base-url", given.base_url, f"is no URL: {error}") from None
