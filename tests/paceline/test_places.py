"""Places that several coordinators share."""

from __future__ import annotations

import random

import pytest

from paceline.errors import Overloaded
from paceline.places import OWED_S, Places, in_turns


class Shop:
    """A worker's places, and who holds them."""

    def __init__(self, num_places: int) -> None:
        self.places = Places(num_places)
        self.held: list[int] = []
        self.now_s = 0.0

    def asks(self, peer: int) -> bool:
        try:
            self.places.take("places", peer, self.held, self.now_s)
        except Overloaded:
            return False
        self.held.append(peer)
        return True


def test_whoever_is_alone_takes_all() -> None:
    shop = Shop(4)
    assert [shop.asks(1) for _ in range(5)] == [True] * 4 + [False]


def test_what_is_set_free_is_kept_for_one_that_has_less_than_its_share() -> None:
    shop = Shop(4)
    for _ in range(4):
        shop.asks(1)
    assert not shop.asks(2)
    shop.held.remove(1)
    assert not shop.asks(1), "it has more than half"
    assert shop.asks(2)
    assert not shop.asks(2)
    shop.held.remove(1)
    assert not shop.asks(1), "the other one has asked for a second place, and has it to come"
    assert shop.asks(2)
    shop.held.remove(2)
    shop.now_s += 2 * OWED_S
    assert shop.asks(1), "one that does not come back is owed nothing any more"


def test_a_single_place_changes_hands() -> None:
    shop = Shop(1)
    assert shop.asks(1)
    winners = []
    for _ in range(6):
        assert not shop.asks(1)
        assert not shop.asks(2)
        shop.held.clear()
        winners.append(next(peer for peer in (1, 2) if shop.asks(peer)))
    assert winners == [1, 2, 1, 2, 1, 2] or winners == [2, 1, 2, 1, 2, 1]


def test_one_that_has_gone_is_owed_nothing() -> None:
    shop = Shop(2)
    shop.asks(1)
    shop.asks(1)
    assert not shop.asks(2)
    shop.held.remove(1)
    shop.places.drop(2)
    assert shop.asks(1)


@pytest.mark.parametrize("seed", range(10))
def test_however_greedy_the_others_are_each_gets_its_share_in_the_end(seed: int) -> None:
    """One asks a hundred times as often as the others; requests end at random."""
    chance, shop, num_peers = random.Random(seed), Shop(12), 3
    served = dict.fromkeys(range(num_peers), 0)
    for _ in range(3000):
        shop.now_s += 0.01
        if shop.held and chance.random() < 0.5:
            shop.held.remove(chance.choice(shop.held))
        for _ in range(10):
            served[0] += shop.asks(0)
        for peer in range(1, num_peers):
            if chance.random() < 0.1:
                for _ in range(4):
                    served[peer] += shop.asks(peer)
        assert len(shop.held) <= 12
    assert min(served.values()) > 0.6 * sum(served.values()) / num_peers


def test_items_take_turns_by_owner() -> None:
    assert in_turns("aabab") == [0, 1, 0, 2, 1]
