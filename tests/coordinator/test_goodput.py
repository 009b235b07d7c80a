"""What a verifier's requests have kept of what was promised, all together."""

from __future__ import annotations

import pytest

from coordinator.core.goodput import Goodput
from coordinator.core.passes import PassTimes
from paceline.types import StepCost


def test_those_that_do_not_speculate_pay_for_those_that_do() -> None:
    goodput = Goodput()
    for _ in range(200):
        for _ in range(3):
            goodput.kept(16, 16, 4, is_drafted=True)
        goodput.kept(8, 16, 4, is_drafted=False)
    assert goodput.drafted == pytest.approx(56 / 64, abs=0.02)
    assert goodput.plain == 1, "decoding beside it is not plain"


def test_one_that_tries_in_a_crowd_says_nothing_of_what_all_would_yield() -> None:
    goodput = Goodput()
    for _ in range(200):
        for _ in range(31):
            goodput.kept(16, 16, 32, is_drafted=False)
        goodput.kept(16, 32, 32, is_drafted=True)
    assert goodput.drafted == 1


def test_prompts_are_nobodys_fault() -> None:
    passes = PassTimes(StepCost(16.0, 0.33, 0.0, 0.0))
    before_s = passes.goodput.prompts_s
    passes.opened(100, 16)
    assert passes.goodput.decoding_s(0.1, before_s) == pytest.approx(0.1 - 0.033)
    passes.opened(10_000, 16)
    assert passes.goodput.decoding_s(0.1, before_s) > 0.02, "only an estimate: something is left"
