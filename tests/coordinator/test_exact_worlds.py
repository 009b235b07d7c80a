"""Under rejection sampling every path through the whole system ends in the target's law, with error exactly 0.

Every coin is thrown every way through the shipped core, engines, sessions and rules (`tests.exact_world`, which says
what the letters of a schedule mean). What the network and time do is fixed by a schedule, so the law must come out
exactly.
"""

from __future__ import annotations

import random

import pytest

from coordinator.core import request
from paceline.noise import Domain
from paceline.types import Rule, Source
from tests.exact_world import BEGIN, Begun, Outcome, Run, Setting, every_run
from tests.verifier.test_enumeration import World, error

# Two tokens, of which both models may want either, are the least in which anything can go wrong.
WORLD = World(seed=1, vocab_size=2, width=2, bits=8)
BEGUN = Begun(seed=1, vocab_size=2, width=2, bits=8)
RULES = (Rule.TOKEN, Rule.BLOCK)
ACCEPTED, RECOVERED, BONUS, SELF = Source.ACCEPTED, Source.RECOVERED, Source.BONUS, Source.SELF_DECODED

# Name: a schedule, the draft's length, the window, and where tokens must have come from in some run. What does not tell
# of the first token happens behind it.
PATHS: dict[str, tuple[str, int, int, set[Source]]] = {
    "closed drafts, kept whole or rejected": ("", 1, 1, {ACCEPTED, RECOVERED, BONUS}),
    "closed drafts of two": ("", 2, 1, {ACCEPTED, RECOVERED, BONUS}),
    "open drafts whose retained row judges the next": ("", 1, 2, {ACCEPTED, RECOVERED}),
    "open drafts that queue up and share a pass": ("DDDddV", 1, 3, {ACCEPTED, RECOVERED}),
    "the first token is decoded, the draft for it is salvaged": ("VvDDDd", 3, 1, {ACCEPTED, RECOVERED, SELF}),
    "a draft late at the core: salvaged or dropped": ("DDDVvTVvd", 3, 1, {ACCEPTED, RECOVERED, SELF}),
    "a draft late at the verifier: it decodes first": ("DDVvTVdV", 2, 2, {SELF}),
    "a draft meets the decoding run that was asked for": ("VvTDDd", 2, 2, {ACCEPTED, RECOVERED, SELF}),
    "self-decode from a retained row, then its draft": ("DdVvTVDdVv", 1, 2, {ACCEPTED, SELF}),
    "a decoding run of two, then a draft": ("VvTVvTVDDd", 2, 2, {SELF}),
    "a draft that was lost": ("DDxVvT", 2, 2, {ACCEPTED, RECOVERED, SELF}),
    "an open draft whose successor was lost": ("DdVvDxTVv", 1, 2, {ACCEPTED, SELF}),
    "a verdict that was lost, and asked for again": ("DDdVXT", 2, 2, {ACCEPTED, RECOVERED}),
    "an ask to judge that was lost": ("VvDDdCT", 2, 2, {ACCEPTED, RECOVERED}),
    "a commit that was lost": ("DdVvcT", 1, 2, {ACCEPTED, RECOVERED}),
    "a draft that came twice": ("DD2ddqVv", 2, 2, {ACCEPTED, RECOVERED}),
    "a draft that was judged and came again": ("DD2dVvd", 2, 2, {ACCEPTED, RECOVERED}),
    "drafts that overtook one another": ("DDrddV", 1, 2, {ACCEPTED, RECOVERED}),
    "asks that overtook one another": ("DDddRV", 1, 2, {ACCEPTED, RECOVERED}),
    "a drafter that dies with a draft in flight": ("DDdkVv", 2, 2, {ACCEPTED, RECOVERED}),
    "a drafter that dies, and the verifier goes on": ("DdVvkVTDd", 1, 2, {ACCEPTED, SELF}),
    "a verifier that dies before its verdict is heard": ("DDdVK", 2, 2, {ACCEPTED, RECOVERED}),
    "a verifier that dies with a retained row": ("DdVvKV", 1, 2, {ACCEPTED, RECOVERED}),
    "a cache that is lost with its retained row": ("DdVvPDdV", 1, 2, {ACCEPTED, RECOVERED}),
}


def check(outcome: Outcome, num_tokens: int, what: object) -> None:
    assert error(WORLD, num_tokens, outcome.law) == 0, what


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("path", PATHS)
def test_every_path_yields_the_targets_law(path: str, rule: Rule) -> None:
    schedule, length, window, sources = PATHS[path]
    if schedule.startswith(BEGIN):
        outcome = every_run(WORLD, Setting(rule, length, window), schedule)
        check(outcome, 3, schedule)
    else:
        outcome = every_run(BEGUN, Setting(rule, length, window, max_tokens=4), BEGIN + schedule)
        assert error(BEGUN, 4, outcome.law) == 0
    assert sources <= outcome.sources, "the path was not taken"


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("block", range(4))
def test_whatever_the_network_does_the_law_is_the_targets(block: int, rule: Rule) -> None:
    """Schedules drawn at random: losses, copies, changed orders, deaths and late answers, all mixed."""
    for seed in range(5 * block, 5 * block + 5):
        rng = random.Random(seed)
        weights = [9, 8, 7, 7, 4, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0.5, 0.5]
        schedule = "".join(rng.choices("DVdvTPxXcC2qrRkK", weights, k=rng.randint(4, 24)))
        setting = Setting(rule, rng.choice((1, 2)), rng.choice((1, 2, 3)), max_tokens=2, preverify=rng.random() < 0.5)
        check(every_run(WORLD, setting, schedule), 2, (seed, schedule, setting))


@pytest.mark.parametrize("rule", RULES)
def test_three_tokens_to_choose_from(rule: Rule) -> None:
    """With two a replacement is never drawn, since only one token is left."""
    world = World(seed=3, vocab_size=3, width=2, bits=8, draft_temperature=2)
    for schedule in ("", "DDDVvTVvd"):
        outcome = every_run(world, Setting(rule, length=2, max_tokens=2), schedule)
        assert error(world, 2, outcome.law) == 0, schedule


# Negative controls: what the worlds would see.


def test_draft_noise_used_again_after_a_rejection_shows_under_block_and_not_under_token(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    throw = Run.uniform

    def forgetful(run: Run, seed: int, domain: Domain, position: int, *, epoch: int = 0, branch: int = 0) -> float:
        return throw(run, seed, domain, position, epoch=0 if domain is Domain.DRAFT else epoch, branch=branch)

    monkeypatch.setattr(Run, "uniform", forgetful)
    for rule, is_exact in ((Rule.TOKEN, True), (Rule.BLOCK, False)):
        law = every_run(WORLD, Setting(rule, length=2, window=1), "").law
        assert (error(WORLD, 3, law) == 0) is is_exact, rule


@pytest.mark.parametrize("rule", RULES)
def test_losing_drafts_because_of_what_is_in_them_shows(rule: Rule, monkeypatch: pytest.MonkeyPatch) -> None:
    hear = Run.hear

    def choosy(run: Run, worker: str) -> None:
        if worker == "d" and run.replies["d"] and run.replies["d"][0].token_ids[0] == 1:
            run.replies["d"].popleft()
            run.act("T")
            run.act("V")
            run.act("v")
        hear(run, worker)

    monkeypatch.setattr(Run, "hear", choosy)
    assert error(WORLD, 2, every_run(WORLD, Setting(rule, length=1, window=1, max_tokens=2), "Vv").law) > 0


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(
    ("schedule", "length", "window", "max_tokens"),
    [
        ("DDD", 1, 1, 3),  # it comes before the first pass, or behind it
        ("DDD", 2, 2, 2),
        ("VvDT", 1, 1, 3),  # its drafter was silent, and is heard of while the verifier decodes
        ("VvDDT", 2, 1, 3),  # or behind that
        ("VvDdkD", 1, 1, 3),  # its drafter is new, and the verifier judges the old one's draft
        ("DdVvkDVv", 1, 1, 3),  # or decodes
        ("DdVvKDDVv", 1, 2, 3),  # the verifier is
    ],
)
def test_when_a_draft_comes_may_depend_on_what_is_in_it(
    schedule: str, length: int, window: int, max_tokens: int, rule: Rule, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it does where a length policy, or a drafted end of text, makes some drafts shorter than others."""
    hear = Run.hear

    def slow(run: Run, worker: str) -> None:
        if worker == "d" and run.replies["d"] and run.replies["d"][0].token_ids[-1] == 1:
            run.act("V")
            run.act("v")
        hear(run, worker)

    monkeypatch.setattr(Run, "hear", slow)
    monkeypatch.setattr(request, "SHORT_RUN", 1)
    monkeypatch.setattr(request, "RUN", 1)
    outcome = every_run(WORLD, Setting(rule, length, window, max_tokens), schedule)
    check(outcome, max_tokens, schedule)
    assert {SELF, ACCEPTED} <= outcome.sources
