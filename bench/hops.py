"""The hops of a round, from the marks that its messages left at the seams (bench/marks.py). Pure.

A round is the way from one draft to the next: the draft goes to the verifier, its verdict comes back, and the drafter
is told. A hop is the time between two seams that follow one another; the two stretches in which a model worked are
cut to what the worker itself counts as work, and the rest of them are hops too. So in mode `sequential` the hops and
the work of a round add up to it exactly.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from bench.marks import ANSWERED, READ, TAKEN, WRITTEN, Mark


class Seam(NamedTuple):
    role: str
    seam: str
    message: str


# In the order in which a round passes them; then the next draft is answered, and the next round begins.
SEAMS = (
    DRAFTED := Seam("drafter", ANSWERED, "Draft"),
    Seam("drafter", WRITTEN, "Draft"),
    Seam("coordinator", READ, "Draft"),
    Seam("coordinator", WRITTEN, "Verify"),
    Seam("verifier", READ, "Verify"),
    TAKEN_IN := Seam("verifier", TAKEN, "Verify"),
    JUDGED := Seam("verifier", ANSWERED, "Verdict"),
    Seam("verifier", WRITTEN, "Verdict"),
    Seam("coordinator", READ, "Verdict"),
    Seam("coordinator", WRITTEN, "Commit"),
    Seam("drafter", READ, "Commit"),
    Seam("drafter", TAKEN, "Commit"),
)
# Hop by hop from each seam to the next one.
NAMES = (
    "drafter: engine to stream",
    "wire: drafter to coordinator",
    "coordinator: draft in, ask out",
    "wire: coordinator to verifier",
    "verifier: stream to engine",
    "verifier: engine beside its pass",
    "verifier: engine to stream",
    "wire: verifier to coordinator",
    "coordinator: verdict in, commit out",
    "wire: coordinator to drafter",
    "drafter: stream to engine",
    "drafter: engine beside drafting",
)


@dataclass(frozen=True, slots=True)
class Round:
    """Milliseconds; `hops` one for each of `NAMES`."""

    hops: tuple[float, ...]
    verify_ms: float
    draft_ms: float

    @property
    def beside_ms(self) -> float:
        """All that is neither drafting nor verifying."""
        return sum(self.hops)


def rounds(marks: Iterable[Mark], request_ids: Collection[str]) -> list[Round]:
    """The rounds of these requests whose every seam was marked, in order.

    A draft that came when the verifier had begun to decode its first token by itself has no round: the pass is not
    its own.
    """
    seen: defaultdict[tuple[str, int], dict[Seam, Mark]] = defaultdict(dict)
    for mark in sorted(marks, key=lambda mark: mark.at_s):
        if mark.request_id in request_ids:
            seen[mark.request_id, mark.start].setdefault(Seam(mark.role, mark.seam, mark.message), mark)
    drafts = sorted((passed[DRAFTED] for passed in seen.values() if DRAFTED in passed), key=lambda mark: mark.at_s)
    return list(_whole(seen, drafts))


def _whole(seen: dict[tuple[str, int], dict[Seam, Mark]], drafts: list[Mark]) -> Iterator[Round]:
    for (request_id, _), passed in seen.items():
        if any(seam not in passed for seam in SEAMS):
            continue
        told_s = passed[SEAMS[-1]].at_s
        following = next((draft for draft in drafts if draft.request_id == request_id and draft.at_s > told_s), None)
        if following is None:
            continue
        times_s = [*(passed[seam].at_s for seam in SEAMS), following.at_s]
        hops = [1e3 * (after_s - before_s) for before_s, after_s in pairwise(times_s)]
        verify_ms, draft_ms = passed[JUDGED].busy_ms, following.busy_ms
        hops[SEAMS.index(TAKEN_IN)] -= verify_ms
        hops[-1] -= draft_ms
        if min(hops[:-1]) >= 0:
            yield Round(tuple(hops), verify_ms, draft_ms)
