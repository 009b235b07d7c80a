from __future__ import annotations

import pytest

from bench.grids import GRIDS, candidates, label
from paceline.errors import InvalidInput
from paceline.length_policy import POLICIES, LengthPolicy, Parameter


def test_every_policy_that_exists_has_a_grid_within_its_range() -> None:
    found = candidates()
    assert set(found) == set(POLICIES)
    for name, points in found.items():
        parameter, values = GRIDS[name]
        assert [point[parameter] for point in points] == list(values)
        assert len(set(values)) == len(values) >= 2


def test_a_policy_without_a_grid_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.grids.POLICIES", {**POLICIES, "new": {"x": Parameter(1, 0, 2)}})
    with pytest.raises(InvalidInput, match=r"'new': has no grid to sweep; add one to bench/grids\.py"):
        candidates()


def test_only_the_named_policies_are_swept_and_an_unknown_one_is_refused() -> None:
    assert list(candidates(["svip"])) == ["svip"]
    with pytest.raises(InvalidInput, match="unknown; the policies are"):
        candidates(["psychic"])


def test_a_label_shows_the_tuned_parameter_alone() -> None:
    assert label(str(LengthPolicy.parse("svip:threshold_nats=1.2"))) == "svip threshold_nats=1.2"
