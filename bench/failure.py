"""Kill, hang and cut off workers under load, and see what the clients notice.

    paceline bench failure --faults drafters,verifiers,link,messages --requests 32

So many requests run all the time, half of them greedy, half sampled with a seed. An undisturbed run without drafters
says first what each must write. Then one fault after another befalls real processes, and a table says for every stretch
of time what came of it: requests that failed, outputs that differ, and the longest gap between two pieces of an output,
as the coordinator sent them and as they came to the clients, who share this machine. Beside it stands the bound: the
longest wait for a draft and the verifier's longest step then, together, from an ask's arrival to the end of its pass. A
gap counts where it ends. The exit code is 1 if a request failed, an output differs, or a gap is longer than its bound;
then the gap is told with what it was made of. (Requests that lose their verifier are prefilled elsewhere, which no wait
for a draft bounds: for those, and for the time in which processes start, gaps are shown and not judged.)

  drafters    each drafter killed and started again in turn, one hung, then all killed, then all started again
  verifiers   one of two killed, started again, and one hung
  link        the drafters' link stalled for 2 s, cut, and 200 ms long
  messages    messages to and from all workers said twice, out of turn, and lost
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bench import options, report
from bench.load import Answer, Ask, Load, asks
from bench.passage import Passage, tell
from bench.pools import Pools, Setup
from paceline.prompts import read_prompts
from paceline.trace import read
from paceline.types import Role, Tokens

STALL_S = 2.0
FAR_RTT_MS = 200
SHARE = 0.05  # of messages that something befalls
MESSAGE_FAULTS = ("repeat", "overtake", "lose")


@dataclass
class Stretch(Passage):
    """A passage, with what the clients saw in it."""

    num_failed: int = 0
    num_different: int = 0
    num_whole: int = 0
    longest_client_gap_s: float = 0.0
    seconds: float = 0.0
    is_bounded: bool = True  # a gap over the bound counts as a failure

    def bound_s(self, wait_s: float) -> float:
        """How long a gap may be if a draft is waited for `wait_s` at most."""
        return wait_s + self.longest_verify_s

    def misses(self, wait_s: float) -> list[str]:
        """What was promised and not kept."""
        found = []
        if self.num_failed:
            found.append(f"{self.num_failed} requests failed")
        if self.num_different:
            found.append(f"{self.num_different} outputs differ")
        if self.longest_gap and self.is_bounded and self.longest_gap_s > self.bound_s(wait_s):
            found.append(f"a gap over the bound of {1e3 * self.bound_s(wait_s):.0f} ms: {self.longest_gap}")
        return [f"{self.name}: {what}" for what in found]

    def figures(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "tokens_per_s": self.num_tokens / self.seconds,
            "whole": self.num_whole,
            "failed": self.num_failed,
            "different": self.num_different,
            "longest_gap_ms": 1e3 * self.longest_gap_s,
            "longest_gap": str(self.longest_gap),
            "longest_client_gap_ms": 1e3 * self.longest_client_gap_s,
            "longest_verify_ms": 1e3 * self.longest_verify_s,
            "acceptance": self.acceptance,
        }


@dataclass
class Run:
    """One set of pools under load; `during` is for what befalls them."""

    pools: Pools
    pause_s: float  # that a stretch lasts
    is_bounded: bool = True  # what befalls them must leave no gap over the bound
    stretches: list[Stretch] = field(default_factory=list)

    async def during(self, name: str, do: Callable[[], object] | None = None) -> None:
        """Begin a stretch with `do`, in a thread, and let it last."""
        self.stretches.append(Stretch(name, time.monotonic(), is_bounded=self.is_bounded))
        if do:
            await asyncio.to_thread(do)
        await asyncio.sleep(self.pause_s)

    async def off_the_record(self, do: Callable[[], object]) -> None:
        """`do` something that is no fault but takes time of the machine, such as to start a process."""
        await self.during("(meanwhile)", do)
        self.stretches[-1].is_bounded = False


async def _drafters(run: Run) -> None:
    pools = run.pools
    names = pools.named(Role.DRAFTER)
    await run.during("undisturbed")
    for name in names:
        await run.during(f"{name} killed", lambda name=name: pools.kill(name))  # type: ignore[misc]
        await run.off_the_record(lambda name=name: pools.start(name))  # type: ignore[misc]
    await run.during(f"{names[0]} hung", lambda: pools.hang(names[0]))
    await run.during(f"{names[0]} goes on", lambda: pools.go_on(names[0]))
    await run.during("all killed", lambda: pools.kill(*names))
    await run.off_the_record(lambda: pools.start(*names))
    await run.during("all started again")


async def _verifiers(run: Run) -> None:
    pools = run.pools
    first, second = pools.named(Role.VERIFIER)
    await run.during("undisturbed")
    await run.during(f"{first} killed", lambda: pools.kill(first))
    await run.off_the_record(lambda: pools.start(first))
    await run.during("both there again")
    await run.during(f"{second} hung", lambda: pools.hang(second))
    await run.during(f"without {second}", lambda: pools.kill(second))


async def _link(run: Run) -> None:
    def tell_all(line: str) -> None:
        for link in run.pools.links.values():
            link.tell(line)

    def stall() -> None:
        tell_all(f"stall_share=1 stall_ms={1e3 * STALL_S:g}")
        time.sleep(0.1)
        tell_all("stall_share=0")

    await run.during("undisturbed")
    await run.during(f"stalled for {STALL_S:g} s", stall)
    await run.during("flowing again")
    await run.during("cut", lambda: tell_all("cut"))
    await run.during(f"{FAR_RTT_MS} ms away", lambda: tell_all(f"rtt_ms={FAR_RTT_MS}"))
    await run.during("near again", lambda: tell_all("rtt_ms=0"))


async def _messages(run: Run) -> None:
    """Lost ones to and from drafters only: what a verifier does not answer is asked again after seconds."""

    def befall(fault: str, *roles: Role) -> None:
        for name, link in run.pools.links.items():
            shares = {each: SHARE if each == fault and name.startswith(roles) else 0 for each in MESSAGE_FAULTS}
            link.tell(" ".join(f"{each}_share={share:g}" for each, share in shares.items()))

    await run.during("undisturbed")
    await run.during(f"{SHARE:.0%} said twice", lambda: befall("repeat", *Role))
    await run.during(f"{SHARE:.0%} out of turn", lambda: befall("overtake", *Role))
    await run.during(f"{SHARE:.0%} of drafters' lost", lambda: befall("lose", Role.DRAFTER))


@dataclass(frozen=True, slots=True)
class Fault:
    """A kind of fault: what is there, and what befalls it."""

    befall: Callable[[Run], Awaitable[None]]
    num_verifiers: int = 1
    num_drafters: int = 2
    behind: Mapping[str, str] = field(default_factory=dict)  # by role; see `bench.pools.Setup`
    is_bounded: bool = True  # no gap may be longer than the bound


FAULTS = {
    "drafters": Fault(_drafters),
    "verifiers": Fault(_verifiers, num_verifiers=2, num_drafters=1, is_bounded=False),
    "link": Fault(_link, behind={Role.DRAFTER: "bytes"}),
    "messages": Fault(_messages, behind={Role.DRAFTER: "messages", Role.VERIFIER: "messages"}),
}


async def measure(kind: str, given: argparse.Namespace) -> list[Stretch]:
    """One kind of fault from start to end."""
    fault = FAULTS[kind]
    with tempfile.TemporaryDirectory() as folder:
        trace = str(Path(folder) / "run.trace")
        setup = Setup(
            given.target,
            given.drafter,
            coordinator=("--trace", trace, "--max-draft-wait-ms", f"{given.wait_ms:g}"),
            behind=fault.behind,
            logs=given.logs,
        )
        with await asyncio.to_thread(Pools, setup) as pools:
            await asyncio.to_thread(pools.start, *(f"verifier-{i + 1}" for i in range(fault.num_verifiers)))
            wanted = asks(read_prompts(given.prompts), given.requests, max_tokens=given.max_tokens, ignore_eos=True)
            expected = await undisturbed(pools.address, wanted)
            await asyncio.to_thread(pools.start, *(f"drafter-{i + 1}" for i in range(fault.num_drafters)))
            run = Run(pools, given.pause_s, fault.is_bounded)
            drafted = [Ask(ask.prompt, {**ask.options, "mode": given.mode}) for ask in wanted]
            async with Load(pools.address, drafted) as load:
                await asyncio.sleep(given.pause_s)
                await fault.befall(run)
            ended_s = time.monotonic()
        tell(read(trace), run.stretches)  # type: ignore[arg-type]
    _tell_what_clients_saw(run.stretches, load.answers, expected, ended_s)
    return run.stretches


async def undisturbed(address: str, wanted: Sequence[Ask]) -> list[Tokens]:
    """What each ask's output must be."""
    plain = [Ask(ask.prompt, {**ask.options, "mode": "off"}) for ask in wanted]
    async with Load(address, plain, again=False) as load:
        answers = sorted(await load.finished(), key=lambda answer: answer.number)
    if failed := next((answer.error for answer in answers if answer.error), None):
        raise failed
    return [tuple(answer.tokens) for answer in answers]


def _tell_what_clients_saw(
    stretches: Sequence[Stretch], answers: Sequence[Answer], expected: Sequence[Tokens], ended_s: float
) -> None:
    def at(time_s: float) -> Stretch:
        """What was before the first stretch counts there."""
        return next((each for each in reversed(stretches) if each.from_s <= time_s), stretches[0])

    for stretch, end_s in zip(stretches, [*(each.from_s for each in stretches[1:]), ended_s], strict=True):
        stretch.seconds = end_s - stretch.from_s
    for answer in answers:
        for came_s, gap_s in answer.gaps():
            stretch = at(came_s)
            stretch.longest_client_gap_s = max(stretch.longest_client_gap_s, gap_s)
        # What was cut off when the load ended must have been right as far as it went.
        is_right = tuple(answer.tokens) == expected[answer.number][: len(answer.tokens)]
        stretch = at(answer.ended_s or ended_s)
        stretch.num_whole += answer.is_whole
        stretch.num_failed += answer.error is not None
        stretch.num_different += not is_right


def show(kind: str, stretches: Sequence[Stretch], given: argparse.Namespace, console: Console) -> None:
    title = f"{kind}: {given.requests} requests at a time, wait bound {given.wait_ms:g} ms"
    table = Table(title=title)
    columns = ("tokens/s", "whole", "failed", "different", "gap ms", "at clients", "bound ms", "acceptance")
    for column in ("", *columns):
        table.add_column(column, justify="right" if column else "left", no_wrap=True)
    for stretch in stretches:
        acceptance = stretch.acceptance
        table.add_row(
            stretch.name,
            f"{stretch.num_tokens / stretch.seconds:.0f}",
            str(stretch.num_whole),
            str(stretch.num_failed),
            str(stretch.num_different),
            f"{1e3 * stretch.longest_gap_s:.0f}",
            f"{1e3 * stretch.longest_client_gap_s:.0f}",
            f"{1e3 * stretch.bound_s(given.wait_ms / 1e3):.0f}",
            "–" if acceptance is None else f"{acceptance:.2f}",
        )
    console.print(table)


def main(arguments: Sequence[str] | None = None) -> int:
    given = parser().parse_args(arguments)
    console = report.console(given)
    figures: dict[str, Any] = {}
    missed: list[str] = []
    for kind in given.faults:
        stretches = asyncio.run(measure(kind, given))
        show(kind, stretches, given, console)
        figures[kind] = [stretch.figures() for stretch in stretches]
        missed += [f"{kind}, {miss}" for stretch in stretches for miss in stretch.misses(given.wait_ms / 1e3)]
    report.tell_missed(missed, console)
    report.write(given, {**figures, "missed": missed})
    return 1 if missed else 0


def parser() -> argparse.ArgumentParser:
    it = report.parser("failure", __doc__)
    it.add_argument("--faults", type=options.names(tuple(FAULTS)), default=tuple(FAULTS))
    it.add_argument("--requests", type=options.count(1), default=32, help="at a time")
    it.add_argument("--max-tokens", type=options.count(1), default=96, help="of each")
    it.add_argument("--pause-s", type=options.positive, default=5.0, help="that a stretch lasts, at least")
    it.add_argument("--wait-ms", type=options.positive, default=250.0, help="longest wait for a draft")
    it.add_argument("--mode", default="pearl")
    return it


if __name__ == "__main__":
    sys.exit(main())
