"""`paceline generate`: prompts to a running coordinator, answers to the terminal or as JSON."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from deploy import options, sampling_options
from deploy.connection import add_credentials, add_server, client_of
from deploy.options import Parser
from deploy.paint import Painter, legend, summary
from paceline.client import AsyncClient, Chunk, Options
from paceline.errors import InvalidInput, PacelineError, PeerFault, Unavailable
from paceline.prompts import SHAPES, read_prompts
from paceline.types import Tokens, TopLogprobs

FEW = 4  # prompts; for more a progress bar is shown


@dataclass(slots=True)
class Answer:
    """One prompt's output as far as it has come, and what became of it."""

    text: str = ""
    token_ids: Tokens = ()
    finish_reason: str = ""
    request_id: str = ""
    metrics: dict[str, Any] | None = None
    logprobs: tuple[float, ...] = ()  # one a token, if they were asked for
    top_logprobs: tuple[TopLogprobs, ...] = ()  # likewise
    error: PacelineError | None = None

    def take(self, chunk: Chunk) -> None:
        self.text += chunk.text
        self.token_ids += chunk.token_ids
        self.request_id = self.request_id or chunk.request_id
        self.logprobs += chunk.logprobs
        self.top_logprobs += chunk.top_logprobs
        if chunk.finish_reason:
            self.finish_reason, self.metrics = chunk.finish_reason, chunk.metrics

    def to_json(self) -> str:
        told: dict[str, Any] = {"text": self.text, "token_ids": self.token_ids}
        if self.error:  # what had come until then is the caller's to use, or to look into
            told = {"error": str(self.error)} | told | {"request_id": self.request_id}
        else:
            told |= {"finish_reason": self.finish_reason, "request_id": self.request_id, "metrics": self.metrics}
        if self.logprobs:
            told["logprobs"] = self.logprobs
        if self.top_logprobs:
            told["top_logprobs"] = [asdict(one) for one in self.top_logprobs]
        return json.dumps(told)


def run(argv: Sequence[str]) -> int:
    values = parser().parse(argv, os.environ)
    if (values.prompt is None) == (values.prompts is None):
        raise options.UsageError("--prompt, --prompts: give exactly one of them")
    # The same checks as the server's, before anything is sent: a wrong option is wrong for every prompt.
    sampling_options.given(values)
    prompts = [values.prompt] if values.prompts is None else read_prompts(values.prompts)
    return asyncio.run(_generate(prompts, values))


async def _generate(prompts: Sequence[str], values: argparse.Namespace) -> int:
    output = Console(highlight=False, markup=False, emoji=False)
    notes = Console(stderr=True, highlight=False, markup=False, emoji=False)
    async with client_of(values) as client:
        await _check_server(client, ", ".join(values.server))
        # Answers that come at the same time cannot be streamed to one terminal at the same time.
        streams = not values.json and (values.concurrency == 1 or len(prompts) == 1)
        if not values.json and output.is_terminal:
            notes.print(legend(), soft_wrap=True)
        show = _Show(prompts, output, notes, as_json=values.json, has_streamed=streams)
        with _progress(notes, len(prompts), is_shown=not streams) as advance:

            async def one(i: int) -> None:
                painter = Painter(output) if streams else None
                if painter:
                    show.heading(i)
                show.put(i, await _answer(client, prompts[i], values, painter.push if painter else _ignore))
                advance()

            await _for_each(range(len(prompts)), one, values.concurrency)
    if values.prompts is None and show.errors:
        if values.json:
            return 2 if isinstance(show.errors[0], InvalidInput) else 1
        raise show.errors[0]
    return 1 if show.errors else 0


class _Show:
    """Prints answers in the order of their prompts, each as soon as all before it are there."""

    def __init__(
        self, prompts: Sequence[str], output: Console, notes: Console, *, as_json: bool, has_streamed: bool
    ) -> None:
        self.errors: list[PacelineError] = []
        self._prompts, self._output, self._notes = prompts, output, notes
        self._as_json, self._has_streamed = as_json, has_streamed
        self._early: dict[int, Answer] = {}
        self._next = 0

    def heading(self, i: int) -> None:
        if len(self._prompts) > 1:
            self._notes.print(
                f"\n[{i + 1}/{len(self._prompts)}] {self._prompts[i].strip()}", style="bold", soft_wrap=True
            )

    def put(self, i: int, answer: Answer) -> None:
        self._early[i] = answer
        while self._next in self._early:
            self._print(self._next, self._early.pop(self._next))
            self._next += 1

    def _print(self, i: int, answer: Answer) -> None:
        if answer.error:
            self.errors.append(answer.error)
        if self._as_json:
            print(answer.to_json(), flush=True)
            return
        if not self._has_streamed:
            self.heading(i)
            _print_whole(self._output, answer)
        if answer.metrics or answer.text:
            Painter(self._output).finish()
        if answer.metrics:
            figures = summary(answer.metrics, answer.finish_reason)
            self._notes.print(f"{figures} · request {answer.request_id}", style="dim", soft_wrap=True)
        elif answer.error and len(self._prompts) > 1:
            self._notes.print(f"prompt {i + 1}: {answer.error}", style="red", soft_wrap=True)


def _print_whole(console: Console, answer: Answer) -> None:
    Painter(console).push(Chunk(answer.text, (), (), (), None, None, ""))


def _ignore(_: Chunk) -> None:
    pass


async def _check_server(client: AsyncClient, address: str) -> None:
    try:
        await client.model_info()
    except Unavailable as error:
        fix = "start one with `paceline serve`, or give the address of one with --server"
        raise Unavailable(f"no coordinator answers at {address}: {fix} ({error})") from None


async def _answer(
    client: AsyncClient, prompt: str, values: argparse.Namespace, push: Callable[[Chunk], None]
) -> Answer:
    given: Options = {
        "max_tokens": values.max_tokens,
        **sampling_options.given(values),
        "stop": values.stop,
        "ignore_eos": values.ignore_eos,
        "mode": values.mode,
        "rule": values.rule,
        "length_policy": values.length_policy,
        "max_draft_length": values.max_draft_length,
        "window": values.window,
        "timeout_s": values.timeout,
    }
    answer = Answer()
    try:
        async for chunk in client.generate(prompt, **given):
            answer.take(chunk)
            push(chunk)
        if not answer.finish_reason:
            raise PeerFault("the coordinator ended the stream without a finish reason")
    except PacelineError as error:
        answer.error = error
    return answer


async def _for_each(indices: Sequence[int], one: Any, concurrency: int) -> None:
    """Call `one` for every index, `concurrency` at a time."""
    remaining = iter(indices)

    async def work() -> None:
        for i in remaining:  # shared: each index goes to one worker
            await one(i)

    async with asyncio.TaskGroup() as tasks:
        for _ in range(min(concurrency, len(indices))):
            tasks.create_task(work())


@contextlib.contextmanager
def _progress(console: Console, count: int, *, is_shown: bool) -> Iterator[Callable[[], None]]:
    if not (is_shown and count > FEW and console.is_terminal):
        yield lambda: None
        return
    columns = (TextColumn("prompts"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=count)
        yield lambda: progress.advance(task)


def parser() -> Parser:
    it = Parser(
        "generate",
        """Send prompts to a running coordinator and stream what comes back.

On a terminal each token has the colour of where it came from: drafted and accepted, recovered, bonus, self-decoded.
Text goes to standard output, figures to standard error.

  paceline generate --server 127.0.0.1:50051 --prompt "Once upon a time" --max-tokens 32
  paceline generate --server 127.0.0.1:50051 --prompts dev.jsonl --concurrency 8 --temperature 1 --json > out.jsonl""",
    )
    what = it.group("what")
    add_server(what)
    what.add("--prompt", kind=options.text, metavar="TEXT", help="one prompt")
    what.add(
        "--prompts",
        kind=options.text,
        metavar="FILE",
        help=f"a JSONL file with one prompt a line: {SHAPES}. A question Q becomes 'Question: Q\\nAnswer:', which is "
        "how the demo models were trained; of turns the first is taken",
    )
    what.add("--max-tokens", kind=options.whole(1), default=128, metavar="N", help="tokens to generate at most")
    what.add(
        "--stop",
        kind=options.text,
        many=True,
        default=(),
        shown="none",
        metavar="TEXT",
        help="end before any of these texts",
    )
    what.add(
        "--ignore-eos", kind=options.boolean, default=False, help="go on after the end-of-sequence token, to measure"
    )
    sampling_options.add(it)
    _add_decoding(it)
    _add_running(it)
    add_credentials(it)
    return it


def _add_decoding(parser: Parser) -> None:
    decoding = parser.group("decoding", "Left out, these are the server's choice.")
    decoding.add(
        "--mode", kind=options.mode, shown="the server's", metavar="MODE", help="off, sequential, pearl, branch or auto"
    )
    decoding.add(
        "--rule", kind=options.rule, shown="the server's", metavar="RULE", help="match, coupled, token, block or auto"
    )
    decoding.add(
        "--length-policy",
        kind=options.policy,
        shown="the server's",
        metavar="NAME:KEY=VALUE,…",
        help="when a draft ends, such as fixed:length=8 or svip:threshold_nats=0.6",
    )
    decoding.add(
        "--max-draft-length",
        kind=options.whole(1, 64),
        shown="the policy's",
        metavar="N",
        help="tokens in a draft at most, whatever the policy, or auto, would choose",
    )
    decoding.add(
        "--window",
        kind=options.whole(1, 64),
        shown="the server's",
        metavar="N",
        help="drafts unverified at a time in the modes pearl and branch",
    )


def _add_running(parser: Parser) -> None:
    running = parser.group("running")
    running.add(
        "--concurrency", kind=options.whole(1, 512), default=1, metavar="C", help="prompts sent at the same time"
    )
    running.add(
        "--timeout",
        kind=options.number(0.001, 86400),
        default=600,
        metavar="S",
        help="seconds a prompt may take, waiting included",
    )
    running.add(
        "--json",
        kind=options.boolean,
        default=False,
        help="print one JSON object a prompt, in their order: text, token_ids, finish_reason, request_id (which "
        "`paceline trace` takes) and metrics; or error, with what had come until then",
    )
