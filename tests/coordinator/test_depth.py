"""The window of a mode that is given: what a pass and a round trip hold, and no more."""

from __future__ import annotations

from typing import Any

import pytest

from bench.simulator.network import Network
from bench.simulator.scenario import Load, Pool, Scenario
from bench.simulator.scenario import run as simulate
from coordinator.core.depth import FIRST_WINDOW
from paceline.types import Mode, StepCost
from tests.coordinator.test_planner import planner
from tests.world import World

VERIFY = StepCost(16.0, 0.33, 0.0, 0.0)


def rate(window: int | None, mode: Mode = Mode.PEARL, length: int = 6, **given: Any) -> float:
    """Tokens a second of a few requests."""
    concurrency = given.get("concurrency", 1)
    outcome = simulate(
        Scenario(
            mode=mode,
            length=length,
            window=window,
            acceptance=given.get("acceptance", 0.95),
            verifiers=Pool(1, VERIFY, network=Network(0.0001, is_ordered=True)),
            drafters=Pool(1, StepCost(1.3, 0, 0, 0), network=Network(given["rtt_ms"] / 2e3, is_ordered=True)),
            load=Load(num_requests=max(8, 2 * concurrency), concurrency=concurrency),
        )
    )
    return outcome.num_tokens / outcome.seconds


@pytest.mark.parametrize("mode", [Mode.PEARL, Mode.BRANCH])
@pytest.mark.parametrize(("length", "rtt_ms", "gain"), [(6, 100, 1.1), (2, 30, 1.4), (2, 0.2, 1.1)])
def test_a_far_or_a_short_drafting_pair_is_given_more(mode: Mode, length: int, rtt_ms: float, gain: float) -> None:
    met: Any = {"mode": mode, "length": length, "rtt_ms": rtt_ms}
    chosen = rate(None, **met)
    assert chosen > gain * rate(FIRST_WINDOW, **met)
    assert chosen > 0.9 * max(rate(window, **met) for window in (2, 8, 16))


def test_a_crowd_keeps_the_verifier_busy_by_itself() -> None:
    """Whatever is drafted beyond a pass is verified in vain, and lengthens the passes of all."""
    met: Any = {"acceptance": 0.6, "rtt_ms": 10, "concurrency": 16}
    assert rate(None, **met) > 1.3 * rate(FIRST_WINDOW, **met)


def test_a_window_that_is_named_stands() -> None:
    world = World(3, network=Network(0.05))
    world.verifier()
    world.drafter(agreement=0.95)
    named, open_ = world.request("a", window=3, length=2), world.request("b", window=None, length=2)
    world.run()
    assert named.metrics is not None
    assert open_.metrics is not None
    assert named.metrics.window == 3
    assert open_.metrics.window > FIRST_WINDOW, "100 ms hold more than four drafts of two tokens"


@pytest.mark.parametrize(
    ("mode", "window"), [("sequential", 1), ("off", 1), ("pearl", FIRST_WINDOW), ("branch", FIRST_WINDOW)]
)
def test_before_anything_is_measured(mode: str, window: int) -> None:
    assert planner(mode=Mode(mode)).window == window
