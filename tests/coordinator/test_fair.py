"""Whose turn it is."""

from __future__ import annotations

import pytest

from coordinator.core.commands import Ask, Command, Fail
from coordinator.core.events import Arrived, Verified, WorkerUp
from coordinator.core.fair import FairQueue
from coordinator.core.limits import Limits
from coordinator.core.pipeline import Pipeline
from paceline.errors import Overloaded
from paceline.types import Mode, OpenVerify, Role, Source, Verdict
from tests.coordinator.test_request import info, spec, verdict


def turns(queue: FairQueue, num: int = 100) -> list[str]:
    order: list[str] = []
    while (request_id := queue.next()) is not None and len(order) < num:
        order.append(request_id)
        queue.take()
    return order


def filled(*requests: tuple[str, str, int]) -> FairQueue:
    queue = FairQueue()
    for request_id, client, num_tokens in requests:
        queue.add(request_id, client, num_tokens)
    return queue


def test_one_client_alone_is_served_first_come_first() -> None:
    assert turns(filled(*((f"a{i}", "a", 10) for i in range(4)))) == ["a0", "a1", "a2", "a3"]


def test_a_newcomer_waits_for_one_turn_of_a_client_that_has_filled_the_queue() -> None:
    queue = filled(*((f"a{i}", "a", 10) for i in range(50)))
    assert turns(queue, 3) == ["a0", "a1", "a2"]
    queue.add("b0", "b", 10)
    assert "b0" in turns(queue, 2)


def test_turns_are_counted_in_tokens_and_not_in_requests() -> None:
    long = [(f"a{i}", "a", 100) for i in range(10)]
    short = [(f"b{i}", "b", 10) for i in range(100)]
    first = turns(filled(*long, *short), 55)
    assert sum(name[0] == "a" for name in first) == 5
    assert sum(name[0] == "b" for name in first) == 50


def test_idleness_earns_no_credit() -> None:
    """A client that was away would else be owed all that the others were given meanwhile, and shut them out."""
    queue = filled(*((f"a{i}", "a", 10) for i in range(100)))
    turns(queue, 50)
    for i in range(50):
        queue.add(f"b{i}", "b", 10)
    next_twenty = turns(queue, 20)
    assert 9 <= sum(name[0] == "a" for name in next_twenty) <= 11


def test_what_one_was_given_while_alone_is_not_held_against_it() -> None:
    queue = FairQueue()
    for i in range(1000):
        queue.add(f"a{i}", "a", 1000)
        turns(queue)
    for i in range(10):
        queue.add(f"b{i}", "b", 10)
        queue.add(f"a'{i}", "a", 10)
    assert "a'0" in turns(queue, 102), "at most the last turn, of 1,000 tokens, is still to be made up for"


def test_tokens_cost_while_others_wait_and_else_nothing() -> None:
    queue = filled(("a0", "a", 10), ("a1", "a", 10))
    queue.used("a", 1000)
    queue.add("b0", "b", 10)
    assert turns(queue) == ["a0", "b0", "a1"], "nobody else had waited"
    queue = filled(("a0", "a", 10), ("a1", "a", 10), *((f"b{i}", "b", 10) for i in range(4)))
    queue.used("a", 25)
    assert turns(queue) == ["b0", "b1", "b2", "a0", "b3", "a1"]


def test_a_request_that_ran_before_goes_ahead_of_all() -> None:
    queue = filled(("a0", "a", 1), ("b0", "b", 1))
    queue.add_first("moved")
    assert turns(queue) == ["moved", "a0", "b0"]


def test_what_is_discarded_waits_no_longer_and_leaves_nothing_behind() -> None:
    queue = filled(*((f"r{i}", f"client {i}", 5) for i in range(100)))
    for i in range(100):
        assert f"r{i}" in queue
        queue.discard(f"r{i}")
    assert (len(queue), queue.next()) == (0, None)
    assert not queue._given, "clients that have left are not remembered for ever"


@pytest.mark.parametrize(("client", "gives_way"), [("b", "a2"), ("a", None)])
def test_in_a_full_queue_the_longest_line_gives_way_to_others_only(client: str, gives_way: str | None) -> None:
    assert filled(("a0", "a", 1), ("a1", "a", 1), ("a2", "a", 1)).crowding_out(client) == gives_way


def test_two_lines_of_one_length_do_not_push_each_other_out() -> None:
    assert filled(("a0", "a", 1), ("b0", "b", 1)).crowding_out("b") is None
    assert filled(("a0", "a", 1), ("a1", "a", 1), ("b0", "b", 1)).crowding_out("b") is None


def test_one_client_cannot_keep_another_out_of_the_pool() -> None:
    """Through the pipeline: the queue is full of one key's requests, and another key's is taken in and served next."""
    it = Pipeline(Limits(max_waiting=3))
    it.handle(WorkerUp("v", info(Role.VERIFIER, places=1)), 0.0)
    it.handle(Arrived(spec("r", client="greedy", max_tokens=1)), 0.0)
    for i in range(3):
        it.handle(Arrived(spec(f"g{i}", client="greedy")), 0.0)
    (refused,) = it.handle(Arrived(spec("late", client="modest")), 0.0)
    assert isinstance(refused, Fail)
    assert refused.request_id == "g2"
    assert isinstance(refused.error, Overloaded)
    assert _opened(it.handle(verdict(3, 7), 0.1)) == ["late"]
    assert it.handle(Arrived(spec("g4", client="greedy")), 0.1) == [], "there is room again"
    assert it.num_waiting == 3


def test_what_one_might_have_asked_for_is_not_held_against_it() -> None:
    """A chat without a limit was charged the whole context: another key had its turn hundreds of times as often."""
    it = Pipeline()
    limits = {"open": 8000, "exact": 1}
    for i in range(40):
        for client, max_tokens in limits.items():
            given = spec(f"{client} {i}", client=client, max_tokens=max_tokens, stop_token_ids=(7,), mode=Mode.OFF)
            it.handle(Arrived(given), 0.0)
    (opened,) = _opened(it.handle(WorkerUp("v", info(Role.VERIFIER, places=1)), 0.0))
    served = []
    for _ in range(40):
        served.append(opened.partition(" ")[0])
        (opened,) = _opened(it.handle(Verified("v", Verdict(opened, 0, 3, (7,), (Source.SELF_DECODED,))), 0.0))
    assert 19 <= served.count("open") <= 21


def _opened(commands: list[Command]) -> list[str]:
    return [c.ask.request_id for c in commands if isinstance(c, Ask) and isinstance(c.ask, OpenVerify)]
