"""Workers that drain, and requests that come from another coordinator: the core's side of both."""

from __future__ import annotations

import pytest

from bench.simulator.law import greedy
from coordinator.core.commands import Ask, Command, Emit, Fail
from coordinator.core.events import Arrived, Ended, WorkerDraining, WorkerUp
from coordinator.core.limits import Limits
from paceline.errors import Unavailable
from paceline.types import Close, Commit, Decode, FinishReason, OpenDraft, OpenVerify, Role
from tests.coordinator.test_request import asks, info, pipeline, spec, verdict
from tests.world import World


def sent(commands: list[Command], worker: str) -> list[object]:
    return [c.ask for c in commands if isinstance(c, Ask) and c.worker == worker]


def test_a_draining_drafter_is_relieved_and_the_verifier_goes_on() -> None:
    it = pipeline()
    it.handle(Arrived(spec()), 0.0)
    it.handle(verdict(3, 7), 0.1)
    commands = it.handle(WorkerDraining("d"), 0.2)
    assert sent(commands, "d") == [Close("r")]
    assert sent(commands, "v") == [Decode("r", 2, 4, 19)]
    assert not sent(it.handle(Arrived(spec("s")), 0.3), "d"), "and it gets nothing new"


def test_a_draining_drafters_requests_go_to_another() -> None:
    it = pipeline()
    it.handle(Arrived(spec()), 0.0)
    it.handle(verdict(3, 7), 0.1)
    it.handle(WorkerUp("e", info(Role.DRAFTER)), 0.1)
    (opened,) = sent(it.handle(WorkerDraining("d"), 0.2), "e")
    assert isinstance(opened, OpenDraft)
    assert opened.token_ids == (1, 2, 3, 7)


def test_a_draining_verifiers_requests_move_with_what_is_committed() -> None:
    it = pipeline(drafter=False)
    it.handle(Arrived(spec()), 0.0)
    it.handle(verdict(3, 7, 8), 0.1)
    it.handle(WorkerUp("w", info(Role.VERIFIER)), 0.1)
    commands = it.handle(WorkerDraining("v"), 0.2)
    assert sent(commands, "v") == [Close("r")]
    (opened,) = sent(commands, "w")
    assert isinstance(opened, OpenVerify)
    assert opened.token_ids == (1, 2, 3, 7, 8)
    assert it.handle(verdict(5, 9), 0.3) == [], "what the old one still says is not heard"


def test_on_the_last_verifier_they_stay_and_move_when_another_comes() -> None:
    it = pipeline(drafter=False)
    it.handle(Arrived(spec()), 0.0)
    assert it.handle(WorkerDraining("v"), 0.1) == []
    assert any(isinstance(command, Emit) for command in it.handle(verdict(3, 7), 0.2))
    assert it.handle(Arrived(spec("s")), 0.2) == [], "a new one waits"
    commands = it.handle(WorkerUp("w", info(Role.VERIFIER)), 0.3)
    assert sent(commands, "v") == [Close("r")]
    assert [ask.request_id for ask in sent(commands, "w")] == ["r", "s"]  # type: ignore[attr-defined]


def test_no_more_move_than_there_is_room_for() -> None:
    it = pipeline(drafter=False)
    for name in "abc":
        it.handle(Arrived(spec(name)), 0.0)
    it.handle(WorkerUp("w", info(Role.VERIFIER, places=2)), 0.1)
    commands = it.handle(WorkerDraining("v"), 0.2)
    assert len(sent(commands, "v")) == len(sent(commands, "w")) == 2
    assert it.num_waiting == 0


def test_being_moved_is_no_failure() -> None:
    it = pipeline(drafter=False, limits=Limits(max_moves=1))
    it.handle(Arrived(spec()), 0.0)
    for i in range(5):
        it.handle(WorkerUp(f"v{i}", info(Role.VERIFIER)), 0.1)
        commands = it.handle(WorkerDraining("v" if i == 0 else f"v{i - 1}"), 0.2)
        assert not any(isinstance(command, Fail) for command in commands)
        assert sent(commands, f"v{i}")


@pytest.mark.parametrize("seed", range(20))
def test_worlds_whose_workers_are_drained_are_lossless(seed: int) -> None:
    """Each worker drains at some moment, leaves when it is empty, and another has come: nobody loses a token."""
    world = World(seed)
    for name in ("v0", "v1"):
        world.verifier(name, places=8)
    for name in ("d0", "d1"):
        world.drafter(name, places=8)

    def drain(name: str) -> None:
        world.feed(WorkerDraining(name))

        def leave() -> None:
            if any(member.requests for member in world.pipeline.pools if member.name == name):
                world.at(0.01, leave)
            else:
                world.kill(name)

        leave()

    def come() -> None:
        world.verifier("v2")

    for i, name in enumerate(("v0", "d0", "d1", "v1")):
        world.at(world.random.random(), lambda name=name: drain(name))
        if name == "v1":
            world.at(0.5, come)
        world.request(f"r{i}", max_tokens=120)
    world.run().check_lossless()


def test_a_request_that_ends_badly_frees_both_workers_and_says_why() -> None:
    it = pipeline()
    it.handle(Arrived(spec()), 0.0)
    commands = it.handle(Ended("r", FinishReason.CANCELLED, Unavailable("going away")), 0.1)
    assert asks(commands) == [Close("r"), Close("r")]
    assert [str(c.error) for c in commands if isinstance(c, Fail)] == ["going away"]
    assert it.num_running == 0


def test_a_resumed_request_goes_on_after_what_the_client_has() -> None:
    it = pipeline()
    drafted, opened = asks(it.handle(Arrived(spec(resumed=(7, 8))), 0.0))
    assert isinstance(drafted, OpenDraft)
    assert isinstance(opened, OpenVerify)
    for ask in (drafted, opened):
        assert ask.token_ids == (1, 2, 3, 7, 8)
        assert ask.num_prompt_tokens == 3, "penalties and min_tokens still know the prompt"
    assert drafted.end == 23
    emit, commit = it.handle(verdict(5, 9), 0.1)
    assert isinstance(emit, Emit)
    assert emit.token_ids == (9,)
    assert isinstance(commit, Ask)
    assert isinstance(commit.ask, Commit)


def test_a_resumed_output_is_no_longer_than_was_asked_for() -> None:
    world = World(5)
    world.verifier()
    world.drafter()
    whole = greedy((1, 2, 3), 40)
    it = world.pipeline
    client = world.request("r0", max_tokens=1)
    world.run()
    assert tuple(client.tokens) == whole[:1]
    commands = it.handle(Arrived(spec("s", max_tokens=40, resumed=whole[:39])), world.now_s)
    opened = [ask for ask in asks(commands) if isinstance(ask, OpenVerify)]
    assert [ask.num_decode for ask in opened] == [1]
