"""What a drafter's measurements lead to."""

from __future__ import annotations

from coordinator.core.choice import Choice
from coordinator.core.flight import Begun
from coordinator.core.kin import Kin
from coordinator.core.pace import Pace
from paceline.types import Draft, Mode


def test_the_verifier_decodes_through_a_redraft_that_takes_more_than_two_passes() -> None:
    assert Pace().num_meanwhile() == 0, "nothing is measured"
    assert Pace(verify_s=0.016, turnaround_s=0.030).num_meanwhile() == 0
    assert Pace(verify_s=0.016, turnaround_s=0.035).num_meanwhile() == 3
    assert Pace(verify_s=0.016, turnaround_s=0.100).num_meanwhile() == 7
    assert Pace(verify_s=0.001, turnaround_s=0.009).num_meanwhile() == 0, "nine passes, but over in no time"


def test_a_new_drafter_begins_with_what_its_like_have_found_and_soon_has_its_own_view() -> None:
    kin = Kin()
    old, new = Pace(kin=kin), Pace(kin=kin)
    for _ in range(100):
        old.tested(9, 10)
    old.chose(Choice(Mode.PEARL, 4, 4))
    new.learn()
    assert abs(new.acceptance - 0.9) < 0.03
    assert new.choice == Choice(Mode.PEARL, 4, 4)
    for _ in range(100):
        new.tested(0, 1)
    new.learn()
    assert new.acceptance < 0.3


def test_what_a_token_takes_beside_branches_is_not_what_it_takes_alone() -> None:
    pace = Pace()
    pace.turned_around(0.010, Draft("r", 1, 0, (1, 2), draft_ms=2.0))
    assert 0.001 < pace.branch_draft_s(1) < 0.002, "a guess"
    pace.turned_around(0.010, Draft("r", 2, 0, (1, 2), draft_ms=8.0), branches=True)
    assert pace.draft_s == 0.001
    assert pace.branch_draft_s(1) == 0.004


def test_a_hit_or_a_miss_more_hardly_moves_a_long_record() -> None:
    pace = Pace()
    for number in range(200):
        pace.began(by_branch=number % 2 == 0)
    before = pace.hit_rate
    pace.began(by_branch=True)
    assert abs(before - 0.5) < 0.05
    assert abs(pace.hit_rate - before) < 0.02


def test_epochs_that_never_become_runs_do_not_end_the_measuring() -> None:
    begun = Begun()
    for epoch in range(200):
        begun.tell(epoch, float(epoch))
    assert begun.drafted(199) == 199.0
    begun.tell(200, 200.0)
    begun.tell(202, 202.0)
    assert begun.drafted(201) is None, "nobody was told to begin it"
    assert begun.answered(200) is None, "but those before it have been given up"
    assert begun.answered(202) == 202.0
