"""`paceline demo`: the main job on this machine, and the proof that it changes nothing but the speed.

Coordinator, drafter and verifier run as three processes. The target is the demo target expanded: a model that
computes the same and costs as much as a larger one, so that drafting and verifying take times as they do for real
pairs. Then the pair as it is, in float32, shows that all modes write the same tokens.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from deploy import options
from deploy.checks import check_pair
from deploy.comparison import Advance, Run, Setting, differing, figures, measure
from deploy.comparison import run as run_one
from deploy.demo_models import DRAFTER, TARGET, default_cache, expand, expanded_folder
from deploy.demo_report import Job, Pass, millions, report, table, tell_flips
from deploy.local import Supervisor
from deploy.model_free import is_model_free
from deploy.options import Parser
from deploy.paint import Painter, legend, summary
from deploy.serve import Plan, start
from paceline.client import AsyncClient
from paceline.length_policy import LengthPolicy
from paceline.prompts import question, read_prompts
from paceline.types import Mode

# The best of those tried on two cores with the demo pair (docs/benchmarks.md).
SEQUENTIAL_POLICY = "fixed:length=8"
PEARL_POLICY = "fixed:length=6"
PEARL_WINDOW = 4
DRAFTER_DTYPE = "float32"  # a model this small gains nothing from bfloat16 on a CPU, it loses
TARGET_SIZE = "90M"
NUM_STREAMED = 2  # answers shown as they come; they are the warm-up too
# The demo is to end within 90 s on two cores, however busy; prompts that do not fit in are left out, and it says so.
DEADLINE_S, CHECK_S = 84.0, 12.0

QUESTIONS = (
    "A baker makes 12 loaves every hour for 6 hours and sells 50 of them. How many loaves are left?",
    "Nora has 3 boxes with 24 pencils each. She gives 17 pencils to her brother. How many pencils does she keep?",
    "A train ticket costs $8 and a bus ticket costs half as much. How much do 5 train tickets and 2 bus tickets cost?",
    "Sam reads 15 pages a day. His book has 180 pages, and he has read 60 already. How many more days does he need?",
    "A farmer has 40 hens. Each hen lays 5 eggs a week. How many dozen eggs does he get in 3 weeks?",
    "Mia earns $11 an hour and works 7 hours a day. How much does she earn in 5 days?",
    "There are 90 seats on a bus. A third of them are empty, and 12 more people get on. How many seats are taken now?",
    "Leo saves $20 a month for a year and then spends $95 on a bicycle. How much money does he have left?",
)


def run(argv: Sequence[str]) -> int:
    values = parser().parse(argv, os.environ)
    check_pair(values.target, values.drafter)
    console = Console(stderr=values.json, highlight=False, markup=False, emoji=False)
    return asyncio.run(_demo(_job(values), console, as_json=values.json))


async def _demo(job: Job, console: Console, *, as_json: bool) -> int:
    begun_s = time.perf_counter()
    expanded = expanded_folder(job.target, job.size, job.cache)
    if not expanded.is_dir():
        console.print(f"Expanding {job.target.name} to about {job.size} parameters (once; kept in {job.cache}) …")
        await expand(job.target, job.size, expanded)
    console.print(
        f"Target: {job.target.name}, {millions(job.target)}, expanded to {millions(expanded)} parameters. The copy "
        "computes the same, so it answers like the small model and costs like the large one.\n"
        f"Drafter: {_described(job)}, one thread each.",
        soft_wrap=True,
    )
    fast = await _timed(job, expanded, console, begun_s + DEADLINE_S)
    rows = {mode: figures(runs, fast.runs[Mode.OFF]) for mode, runs in fast.runs.items()}
    console.print(table(rows, job, expanded, len(fast.runs[Mode.OFF])))
    flipped = differing(fast.runs)
    tell_flips(console, flipped, job.dtype)
    exact = await _checked(job, console, begun_s + DEADLINE_S)
    wrong = differing(exact.runs)
    count = len(exact.runs[Mode.OFF])
    if wrong:
        console.print(f"NOT LOSSLESS: {len(wrong)} of {count} answers differ between modes in float32.", style="red")
    else:
        tokens = sum(len(one.completion.token_ids) for one in exact.runs[Mode.OFF])
        console.print(f"Lossless: {count} answers ({tokens} tokens) are the same in every mode, token for token.")
    seconds = time.perf_counter() - begun_s
    console.print(f"The demo took {seconds:.0f} s.", style="dim")
    if as_json:
        print(json.dumps(report(job, fast, rows, expanded, wrong, flipped, seconds)), flush=True)
    return 1 if wrong else 0


def _described(job: Job) -> str:
    if is_model_free(str(job.drafter)):
        return f"{job.drafter}, no model. The target in {job.dtype}"
    return f"{job.drafter.name}, {millions(job.drafter)} parameters. Both in {job.dtype}"


async def _timed(job: Job, expanded: Path, console: Console, deadline_s: float) -> Pass:
    """A few answers in colour, then the comparison on the expanded target."""
    starting_s = time.perf_counter()
    async with _processes(expanded, job.drafter, job.dtype, console) as (supervisor, client):
        start_s = time.perf_counter() - starting_s
        for setting in job.settings:
            await run_one(client, job.prompts[0], setting, max_tokens=8)
        console.print(legend(), soft_wrap=True)
        for prompt in job.prompts[:NUM_STREAMED]:
            await _stream(client, prompt, job, console)
        # The check that follows starts its processes anew.
        within_s = deadline_s - time.perf_counter() - start_s - CHECK_S
        return Pass(await _measure(job, client, console, "comparing the modes", within_s), len(supervisor.children))


async def _checked(job: Job, console: Console, deadline_s: float) -> Pass:
    """The same prompts on the pair as it is, in float32, where rounding cannot turn a near-tie."""
    console.print("Is it lossless? The pair as it is, unexpanded, in float32, in every mode:")
    async with _processes(job.target, job.drafter, "float32", console) as (supervisor, client):
        within_s = deadline_s - time.perf_counter()
        return Pass(await _measure(job, client, console, "checking", within_s), len(supervisor.children))


async def _measure(
    job: Job, client: AsyncClient, console: Console, what: str, within_s: float
) -> dict[Mode, list[Run]]:
    with _progress(console, what, len(job.prompts) * len(job.settings)) as advance:
        runs = await measure(
            client, job.prompts, job.settings, max_tokens=job.max_tokens, within_s=within_s, advance=advance
        )
    left_out = len(job.prompts) - len(runs[Mode.OFF])
    if left_out:
        console.print(f"{left_out} of {len(job.prompts)} prompts are left out: this machine is too busy for them.")
    return runs


@contextlib.asynccontextmanager
async def _processes(
    target: Path, drafter: Path, dtype: str, console: Console
) -> AsyncIterator[tuple[Supervisor, AsyncClient]]:
    async with Supervisor(log=lambda line: console.print(line, style="dim", soft_wrap=True)) as supervisor:
        console.print("Starting coordinator, drafter and verifier, a process each …", style="dim")
        quiet = ("--log-level", "error")
        engine = ("--kv-cache-memory", "64MiB", *quiet)
        plan = Plan(
            str(target),
            str(drafter),
            coordinator=quiet,
            verifier=("--dtype", dtype, *engine),
            drafters=("--dtype", DRAFTER_DTYPE, *engine),
            start_timeout_s=120,
        )
        async with AsyncClient(await start(supervisor, plan)) as client:
            yield supervisor, client


async def _stream(client: AsyncClient, prompt: str, job: Job, console: Console) -> None:
    console.print(f"\n{prompt}", style="bold", soft_wrap=True)
    painter, setting = Painter(console), job.settings[-1]
    async for chunk in client.generate(
        prompt, max_tokens=job.max_tokens, mode=setting.mode, length_policy=setting.policy, window=setting.window
    ):
        painter.push(chunk)
        if chunk.finish_reason and chunk.metrics:
            painter.finish()
            console.print(summary(chunk.metrics, chunk.finish_reason) + "\n", style="dim", soft_wrap=True)


@contextlib.contextmanager
def _progress(console: Console, what: str, count: int) -> Iterator[Advance]:
    if not console.is_terminal:
        console.print(f"{what} …")
        yield lambda: None
        return
    # Drawn only when something has happened: both cores are at work on what is measured.
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=console, transient=True, auto_refresh=False) as progress:
        task = progress.add_task("", total=count)
        progress.refresh()

        def advance() -> None:
            progress.update(task, advance=1, refresh=True)

        yield advance


def _job(values: argparse.Namespace) -> Job:
    return Job(
        target=Path(values.target),
        drafter=Path(values.drafter),
        prompts=tuple(read_prompts(values.prompts) if values.prompts else map(question, QUESTIONS)),
        settings=(
            Setting(Mode.OFF, LengthPolicy(), 1),
            Setting(Mode.SEQUENTIAL, values.sequential_length_policy, 1),
            Setting(Mode.PEARL, values.pearl_length_policy, values.window),
            Setting(Mode.BRANCH, values.pearl_length_policy, values.window),
        ),
        max_tokens=values.max_tokens,
        dtype=_dtype(values.dtype),
        size=values.target_size,
        cache=Path(values.cache).expanduser() if values.cache else default_cache(),
    )


def _dtype(name: str) -> str:
    if name != "auto":
        return name
    from paceline.engine.dtype import fastest  # torch

    return fastest("cpu")


def parser() -> Parser:
    it = Parser(
        "demo",
        """See it work: a real pair of models in three processes on this machine, every mode side by side.

Streams a few answers, compares the modes off, sequential, pearl and branch on the same prompts, and checks that all
of them write the same tokens. Takes about a minute on two cores. Everything needed is in the checkout.

  paceline demo
  paceline demo --json | tail -1 | python -m json.tool""",
    )
    what = it.group("what")
    what.add("--max-tokens", kind=options.whole(1, 512), default=64, metavar="N", help="tokens an answer")
    what.add(
        "--prompts",
        kind=options.text,
        shown=f"{len(QUESTIONS)} of our own",
        metavar="FILE",
        help="a JSONL file of prompts, as for generate; those that do not fit into the time are left out",
    )
    what.add(
        "--json",
        kind=options.boolean,
        default=False,
        help="print the figures as one JSON object, the last line; all else goes to standard error",
    )
    _add_models(it)
    _add_drafting(it)
    return it


def _add_models(parser: Parser) -> None:
    models = parser.group("models")
    models.add("--target", kind=options.text, default=str(TARGET), shown="the demo's", metavar="DIR", help="a target")
    models.add(
        "--drafter",
        kind=options.text,
        default=str(DRAFTER),
        shown="the demo's",
        metavar="DIR",
        help="its drafter: a model, or prompt-lookup or suffix, which need none",
    )
    models.add(
        "--target-size",
        kind=options.text,
        default=TARGET_SIZE,
        metavar="N",
        help="parameters to expand the target to: 29M, 90M or 212M for the demo's",
    )
    models.add(
        "--dtype",
        kind=options.dtype,
        default="auto",
        metavar="TYPE",
        help="of the target in the comparison; auto is the faster one here; the check that follows is in float32",
    )
    models.add(
        "--cache",
        kind=options.text,
        shown=".demo in the checkout",
        metavar="DIR",
        help="where the expanded target is kept (about 180 MB)",
    )


def _add_drafting(parser: Parser) -> None:
    drafting = parser.group("drafting")
    drafting.add(
        "--sequential-length-policy",
        kind=options.policy,
        default=LengthPolicy.parse(SEQUENTIAL_POLICY),
        metavar="NAME:KEY=VALUE,…",
        help="when a draft ends in mode sequential",
    )
    drafting.add(
        "--pearl-length-policy",
        kind=options.policy,
        default=LengthPolicy.parse(PEARL_POLICY),
        metavar="NAME:KEY=VALUE,…",
        help="when a draft ends in the modes pearl and branch",
    )
    drafting.add(
        "--window",
        kind=options.whole(1, 64),
        default=PEARL_WINDOW,
        metavar="N",
        help="drafts unverified at a time in the modes pearl and branch",
    )
