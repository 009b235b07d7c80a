"""Room that clients divide."""

from __future__ import annotations

from contextlib import ExitStack

import pytest

from coordinator.shares import Shares
from paceline.errors import Overloaded


def filled(shares: Shares, stack: ExitStack, client: str) -> int:
    """How much it may hold."""
    for count in range(1000):
        try:
            stack.enter_context(shares.hold(client))
        except Overloaded:
            return count
    raise AssertionError("there is no bound")


def test_one_holds_as_much_as_it_leaves_free_and_all_together_no_more_than_there_is() -> None:
    shares = Shares("places", 64)
    with ExitStack() as stack:
        assert [filled(shares, stack, client) for client in "abcd"] == [32, 16, 8, 4]
        for i in range(100):
            filled(shares, stack, f"more {i}")
        assert shares.held.total() <= 64
    assert not shares.held
    assert filled(shares, ExitStack(), "e") == 32


def test_how_much_is_held_counts() -> None:
    shares = Shares("characters", 100)
    with shares.hold("a", 40), shares.hold("b", 30):
        with pytest.raises(Overloaded, match="characters: full at 100"), shares.hold("b", 1):
            pass
        with shares.hold("c", 30):
            assert shares.held.total() == 100
    assert not shares.held
