"""Whose turn it is to try a drafter out."""

from __future__ import annotations

from coordinator.core.lease import Lease


def test_one_has_its_turn_until_it_gives_it_back() -> None:
    lease = Lease()
    assert lease.take("a", 0.0)
    assert lease.take("a", 1.0)
    assert not lease.take("b", 1.0)
    lease.give_back("b")
    assert not lease.is_free("b", 1.0), "it was not its to give"
    lease.give_back("a")
    assert lease.take("b", 1.0)


def test_a_turn_ends_with_a_holder_that_is_heard_no_more() -> None:
    lease = Lease()
    assert lease.take("a")
    assert not lease.take("b", 5.0), "since when is only known from now on"
    assert not lease.take("b", 6.0)
    assert lease.take("b", 7.5)
    assert not lease.take("a", 8.0)
