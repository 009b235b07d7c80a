"""With branches, too, every path through the whole system ends in the target's law, with error exactly 0.

As in `test_exact_worlds.py`: the shipped core, engines, sessions and rules, with every coin thrown every way. While its
window is full the drafter makes a branch for the other token of each position, two tokens a pass.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from fractions import Fraction

import pytest

from paceline.types import Branch, Rule
from tests.exact_world import BEGIN, Begun, Chance, Run, Setting, every_run
from tests.verifier.test_enumeration import World, error

WORLD = World(seed=1, vocab_size=2, width=2, bits=8)
BEGUN = Begun(seed=1, vocab_size=2, width=2, bits=8)
RULES = (Rule.TOKEN, Rule.BLOCK)

# Name: a schedule, the draft's length, the window, and whether some run hits and some run misses.
PATHS: dict[str, tuple[str, int, int, bool, bool]] = {
    "in time": ("", 1, 2, True, False),
    "in time for every outcome": ("DDDDdddd", 1, 2, True, False),
    "closed drafts, and closed branches": ("DDDDDDDdddd", 2, 1, True, False),
    "late: on their way when the outcome comes": ("DDDDddVvd", 1, 2, True, False),
    "half drafted when the outcome comes": ("DDDDDddVvDDddd", 2, 2, True, False),
    "lost": ("DDDDddxxVvT", 1, 2, False, True),
    "lost, and so is the word that the run has ended": ("DDDDddxxVvcT", 1, 2, False, True),
    "come twice": ("DDD2dddd2dVv", 1, 2, True, False),
    "overtaken by one another": ("DDDDddrddVv", 1, 2, True, False),
    "before the chain that they leave": ("DDDDrddddVv", 1, 2, False, True),
    "promoted, and the word of it is lost": ("DDDDddddVvcDDdT", 1, 2, True, False),
    "promoted by a drafter that dies": ("DDDDddddVvDkVv", 1, 2, True, False),
    "of a drafter that died before the outcome": ("DDDDddddkVv", 1, 2, False, True),
    "promoted, and the verifier dies with its verdict": ("DDDDddddVvVK", 1, 2, True, False),
}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("path", PATHS)
def test_every_path_of_a_branch_yields_the_targets_law(path: str, rule: Rule) -> None:
    schedule, length, window, hits, misses = PATHS[path]
    num_tokens = 3 if schedule else 4
    outcome = every_run(BEGUN, Setting(rule, length, window, num_tokens, branches=True), BEGIN + schedule)
    assert error(BEGUN, num_tokens, outcome.law) == 0
    assert outcome.num_hits or not hits, "the path was not taken"
    assert outcome.num_misses or not misses, "the path was not taken"


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("block", range(2))
def test_whatever_the_network_does_to_branches_the_law_is_the_targets(block: int, rule: Rule) -> None:
    for seed in range(3 * block, 3 * block + 3):
        rng = random.Random(seed)
        weights = [14, 8, 14, 7, 3, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0.5, 0.5]
        schedule = "".join(rng.choices("DVdvTPxXcC2qrRkK", weights, k=rng.randint(8, 20)))
        setting = Setting(
            rule, rng.choice((1, 2)), rng.choice((1, 2)), max_tokens=2, preverify=rng.random() < 0.5, branches=True
        )
        assert error(WORLD, 2, every_run(WORLD, setting, schedule).law) == 0, (seed, schedule, setting)


@pytest.mark.parametrize("rule", RULES)
def test_three_tokens_to_choose_from(rule: Rule) -> None:
    """With two a replacement is never drawn, since only one token is left."""
    world = World(seed=3, vocab_size=3, width=2, bits=8, draft_temperature=2)
    outcome = every_run(world, Setting(rule, length=1, window=1, max_tokens=2, branches=True), "DDDddd")
    assert error(world, 2, outcome.law) == 0
    assert outcome.num_hits


# Negative controls: what the worlds would see.


def test_branches_with_the_chains_noise_show_under_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """A block's rejection has looked at all of the chain's tokens, so at the noise that the branch would use again."""
    throw = Chance.uniform

    def shared(chance: Chance, key: tuple[object, ...], cuts: Iterable[Fraction]) -> float:
        return throw(chance, key[:-1], cuts)

    monkeypatch.setattr(Chance, "uniform", shared)
    setting = Setting(Rule.BLOCK, length=2, window=1, max_tokens=3, branches=True)
    assert error(BEGUN, 3, every_run(BEGUN, setting, BEGIN + "DDDDDDDdddd").law) > 0


@pytest.mark.parametrize("rule", RULES)
def test_losing_branches_because_of_what_is_in_them_shows(rule: Rule, monkeypatch: pytest.MonkeyPatch) -> None:
    hear = Run.hear

    def choosy(run: Run, worker: str) -> None:
        if worker == "d" and run.replies["d"]:
            said = run.replies["d"][0]
            if isinstance(said, Branch) and said.draft.token_ids[0] == 1:
                run.replies["d"].popleft()
                return
        hear(run, worker)

    monkeypatch.setattr(Run, "hear", choosy)
    setting = Setting(rule, length=1, window=1, max_tokens=2, branches=True)
    assert error(WORLD, 2, every_run(WORLD, setting, "DDDdddVvTVv").law) > 0
