"""What a trace is made to say of the gaps in an output, and what is held against the bound."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from bench import failure, overload
from bench.failure import Stretch
from bench.passage import Passage, tell
from paceline.trace import Step

EMIT = {"is": "Emit", "request_id": "r", "token_ids": [7]}


def step(at_s: float, *commands: dict[str, Any], verify_ms: float = 0.0, queue_ms: float = 0.0) -> Step:
    verdict = {"num_tested": 0, "sources": [], "verify_ms": verify_ms, "queue_ms": queue_ms}
    event = {"is": "Verified", "verdict": verdict} if verify_ms else {"is": "Tick"}
    return Step(at_s, event, commands)


def asked(kind: str) -> dict[str, Any]:
    about: dict[str, Any] = {"draft": {"request_id": "r"}} if kind == "Verify" else {"request_id": "r"}
    return {"is": "Ask", "worker": "w", "ask": {"is": kind, **about}}


def test_a_gap_is_told_with_what_it_was_made_of() -> None:
    it = Passage("all", 0.0)
    records = [
        step(1.0, EMIT, asked("Commit"), verify_ms=30),
        step(1.25, asked("Decode")),  # no draft has come
        step(1.75, EMIT, verify_ms=100, queue_ms=350),
        step(1.80, EMIT, verify_ms=30),
    ]
    tell(records, [it])
    gap = it.longest_gap
    assert gap
    assert (gap.request_id, gap.at_s) == ("r", 1.75)
    parts = (gap.whole_s, gap.unasked_s, gap.queue_s, gap.pass_s, gap.rest_s)
    assert parts == pytest.approx((0.75, 0.25, 0.35, 0.1, 0.05))
    assert it.longest_verify_s == pytest.approx(0.45)


def test_what_was_asked_before_the_last_piece_was_not_waited_for() -> None:
    it = Passage("all", 0.0)
    records = [step(1.0, EMIT, verify_ms=30), step(1.39, asked("Verify")), step(1.4, EMIT, verify_ms=300, queue_ms=90)]
    tell(records, [it])
    assert it.longest_gap
    assert it.longest_gap.unasked_s == 0


def test_a_request_that_ended_leaves_no_gap_to_the_next_of_its_name() -> None:
    it = Passage("all", 0.0)
    tell([step(1.0, EMIT, {"is": "Finish", "request_id": "r"}), step(9.0, EMIT)], [it])
    assert it.longest_gap is None


@pytest.mark.parametrize("is_bounded", [True, False])
def test_a_gap_over_the_bound_is_a_miss_where_it_is_promised(is_bounded: bool) -> None:
    it = Stretch("all killed", 0.0, is_bounded=is_bounded)
    tell([step(1.0, EMIT), step(1.5, EMIT, verify_ms=100)], [it])
    assert bool(it.misses(0.25)) is is_bounded
    assert it.misses(0.45) == []


def test_requests_that_failed_or_differ_are_misses_everywhere() -> None:
    it = Stretch("all killed", 0.0, is_bounded=False, num_failed=1, num_different=2)
    assert [miss.partition(": ")[2] for miss in it.misses(1.0)] == ["1 requests failed", "2 outputs differ"]
    assert failure.FAULTS["drafters"].is_bounded
    assert not failure.FAULTS["verifiers"].is_bounded


def test_overload_says_which_of_its_aims_was_missed() -> None:
    def stretches(goodput: float, last: int = 100, **refused: int) -> list[overload.Stretch]:
        over = overload.Stretch("10 times", 160, goodput=goodput, refused=Counter(refused))
        over.memory_bytes["verifier-1"] = [100 << 20, last << 20]
        return [overload.Stretch("capacity", 16, goodput=100.0), over, overload.Stretch("again", 16, goodput=100.0)]

    assert overload.missed(stretches(95.0, Overloaded=9)) == []
    assert "goodput" in overload.missed(stretches(80.0))[0]
    assert "grew" in overload.missed(stretches(95.0, 150))[0]
    assert "failed" in overload.missed(stretches(95.0, Unavailable=1))[0]
