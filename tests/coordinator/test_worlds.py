"""Seeded random worlds: whatever the network and the workers do, every client reads the target's own greedy output."""

from __future__ import annotations

import random

import pytest

from coordinator.core.commands import Ask
from coordinator.core.limits import Limits
from paceline.types import Decode, Mode, Rule, Verify
from tests.world import Network, ToyVerifier, World

NUM_WORLDS = 300


def random_world(seed: int) -> World:
    rng = random.Random(seed)
    delay_s = rng.choice([0.0001, 0.001, 0.005, 0.03])
    network = Network(
        delay_s=delay_s,
        jitter_s=delay_s * rng.choice([0, 1, 5]),
        loss=rng.choice([0, 0, 0.05, 0.3]),
        duplication=rng.choice([0, 0, 0.2]),
    )
    limits = Limits(
        retry_s=rng.choice([0.05, 0.2, 1.0]),
        max_retries=1000,
        max_moves=1000,
        max_draft_wait_s=rng.choice([0.002, 0.02, 0.25]),
        queue_timeout_s=1e6,
    )
    world = World(seed, network=network, limits=limits)
    for i in range(rng.choice([1, 1, 2])):
        world.verifier(f"v{i}", pass_s=rng.choice([0.002, 0.016]), places=rng.choice([2, 64]))
    for i in range(rng.choice([0, 1, 1, 2])):
        agreement = rng.choice([0.0, 0.5, 0.8, 1.0])
        token_s, known = rng.choice([0.0003, 0.0013, 0.02]), rng.choice([1.0, 1.0, 0.9, 0.3, 0.0])
        world.drafter(f"d{i}", token_s=token_s, agreement=agreement, known=known)
    for i in range(rng.choice([1, 1, 4])):
        world.request(
            f"r{i}",
            prompt=tuple(rng.randrange(50) for _ in range(rng.randint(1, 6))),
            max_tokens=rng.choice([1, 5, 40]),
            mode=rng.choice([None, Mode.OFF, Mode.SEQUENTIAL, Mode.PEARL, Mode.PEARL, Mode.BRANCH, Mode.BRANCH]),
            rule=rng.choice([None, Rule.TOKEN, Rule.BLOCK]),
            length=rng.randint(1, 8),
            window=rng.randint(1, 4),
            stop_token_ids=rng.choice([(), (7, 11)]),
        )
    _add_deaths(world, rng)
    return world


def _add_deaths(world: World, rng: random.Random) -> None:
    """Workers die at random moments; a verifier is always replaced, a drafter sometimes."""

    def replace(name: str, role: str) -> None:
        join = world.verifier if role == "v" else world.drafter
        join(name + "'")

    for name in list(world.workers):
        if rng.random() < 0.7:
            continue
        role = name[0]

        def die(name: str = name, role: str = role) -> None:
            world.kill(name, seen_after_s=rng.choice([0.0, 0.1]))
            if role == "v" or rng.random() < 0.5:
                world.at(0.3, lambda: replace(name, role))

        world.at(rng.random() * 0.5, die)


@pytest.mark.parametrize("block", range(10))
def test_random_worlds_are_lossless(block: int) -> None:
    for seed in range(block * NUM_WORLDS // 10, (block + 1) * NUM_WORLDS // 10):
        world = random_world(seed).run()
        world.check_lossless()
        world.check_nothing_leaked()


def test_same_seed_gives_the_same_world() -> None:
    assert random_world(5).run().log == random_world(5).run().log


def test_patience_shorter_than_an_honest_answer_does_not_livelock() -> None:
    """A retry that moved the epoch on made every honest answer stale: 10,000 retries, no token, no end.

    The pass takes longer than the patience, so luck cannot pass this: without the same epoch and growing patience no
    answer is ever in time.
    """
    world = World(1, limits=Limits(retry_s=0.02, max_retries=100), budget=20_000)
    world.verifier(pass_s=0.27)
    world.drafter()
    world.request(max_tokens=30)
    world.run().check_lossless()
    verifier = world.workers["v0"]
    assert isinstance(verifier, ToyVerifier)
    asks = [c for _, c in world.log if isinstance(c, Ask) and isinstance(c.ask, Verify | Decode)]
    assert len(asks) < 8 * verifier.num_passes, "patience grows, so a slow answer is not drowned in retries"


def test_a_hung_drafter_costs_little_more_than_plain_decoding() -> None:
    plain = World(1)
    plain.verifier()
    plain.request(mode=Mode.OFF, max_tokens=200)
    plain.run().check_lossless()
    hung = World(1, limits=Limits(max_draft_wait_s=0.05))
    hung.verifier()
    hung.drafter().hung = True
    hung.request(max_tokens=200)
    hung.run().check_lossless()
    assert hung.now_s < plain.now_s + 0.06, "one wait, and then nobody waits for it again"


def test_a_drafter_that_stops_answering_costs_one_wait() -> None:
    plain = World(1)
    plain.verifier()
    plain.request(mode=Mode.OFF, max_tokens=200)
    plain.run().check_lossless()
    world = World(1, limits=Limits(max_draft_wait_s=0.05))
    world.verifier()
    drafter = world.drafter()
    world.at(0.3, lambda: setattr(drafter, "hung", True))
    client = world.request(max_tokens=200)
    world.run().check_lossless()
    assert world.now_s < plain.now_s
    assert client.metrics is not None
    assert client.metrics.fallbacks["late draft"] == 1


@pytest.mark.parametrize("mode", [Mode.SEQUENTIAL, Mode.PEARL])
@pytest.mark.parametrize("rule", [Rule.MATCH, Rule.TOKEN, Rule.BLOCK])
def test_a_drafter_that_never_finds_anything_costs_no_waits(mode: Mode, rule: Rule) -> None:
    """It passes, and the verifier decodes on at once; without a pass each run of decoding waits for the bound first."""
    seconds = {}
    for known in (None, 0.0):
        world = World(1, limits=Limits(max_draft_wait_s=0.25))
        world.verifier(pass_s=0.016)
        if known is not None:
            world.drafter(token_s=0.0001, known=known)
        world.request(mode=mode, rule=rule, max_tokens=200)
        world.run().check_lossless()
        seconds[known] = world.now_s
    assert seconds[0.0] < 1.3 * seconds[None], "a round trip a token over a link of 1 ms, and no more"


def test_a_slow_link_to_a_drafter_that_never_finds_anything_is_not_paid_for_every_token() -> None:
    seconds = {}
    for known in (None, 0.0):
        world = World(1, network=Network(delay_s=0.03), limits=Limits(max_draft_wait_s=0.25))
        world.verifier(pass_s=0.016)
        if known is not None:
            world.drafter(token_s=0.0001, known=known)
        world.request(max_tokens=200)
        world.run().check_lossless()
        seconds[known] = world.now_s
    assert seconds[0.0] < 1.4 * seconds[None]


def test_what_a_drafter_finds_only_here_and_there_is_used() -> None:
    world = World(1, network=Network(delay_s=0.0001))
    verifier = world.verifier(pass_s=0.016)
    world.drafter(token_s=0.0001, agreement=1.0, known=0.8)
    world.request(length=8, max_tokens=400)
    world.run().check_lossless()
    assert verifier.num_passes < 0.4 * 400


@pytest.mark.parametrize("rule", [Rule.MATCH, Rule.TOKEN, Rule.BLOCK])
def test_pearl_hides_drafting_behind_verification(rule: Rule) -> None:
    """A perfect drafter as fast as the verifier: sequential pays for both, pearl for one of them."""
    seconds = {}
    for mode in (Mode.SEQUENTIAL, Mode.PEARL):
        world = World(1, network=Network(delay_s=0.0001))
        world.verifier(pass_s=0.016)
        world.drafter(token_s=0.002, agreement=1.0)
        world.request(mode=mode, rule=rule, length=8, max_tokens=400)
        world.run().check_lossless()
        seconds[mode] = world.now_s
    assert seconds[Mode.PEARL] < 0.65 * seconds[Mode.SEQUENTIAL]


def test_the_round_trip_is_hidden_while_everything_is_accepted() -> None:
    seconds = {}
    for delay_s in (0.0001, 0.015):
        world = World(1, network=Network(delay_s=delay_s))
        world.verifier(pass_s=0.016)
        world.drafter(token_s=0.001, agreement=1.0)
        world.request(length=8, window=12, max_tokens=400)
        world.run().check_lossless()
        seconds[delay_s] = world.now_s
    assert seconds[0.015] < 1.3 * seconds[0.0001]
