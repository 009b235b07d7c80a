"""The rule `token` is exact: every draft and every coin, enumerated through the shipped `judge`, in
fractions.

A small world has a target law and a draft law for every prefix. A coin is a number between 0 and 1 of which
only the interval between two cuts matters; the cuts are known as fractions from the equations, independently
of the code. So `judge` is run once for each combination of intervals, at their midpoints, and weighted with
the product of their lengths: the law of the output comes out as exact fractions and must equal the target's
law with error exactly 0. (Only inside `judge` is there floating point, float64; a midpoint is at least 1e-9
from its cuts, rounding errs by 1e-15, so it cannot come out on the wrong side.)

The negative controls break one thing each and must show an error; they show that the test can see.
"""

from __future__ import annotations

import itertools
import math
import random
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cache

import pytest
import torch
from torch import Tensor

from paceline import rows
from paceline.noise import Domain
from paceline.rows import CountRows
from paceline.sampling import target_probs
from paceline.types import Rows, SamplingParams, Tokens
from verifier.rules import Judgement, token

Row = tuple[Fraction, ...]
Law = dict[Tokens, Fraction]
# What a strategy makes of a prefix: (weight, tokens committed next), covering all its coins and drafts.
Strategy = Callable[[Tokens], Iterator[tuple[Fraction, Tokens]]]
Cuts = Callable[[Domain, int], list[Fraction]]


@dataclass(frozen=True)
class World:
    """Random laws by prefix; the draft rows are heated, truncated to `width`, quantised to `bits`, and have been on
    the wire."""

    seed: int
    vocab_size: int
    width: int
    bits: int = 16
    draft_temperature: float = 1.0

    def __hash__(self) -> int:
        return hash((self.seed, self.vocab_size, self.width, self.bits, self.draft_temperature))

    def _row(self, name: str, prefix: Tokens) -> Row:
        weights = [0] * self.vocab_size
        generator = random.Random(f"{self.seed} {name} {prefix}")
        while not any(weights):
            weights = [generator.choice((0, 1, 1, 2, 3, 5, 8)) for _ in weights]
        return tuple(Fraction(weight, sum(weights)) for weight in weights)

    @cache  # noqa: B019
    def target(self, prefix: Tokens) -> Row:
        return self._row("target", prefix)

    @cache  # noqa: B019
    def full_draft(self, prefix: Tokens) -> Row:
        return self._row("draft", prefix)

    @cache  # noqa: B019
    def counts(self, prefix: Tokens) -> CountRows:
        """What a drafter truncates and rounds, by its own functions."""
        logits = as_logits(self.full_draft(prefix))[None]
        heated = target_probs(logits, SamplingParams(temperature=self.draft_temperature))
        return rows.truncate(heated, self.width, self.bits)

    def wire_rows(self, prefixes: Sequence[Tokens]) -> Rows:
        """The rows after each of `prefixes`, as they cross."""
        kept = [self.counts(prefix) for prefix in prefixes]
        return rows.pack(torch.cat([row.ids for row in kept]), torch.cat([row.counts for row in kept]), self.bits)

    @cache  # noqa: B019
    def draft(self, prefix: Tokens) -> Row:
        """The law that is sampled and sent."""
        ids, probs = rows.unpack(self.wire_rows([prefix]), self.vocab_size)
        total = rows.total(self.bits)
        counts = rows.dense(ids, probs * total, self.vocab_size)[0].round().long().tolist()
        assert sum(counts) == total
        return tuple(Fraction(count, total) for count in counts)

    def residual(self, prefix: Tokens) -> Row:
        excess = [max(t - d, Fraction(0)) for t, d in zip(self.target(prefix), self.draft(prefix), strict=True)]
        return tuple(e / sum(excess) for e in excess) if any(excess) else self.target(prefix)

    def logits(self, prefix: Tokens) -> Tensor:
        return as_logits(self.target(prefix))


def as_logits(row: Row) -> Tensor:
    return torch.tensor([float(p) for p in row], dtype=torch.float64).log()


def cuts_of(row: Row) -> list[Fraction]:
    return list(itertools.accumulate(row))


@dataclass
class ScriptedCoins:
    """Coins that fall into the interval that `script` names, and into the first one beyond its end."""

    cuts: Cuts
    script: Sequence[int]
    choices: list[int] = field(default_factory=list)
    num_choices: list[int] = field(default_factory=list)
    weight: Fraction = Fraction(1)
    used: set[tuple[Domain, int]] = field(default_factory=set)

    def uniform(self, domain: Domain, position: int) -> float:
        assert (domain, position) not in self.used, "a coin was used twice"
        self.used.add((domain, position))
        inner = {cut for cut in self.cuts(domain, position) if 0 < cut < 1}
        edges = [Fraction(0), *sorted(inner), Fraction(1)]
        at = len(self.choices)
        choice = self.script[at] if at < len(self.script) else 0
        self.choices.append(choice)
        self.num_choices.append(len(edges) - 1)
        self.weight *= edges[choice + 1] - edges[choice]
        return float((edges[choice] + edges[choice + 1]) / 2)

    def gumbel(self, domain: Domain, positions: Sequence[int], vocab_size: int, device: torch.device) -> Tensor:
        raise AssertionError("the rule `token` draws by inverse CDF")


def every_way(cuts: Cuts, run: Callable[[ScriptedCoins], Judgement]) -> Iterator[tuple[Fraction, Judgement]]:
    """Run with every combination of coins (an odometer whose wheels appear as they are asked for)."""
    script: list[int] = []
    while True:
        coins = ScriptedCoins(cuts, script)
        judgement = run(coins)
        yield coins.weight, judgement
        script = coins.choices
        while script and script[-1] + 1 == coins.num_choices[len(script) - 1]:
            script.pop()
        if not script:
            return
        script[-1] += 1


def token_cuts(world: World, prefix: Tokens, draft_ids: Tokens) -> Cuts:
    """Where the coins of the rule `token` are cut when it judges this draft, by its equations."""
    start = len(prefix)

    def cuts(domain: Domain, position: int) -> list[Fraction]:
        at = prefix + draft_ids[: position - start]
        if domain is Domain.SAMPLE:
            return cuts_of(world.target(at))
        if domain is Domain.RECOVER:  # and the target's cuts, for the control that samples from it
            return cuts_of(world.residual(at)) + cuts_of(world.target(at))
        assert domain is Domain.ACCEPT
        x = draft_ids[position - start]
        draft = world.draft(at)[x]
        return [world.target(at)[x] / draft] if draft else []

    return cuts


def judged(world: World, prefix: Tokens, draft_ids: Tokens, *, take_bonus: bool = True) -> Law:
    """The law of what the shipped `judge` commits, given this draft: fractions that sum to 1."""
    start, cuts = len(prefix), token_cuts(world, prefix, draft_ids)
    before = [prefix + draft_ids[:at] for at in range(len(draft_ids) + 1)]
    logits = torch.stack([world.logits(at) for at in (before if take_bonus else before[:-1])])
    draft_rows = rows.unpack(world.wire_rows(before[:-1]), world.vocab_size) if draft_ids else None

    def run(coins: ScriptedCoins) -> Judgement:
        return token.judge(
            logits,
            draft_ids,
            SamplingParams(),
            coins,
            start=start,
            take_bonus=take_bonus,
            draft_rows=draft_rows,
        )

    law: Law = defaultdict(Fraction)
    for weight, judgement in every_way(cuts, run):
        own = () if judgement.token_id is None else (judgement.token_id,)
        assert own or (not take_bonus and judgement.num_accepted == len(draft_ids))
        law[draft_ids[: judgement.num_accepted] + own] += weight
    assert sum(law.values()) == 1
    return law


def drafts(
    world: World, prefix: Tokens, length: int, law: Callable[[Tokens], Row] | None = None
) -> Iterator[tuple[Fraction, Tokens]]:
    """Every draft of this length that has mass, and its probability, by default from the rows that are
    sent."""
    law = law or world.draft
    for draft_ids in itertools.product(range(world.vocab_size), repeat=length):
        weight = math.prod((law(prefix + draft_ids[:at])[x] for at, x in enumerate(draft_ids)), start=Fraction(1))
        if weight:
            yield weight, draft_ids


def closed(world: World, length: int) -> Strategy:
    """A draft, its judgement with a bonus, a new draft after whatever came out, and so on."""

    def step(prefix: Tokens) -> Iterator[tuple[Fraction, Tokens]]:
        for weight, draft_ids in drafts(world, prefix, length):
            for outcome, chance in judged(world, prefix, draft_ids).items():
                yield weight * chance, outcome

    return step


def output_law(world: World, num_tokens: int, step: Strategy, then: Strategy | None = None) -> Law:
    """The law of the first `num_tokens` tokens: `step` once, then `then` (by default `step`) for as long as
    needed."""
    law: Law = defaultdict(Fraction)
    pending: Law = {(): Fraction(1)}
    while pending:
        longer: Law = defaultdict(Fraction)
        for prefix, weight in pending.items():
            for chance, new in step(prefix):
                assert new, "no progress"
                output = (prefix + new)[:num_tokens]
                (law if len(output) == num_tokens else longer)[output] += weight * chance
        pending, step = longer, then or step
    return law


def target_law(world: World, num_tokens: int) -> Law:
    return {tokens: weight for weight, tokens in drafts(world, (), num_tokens, world.target)}


def plain(world: World) -> Strategy:
    """The target's own decode, in fractions."""

    def step(prefix: Tokens) -> Iterator[tuple[Fraction, Tokens]]:
        for token_id, weight in enumerate(world.target(prefix)):
            yield weight, (token_id,)

    return step


def error(world: World, num_tokens: int, law: Law) -> Fraction:
    """Total variation distance from the target's law; exactly 0 if the output is lossless."""
    want = target_law(world, num_tokens)
    assert sum(law.values()) == 1
    everything = want.keys() | law.keys()
    return sum((abs(law.get(key, Fraction(0)) - want.get(key, Fraction(0))) for key in everything), Fraction(0)) / 2


SMALL = [World(seed, vocab_size=3, width=width) for seed, width in ((1, 1), (2, 2), (3, 3), (4, 2))]
LARGE = [
    World(seed=5, vocab_size=4, width=2),
    World(seed=6, vocab_size=4, width=3),
    World(seed=7, vocab_size=5, width=4),
]
# Coarse counts, and drafts colder or hotter than the request: other laws to draft by, and so no matter.
ROUNDED = [
    World(seed=8, vocab_size=4, width=width, bits=bits, draft_temperature=temperature)
    for width, bits, temperature in itertools.product((1, 2, 4), (8, 12, 16), (0.5, 1.0, 2.0))
]


@pytest.mark.parametrize("world", SMALL + LARGE + ROUNDED, ids=str)
@pytest.mark.parametrize("length", [1, 2])
def test_one_draft_then_the_target_is_exact(world: World, length: int) -> None:
    law = output_law(world, 3, closed(world, length), then=plain(world))
    assert error(world, 3, law) == 0


@pytest.mark.parametrize("world", SMALL + LARGE, ids=str)
def test_a_draft_of_three_is_exact(world: World) -> None:
    assert error(world, 4, output_law(world, 4, closed(world, 3), then=plain(world))) == 0


@pytest.mark.parametrize("world", SMALL, ids=str)
def test_a_new_draft_after_a_rejection_is_exact(world: World) -> None:
    """Draft after draft; three tokens pass through up to three judgements, most of them after a rejection."""
    assert error(world, 3, output_law(world, 3, closed(world, 2))) == 0


@pytest.mark.parametrize("world", SMALL, ids=str)
def test_open_drafts_whose_retained_row_judges_the_successor_are_exact(world: World) -> None:
    def step(prefix: Tokens) -> Iterator[tuple[Fraction, Tokens]]:
        for weight, draft_ids in drafts(world, prefix, 2):
            for outcome, chance in judged(world, prefix, draft_ids, take_bonus=False).items():
                yield weight * chance, outcome

    assert error(world, 3, output_law(world, 3, step)) == 0


@pytest.mark.parametrize("world", SMALL, ids=str)
def test_an_open_draft_followed_by_self_decode_is_exact(world: World) -> None:
    """The successor never came: the retained row is sampled afresh, which is judging an empty draft."""

    def first(prefix: Tokens) -> Iterator[tuple[Fraction, Tokens]]:
        for weight, draft_ids in drafts(world, prefix, 2):
            for outcome, chance in judged(world, prefix, draft_ids, take_bonus=False).items():
                yield weight * chance, outcome

    def self_decode(prefix: Tokens) -> Iterator[tuple[Fraction, Tokens]]:
        for outcome, chance in judged(world, prefix, ()).items():
            yield chance, outcome

    assert error(world, 3, output_law(world, 3, first, then=self_decode)) == 0


def salvage(world: World, length: int) -> Strategy:
    """A draft comes late: the verifier has decoded y at its first position, and uses the rest iff it begins
    with y."""

    def step(prefix: Tokens) -> Iterator[tuple[Fraction, Tokens]]:
        for weight, draft_ids in drafts(world, prefix, length):
            for own, chance in judged(world, prefix, ()).items():
                if own != draft_ids[:1]:
                    yield weight * chance, own
                    continue
                for outcome, rest in judged(world, prefix + own, draft_ids[1:]).items():
                    yield weight * chance * rest, own + outcome

    return step


@pytest.mark.parametrize("world", SMALL, ids=str)
@pytest.mark.parametrize("length", [2, 3])
def test_salvaging_a_late_draft_is_exact(world: World, length: int) -> None:
    assert error(world, 3, output_law(world, 3, salvage(world, length))) == 0


def stopping(world: World, max_length: int, ends: Callable[[Tokens, int], bool], *, keeps: bool) -> Strategy:
    """Drafts that end where `ends(prefix, token)` says so, after that token (`keeps`) or before it."""

    def step(prefix: Tokens) -> Iterator[tuple[Fraction, Tokens]]:
        shortened: Law = defaultdict(Fraction)
        for weight, draft_ids in drafts(world, prefix, max_length):
            at = next((i for i, x in enumerate(draft_ids) if ends(prefix + draft_ids[:i], x)), max_length)
            shortened[draft_ids[: at + keeps]] += weight
        for draft_ids, weight in shortened.items():
            for outcome, chance in judged(world, prefix, draft_ids).items():
                yield weight * chance, outcome

    return step


@pytest.mark.parametrize("world", SMALL, ids=str)
def test_stopping_by_the_row_or_by_a_token_that_is_kept_is_exact(world: World) -> None:
    def by_row(prefix: Tokens, token_id: int) -> bool:
        return max(world.draft(prefix)) < Fraction(2, 3)

    def by_token(prefix: Tokens, token_id: int) -> bool:
        return world.draft(prefix)[token_id] < Fraction(1, 2)

    assert error(world, 3, output_law(world, 3, stopping(world, 2, by_row, keeps=True))) == 0
    assert error(world, 3, output_law(world, 3, stopping(world, 2, by_row, keeps=False))) == 0
    assert error(world, 3, output_law(world, 3, stopping(world, 2, by_token, keeps=True))) == 0


# Negative controls.


@pytest.mark.parametrize("world", SMALL, ids=str)
def test_dropping_a_token_by_its_own_probability_shows(world: World) -> None:
    def by_token(prefix: Tokens, token_id: int) -> bool:
        return world.draft(prefix)[token_id] < Fraction(1, 2)

    found = error(world, 2, output_law(world, 2, stopping(world, 2, by_token, keeps=False)))
    if world.width == 1:  # a row of one token has nothing to drop
        assert found == 0
    else:
        assert found > Fraction(1, 100)


@pytest.mark.parametrize("world", SMALL, ids=str)
def test_replacing_from_the_target_row_shows(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token, "residual", lambda target_row, ids, probs: target_row)
    assert error(world, 2, output_law(world, 2, closed(world, 2))) > Fraction(1, 100)


@pytest.mark.parametrize("world", [world for world in SMALL if world.width < 3], ids=str)
def test_sampling_from_the_full_row_while_sending_the_truncated_one_shows(world: World) -> None:
    def step(prefix: Tokens) -> Iterator[tuple[Fraction, Tokens]]:
        for weight, draft_ids in drafts(world, prefix, 2, law=world.full_draft):
            for outcome, chance in judged(world, prefix, draft_ids).items():
                yield weight * chance, outcome

    assert error(world, 2, output_law(world, 2, step)) > Fraction(1, 100)


def test_quantising_after_sampling_shows() -> None:
    """Even rounding to 1/65535 shows when the token was drawn from the row before it: the test sees 1e-6."""
    world = World(seed=3, vocab_size=3, width=3)

    def step(prefix: Tokens) -> Iterator[tuple[Fraction, Tokens]]:
        for weight, draft_ids in drafts(world, prefix, 2, law=world.full_draft):
            for outcome, chance in judged(world, prefix, draft_ids).items():
                yield weight * chance, outcome

    assert 0 < error(world, 2, output_law(world, 2, step)) < Fraction(1, 10_000)
