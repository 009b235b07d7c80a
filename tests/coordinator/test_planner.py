"""What a request that bounds its drafts gets, whoever else chooses their length."""

from __future__ import annotations

import pytest

from coordinator.core.choice import Choice
from coordinator.core.controller import Controller
from coordinator.core.events import RequestSpec
from coordinator.core.pace import Pace
from coordinator.core.planner import Planner
from paceline.length_policy import LengthPolicy
from paceline.types import Mode, SamplingParams
from tests.world import Network, World


def planner(**given: object) -> Planner:
    return Planner(RequestSpec("r", (1, 2), 9, SamplingParams(), seed=1, draft_seed=2, **given))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("policy", "most", "want"),
    [
        (None, 3, "fixed:length=3"),
        (None, 99, "fixed:length=8"),
        ("fixed:length=5", 16, "fixed:length=5"),
        ("svip:threshold_nats=0.5", 9, "svip:threshold_nats=0.5,max_length=9"),
    ],
)
def test_a_bound_shortens_a_policys_drafts_and_never_lengthens_them(policy: str | None, most: int, want: str) -> None:
    named = LengthPolicy.parse(policy) if policy else None
    assert str(planner(mode=Mode.PEARL, policy=named, max_draft_length=most).plan.policy) == want


def test_what_the_last_request_chose_is_cut_to_the_bound() -> None:
    pace = Pace()
    pace.choice = Choice(Mode.PEARL, 12, 4)
    bounded, free = planner(max_draft_length=5), planner()
    bounded.resume(pace)
    free.resume(pace)
    assert (bounded.plan.policy.max_length, free.plan.policy.max_length) == (5, 12)


@pytest.mark.parametrize(("most", "lengths"), [(1, (1,)), (5, (1, 2, 3, 4, 5)), (99, (1, 2, 3, 4, 6, 8, 12, 16))])
def test_lengths_on_offer_end_at_the_bound(most: int, lengths: tuple[int, ...]) -> None:
    assert Controller(max_length=most)._lengths == lengths


@pytest.mark.parametrize("most", [None, 3])
def test_auto_keeps_to_the_bound_where_longer_drafts_would_pay(most: int | None) -> None:
    world = World(1, network=Network(delay_s=0.0005))
    world.verifier()
    world.drafter(token_s=0.0003, agreement=0.95)
    world.submit(
        RequestSpec("r", (1, 2), 300, SamplingParams(temperature=0), seed=1, draft_seed=2, max_draft_length=most)
    )
    world.run().check_lossless()
    did = world.clients["r"].metrics
    assert did
    assert (did.num_draft_tokens / did.num_received_drafts <= 3) == (most == 3)
