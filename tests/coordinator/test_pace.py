"""What a drafter's measurements lead to."""

from __future__ import annotations

from coordinator.core.pace import Pace


def test_the_verifier_decodes_through_a_redraft_that_takes_more_than_two_passes() -> None:
    assert Pace().num_meanwhile() == 0, "nothing is measured"
    assert Pace(verify_s=0.016, turnaround_s=0.030).num_meanwhile() == 0
    assert Pace(verify_s=0.016, turnaround_s=0.035).num_meanwhile() == 3
    assert Pace(verify_s=0.016, turnaround_s=0.100).num_meanwhile() == 7
