"""What a length policy that knew the outcome would have done: every draft ends exactly before its first rejection.

A run with long drafts of fixed length shows how far each one was accepted. The oracle makes the same rounds with the
same outcomes and leaves out what was wasted: drafting it, and verifying it. So its time is the measured time of that
run less the measured cost of the wasted tokens. It is *computed*, never run, and a bound for what drafts one after
another can reach: it still asks for a draft where not even the first token will be accepted.

Overlapped modes hide drafting behind verification. Their bound is the same rounds with no drafting time at all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from bench.row import Row, Setting
from paceline.length_policy import LengthPolicy

LENGTH = 16  # at 0.85 accepted per tested, one draft in fourteen would be accepted further


def long_drafts(length: int = LENGTH) -> Setting:
    return Setting("long drafts", "sequential", str(LengthPolicy.of("fixed", {"length": length})))


@dataclass(frozen=True, slots=True)
class Totals:
    """Of the run with long drafts. Times in milliseconds, of all requests together."""

    num_tokens: float  # generated
    num_passes: float
    num_drafts: float
    num_drafted: float
    num_accepted: float
    draft_ms: float
    e2e_ms: float

    @classmethod
    def of(cls, long: Row[Setting]) -> Totals:
        names = ("num_target_passes", "num_drafts", "num_draft_tokens", "num_accepted_tokens", "draft_ms", "e2e_ms")
        return cls(long.num_tokens, *(long.total(name) for name in names))


def bound(totals: Totals, verify_ms_per_token: float, *, hidden: bool) -> dict[str, Any]:
    """The oracle's figures, by the names of `Row.figures`; `hidden`: with all drafting behind verification.

    Example: 10 tokens in 2 drafts of 8 at 1 ms a token, 8 accepted, 100 ms in all, 0.5 ms to verify a token more.
    8 of 16 drafted tokens are wasted: 8 * (1 + 0.5) = 12 ms, and 10 tokens in 88 ms are 114 a second. Hidden: also
    without the other 8 ms of drafting, 80 ms.
    """
    wasted = totals.num_drafted - totals.num_accepted
    draft_ms_per_token = totals.draft_ms / totals.num_drafted if totals.num_drafted else 0.0
    spared_ms = wasted * (draft_ms_per_token + verify_ms_per_token)
    if hidden:
        spared_ms += totals.num_accepted * draft_ms_per_token
    per_draft = totals.num_accepted / totals.num_drafts if totals.num_drafts else None
    return {
        "tokens_per_s": 1e3 * totals.num_tokens / (totals.e2e_ms - spared_ms),
        "accepted_per_draft": per_draft,
        "accepted_per_tested": 1.0 if totals.num_accepted else None,
        "wasted_tokens": 0.0,
        "wasted_per_drafted": 0.0,
        "mean_draft_length": per_draft,
        "passes_per_token": totals.num_passes / totals.num_tokens if totals.num_tokens else None,
        "computed": True,
    }
