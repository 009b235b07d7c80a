"""How many replicas a pool should have: pure functions of what is known. Serve adds bounds and delays.

Drafters and verifiers are wanted for different reasons, so neither function sees the other's pool. Both may be asked
many times a second and answer from the present alone; what must not flap is damped by `upscale_delay_s` and
`downscale_delay_s`, and by the gap between the load that calls for one more and the load that lets one go.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from deploy.ray.directory import Entry
from paceline.types import Role

# With one fewer, a verifier must be loaded so much less than what calls for one more.
CALM = 0.7


@dataclass(frozen=True, slots=True)
class Demand:
    """What all coordinators see together."""

    num_running: int = 0
    num_waiting: int = 0  # for a verifier
    num_undrafted: int = 0  # running, and want a drafter that they have not
    num_resting: int = 0  # have a drafter, which draws nothing since it does not pay
    num_speculative: int = 0  # running and waiting, but for those that asked for plain decoding
    num_places: int = 0  # for requests, on the verifiers that are there
    kv_used: float = 0.0  # of their caches, a share, on average
    stall_share: float = 0.0
    verify_ms: float = 0.0

    @classmethod
    def of(cls, entries: Sequence[Entry]) -> Self:
        running = [entry for entry in entries if entry["num_running"]]
        num_running = sum(entry["num_running"] for entry in running)
        # Every coordinator knows every worker, so a verifier's places count once.
        verifiers = {
            worker["address"]: worker
            for entry in entries
            for worker in entry["workers"]
            if worker["role"] == Role.VERIFIER and not worker["is_draining"]
        }.values()
        return cls(
            num_running=num_running,
            num_waiting=sum(entry["num_waiting"] for entry in entries),
            num_undrafted=sum(entry["num_undrafted"] for entry in entries),
            num_resting=sum(entry["num_resting"] for entry in entries),
            num_speculative=sum(entry["num_speculative"] for entry in entries),
            num_places=sum(worker["max_num_seqs"] for worker in verifiers),
            kv_used=sum(worker["kv_used"] for worker in verifiers) / max(1, len(verifiers)),
            stall_share=sum(entry["stall_share"] * entry["num_running"] for entry in running) / max(1, num_running),
            verify_ms=max((entry["verify_ms"] for entry in running), default=0.0),
        )


@dataclass(frozen=True, slots=True)
class DrafterAims:
    """As `arguments.DrafterPool` has them; `share` of all requests is this pool's."""

    requests_per_replica: float
    max_stall_share: float
    share: float = 1.0


def drafters_wanted(demand: Demand, num_held: float, num_replicas: int, aims: DrafterAims) -> int:
    """For a pool that has `num_replicas` now, which hold `num_held` requests together.

    Work is queued drafting: requests that want drafts, less those for which none are drawn; the pool's share of all, or
    what its own drafters hold, if that is more since other pools are away or full. One drafter more is tried
    where verifiers decode by themselves although there are drafters, or where requests wait for a drafter; never more
    than there are requests. Nobody who wants drafts: none. Where drafting pays for nobody one is kept, to be tried.
    """
    if not demand.num_speculative:
        return 0
    num_drafting = max(0.0, aims.share * (demand.num_speculative - demand.num_resting), num_held - demand.num_resting)
    wanted = math.ceil(num_drafting / aims.requests_per_replica)
    is_short = demand.num_undrafted > 0 or demand.stall_share > aims.max_stall_share
    if is_short and num_replicas:
        wanted = max(wanted, num_replicas + 1)
    return max(1, min(wanted, math.ceil(num_drafting)))


@dataclass(frozen=True, slots=True)
class VerifierAims:
    """As `arguments.VerifierPool` has them."""

    max_kv_used: float
    max_load: float
    max_step_ms: float | None = None


def verifiers_wanted(demand: Demand, kv_used: float, num_replicas: int, aims: VerifierAims) -> int:
    """For a pool of `num_replicas` whose KV caches are `kv_used`, a share, on average.

    Pressure is the largest of KV use, load and step time, each against what is aimed at. The queue is a part of the
    load, so a long one calls for several at once, and a short one for one more in any case. One fewer, once the others
    could carry all and be calm.
    """
    if not num_replicas:
        return 1
    pressure = max(kv_used / aims.max_kv_used, _load(demand) / aims.max_load)
    if aims.max_step_ms is not None and demand.num_running:
        pressure = max(pressure, demand.verify_ms / aims.max_step_ms)
    wanted = math.ceil(num_replicas * pressure - 1e-9)
    if demand.num_waiting:
        return max(wanted, num_replicas + 1)
    if wanted > num_replicas:
        return wanted
    if num_replicas > 1 and pressure * num_replicas / (num_replicas - 1) <= CALM:
        return num_replicas - 1
    return num_replicas


def _load(demand: Demand) -> float:
    return (demand.num_running + demand.num_waiting) / demand.num_places if demand.num_places else 0.0
