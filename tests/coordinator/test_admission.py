"""Which drafters are taken in, and what the others are told."""

from __future__ import annotations

from dataclasses import replace

import pytest

from coordinator.admission import MAX_REFUSED, RETRY_S, Admission
from coordinator.core.placement import Pools
from paceline.errors import Unhelpful
from paceline.types import Role, StepCost, WorkerInfo

RTT_S = 0.001


def info(role: Role, ms: float | None, incarnation: int = 1) -> WorkerInfo:
    cost = None if ms is None else StepCost(ms, 0.0, 0.0, 0.0)
    one = WorkerInfo(role, f"h:{1 + (role is Role.DRAFTER)}", 1, "m", "", "", 50, 99, 4, (), "float32", "cpu", cost)
    return replace(one, incarnation=incarnation)


def admission(*verifiers_ms: float | None, admits_any: bool = False) -> Admission:
    pools = Pools()
    for i, ms in enumerate(verifiers_ms):
        pools.join(f"v{i}", info(Role.VERIFIER, ms))
    return Admission(pools, admits_any=admits_any)


def test_one_that_can_help_a_single_verifier_is_taken_in() -> None:
    it = admission(5.0, 40.0)
    assert it.admits(info(Role.DRAFTER, 20.0), RTT_S, 0.0)
    assert not it.num_refused(0.0)


def test_one_that_can_help_none_is_refused_with_the_figures_and_told_when_to_come_back() -> None:
    it, drafter = admission(5.0, 40.0), info(Role.DRAFTER, 60.0)
    with pytest.raises(Unhelpful, match=r"drafter='m': takes 60\.0 ms a token and 1\.0 ms.*15\.4 s.*10\.2 s") as caught:
        it.admits(drafter, RTT_S, 0.0)
    assert caught.value.retry_after_s == RETRY_S
    assert it.num_refused(0.0) == 1
    with pytest.raises(Unhelpful, match=r"60\.0 ms"):
        it.check(drafter, RTT_S + 0.9 * RETRY_S)
    it.check(drafter, 1.1 * RETRY_S)
    it.check(replace(drafter, incarnation=2), 0.0)
    assert it.refusals[Role.DRAFTER, "unhelpful"] == 1


def test_the_way_to_it_counts() -> None:
    with pytest.raises(Unhelpful, match=r"12000\.0 ms there and back"):
        admission(40.0).admits(info(Role.DRAFTER, 1.0), 12.0, 0.0)


def test_without_a_verifier_it_waits_and_with_one_that_has_not_been_measured_it_may_help() -> None:
    assert not admission().admits(info(Role.DRAFTER, 60.0), RTT_S, 0.0)
    assert admission(None).admits(info(Role.DRAFTER, 60.0), RTT_S, 0.0)
    assert admission(10.0).admits(info(Role.DRAFTER, None), RTT_S, 0.0), "one without a model has no cost"


def test_whoever_is_to_be_taken_in_all_the_same_is_and_a_verifier_always() -> None:
    assert admission(5.0, admits_any=True).admits(info(Role.DRAFTER, 60.0), RTT_S, 0.0)
    assert admission(admits_any=True).admits(info(Role.DRAFTER, 60.0), RTT_S, 0.0)
    assert admission().admits(info(Role.VERIFIER, 60.0), None, 0.0)


def test_when_the_verifiers_change_all_are_judged_anew() -> None:
    it, drafter = admission(5.0), info(Role.DRAFTER, 60.0)
    with pytest.raises(Unhelpful):
        it.admits(drafter, RTT_S, 0.0)
    changed = it.changed()
    it.verifiers_changed()
    assert changed.is_set()
    assert not it.changed().is_set()
    it.check(drafter, 0.1)


def test_what_is_remembered_of_the_refused_is_bounded() -> None:
    it = admission(5.0)
    for i in range(MAX_REFUSED + 10):
        with pytest.raises(Unhelpful):
            it.admits(info(Role.DRAFTER, 60.0, incarnation=i), RTT_S, 0.0)
    assert it.num_refused(0.0) == MAX_REFUSED
