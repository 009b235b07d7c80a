"""How fast each mode would be: measured on the user's prompts, told to the simulator, and by it for other distances.

Every prompt runs in every mode once. What the coordinator saw of these requests (`AsyncClient.trace`) says how long
passes and drafted tokens took and which were kept, mode by mode: on cores that roles share, drafting slows verifying
down, and only a run that overlaps them shows by how much. The simulator then plays the same requests through the
production core, here and with the drafter further away.
"""

from __future__ import annotations

import secrets
import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from bench.simulator.network import Network
from bench.simulator.recorded import Profile
from bench.simulator.recorded import measure as measure_records
from bench.simulator.scenario import Pool, Scenario
from bench.simulator.scenario import run as simulate
from paceline.client import AsyncClient, Completion
from paceline.plain import to_plain
from paceline.trace import Record, Step
from paceline.types import Mode, StepCost, WorkerInfo

LENGTH, WINDOW = 6, 4
MODES = (Mode.OFF, Mode.SEQUENTIAL, Mode.PEARL, Mode.BRANCH)
NUM_CALLS = 15  # for the round trip
PAYS = 1.05  # over off; less is within what a busy machine varies by
REQUEST_TIMEOUT_S = 300.0

Advance = Callable[[], None]


@dataclass(slots=True)
class Ran:
    """One mode on all prompts."""

    num_tokens: int = 0
    seconds: float = 0.0
    records: list[Record] = field(default_factory=list)

    @property
    def tokens_per_s(self) -> float:
        return self.num_tokens / self.seconds


@dataclass(frozen=True, slots=True)
class Forecast:
    """A mode at a distance."""

    mode: str
    rtt_ms: float  # to the drafter, beyond what there is
    tokens_per_s: float
    speed_up: float  # over off at the same distance
    simulated: float  # tokens/s, before what the mode kept of its promise was taken into account
    measured: float | None = None  # tokens/s of another run, where there was one

    @property
    def ratio(self) -> float | None:
        """Predicted over measured."""
        return self.tokens_per_s / self.measured if self.measured else None

    @property
    def raw_ratio(self) -> float | None:
        """Simulated over measured: what the model by itself is worth, without the correction by a run of the same."""
        return self.simulated / self.measured if self.measured else None

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"predicted_over_measured": self.ratio, "simulated_over_measured": self.raw_ratio}


async def round_trip_ms(client: AsyncClient) -> float:
    """Of a call that needs no worker; the median."""
    taken_s = []
    for _ in range(NUM_CALLS):
        started_s = time.perf_counter()
        await client.model_info()
        taken_s.append(time.perf_counter() - started_s)
    return 1e3 * statistics.median(taken_s)


async def run_all(
    client: AsyncClient, prompts: Sequence[str], modes: Sequence[Mode], max_tokens: int, times: int, advance: Advance
) -> list[dict[Mode, Ran]]:
    """Every prompt in every mode, so many `times`; the first prompt once more before, to warm up.

    The times are run prompt by prompt, and modes in an order that rotates: a busy minute falls on all of them alike.
    """
    ran = [{mode: Ran() for mode in modes} for _ in range(times)]
    for mode in modes:
        await _complete(client, prompts[0], mode, min(16, max_tokens), "")
        advance()
    nonce = secrets.token_hex(4)
    for i, prompt in enumerate(prompts):
        first = i % len(modes)
        for mode in (*modes[first:], *modes[:first]):
            for turn in range(times):
                # Which of the two comes first takes turns, too: the later one finds more in the caches.
                one = ran[(turn + i) % times][mode]
                request_id = f"doctor-{nonce}-{mode}-{i}-{turn}"
                answer = await _complete(client, prompt, mode, max_tokens, request_id)
                one.num_tokens += len(answer.token_ids)
                one.seconds += answer.metrics["e2e_ms"] / 1e3
                one.records += [step for step in await client.trace(request_id) if isinstance(step, Step)]
                advance()
    return ran


async def _complete(client: AsyncClient, prompt: str, mode: Mode, max_tokens: int, request_id: str) -> Completion:
    return await client.complete(
        prompt,
        max_tokens=max_tokens,
        mode=mode,
        length_policy=f"fixed:length={LENGTH}",
        window=WINDOW,
        request_id=request_id,
        timeout_s=REQUEST_TIMEOUT_S,
    )


async def chosen_by_auto(
    client: AsyncClient, prompts: Sequence[str], max_tokens: int, advance: Advance
) -> Counter[str]:
    """Tokens by the mode that the server took by itself; only where its own mode is auto."""
    tokens: Counter[str] = Counter()
    for prompt in prompts:
        answer = await client.complete(prompt, max_tokens=max_tokens, timeout_s=REQUEST_TIMEOUT_S)
        tokens.update(answer.metrics["tokens_by_mode"])
        advance()
    return tokens


def profiles(ran: dict[Mode, Ran], workers: Sequence[WorkerInfo]) -> dict[Mode, Profile]:
    """What the simulator needs to know, by mode. Raises InvalidInput if too little was recorded."""
    up = [
        Step(0.0, {"is": "WorkerUp", "worker": f"{worker.role}-{i}", "info": to_plain(worker)}, [])
        for i, worker in enumerate(workers)
    ]
    return {mode: measure_records([*up, *one.records]) for mode, one in ran.items()}


def forecasts(found: dict[Mode, Profile], ran: dict[Mode, Ran], rtts_ms: Sequence[float]) -> list[Forecast]:
    """Every mode at every distance beyond the present one.

    No simulation knows of cores that roles share. So what a mode made of its prompts here, over what the simulator
    makes of the same prompts here, corrects what it says of other distances; here itself the two agree by that.
    """
    kept = {
        mode: ran[mode].tokens_per_s / simulate(_scenario(profile, mode, 0.0)).tokens_per_s
        for mode, profile in found.items()
    }
    rows = []
    for rtt_ms in rtts_ms:
        told = {mode: simulate(_scenario(profile, mode, rtt_ms)).tokens_per_s for mode, profile in found.items()}
        rates = {mode: rate * kept[mode] for mode, rate in told.items()}
        rows += [Forecast(mode, rtt_ms, rate, rate / rates[Mode.OFF], told[mode]) for mode, rate in rates.items()]
    return rows


def _scenario(profile: Profile, mode: Mode, rtt_ms: float) -> Scenario:
    """One request at a time, as it was measured."""
    nothing = StepCost(0, 0, 0, 0)
    far = Network(rtt_ms / 2e3, is_ordered=True)
    scenario = profile.apply(
        Scenario(
            mode=mode,
            length=LENGTH,
            window=WINDOW,
            verifiers=Pool(1, nothing, network=Network(0.0, is_ordered=True)),
            drafters=Pool(1, nothing, network=far),
        )
    )
    return replace(scenario, load=replace(scenario.load, num_requests=len(profile.requests)))


def best_of(rows: Sequence[Forecast], rtt_ms: float = 0.0) -> Forecast:
    """The fastest at a distance; `off` unless another is faster by more than chance."""
    here = [row for row in rows if row.rtt_ms == rtt_ms]
    fastest = max(here, key=lambda row: row.tokens_per_s)
    return fastest if fastest.speed_up >= PAYS else next(row for row in here if row.mode == Mode.OFF)


def advice(rows: Sequence[Forecast]) -> str:
    """What to do, in a sentence or two."""
    best = best_of(rows)
    drafting = [row for row in rows if row.mode != Mode.OFF]
    if not drafting:
        return "There is no drafter, so there is nothing to choose: requests are decoded plainly."
    if best.mode == Mode.OFF:
        nearest = max((row for row in drafting if row.rtt_ms == 0), key=lambda row: row.speed_up)
        return (
            f"Remote drafting does not pay here: {nearest.mode}, the best of it, makes {nearest.speed_up:.2f} times "
            f"the tokens of plain decoding ({100 * (nearest.speed_up - 1):+.0f} %). Serve with --mode off, or find a "
            "drafter that is faster or more often right."
        )
    lost = sorted({row.rtt_ms for row in rows if best_of(rows, row.rtt_ms).mode == Mode.OFF})
    worst = max((row for row in drafting if lost and row.rtt_ms == lost[0]), key=lambda row: row.speed_up, default=None)
    until = (
        f" With the drafter {lost[0]:g} ms further away it no longer pays: {worst.speed_up:.2f} times at best."
        if worst
        else ""
    )
    return (
        f"Remote drafting pays: --mode {best.mode} makes {best.speed_up:.2f} times the tokens of plain decoding "
        f"({best.tokens_per_s:.0f} a second).{until} --mode auto finds the same by itself, and follows changes."
    )
