"""The rule `block` is exact: every draft and every coin, enumerated through the shipped functions, in fractions.

As `test_enumeration`, whose worlds and odometer it uses; the cuts come from the equations in `verifier.rules.block`,
in fractions. The negative controls break one thing each and must show.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction

import pytest
import torch
from torch import Tensor

from paceline import rows
from paceline.noise import Domain
from paceline.rows import DraftRows
from paceline.types import SamplingParams, Source, Tokens
from tests.verifier.test_enumeration import (
    LARGE,
    ROUNDED,
    SMALL,
    Cuts,
    Law,
    Row,
    ScriptedCoins,
    Strategy,
    World,
    cuts_of,
    drafts,
    error,
    every_way,
    output_law,
    plain,
)
from tests.verifier.test_enumeration import judged as token_judged
from tests.verifier.test_rules import as_logits, as_rows, chain_law, chain_rows, p_value_of, sampled_draft
from verifier.rules import Judgement, PhiloxCoins, block, judge_blocks, token

ZERO, ONE = Fraction(0), Fraction(1)


def keeps(world: World, prefix: Tokens, draft_ids: Tokens) -> list[Fraction]:
    """keep_0, …, keep_g."""
    keep = [ONE]
    for at, x in enumerate(draft_ids):
        before = prefix + draft_ids[:at]
        draft = world.draft(before)[x]
        keep.append(min(ONE, keep[-1] * world.target(before)[x] / draft) if draft else ZERO)
    return keep


def stops(world: World, prefix: Tokens, draft_ids: Tokens) -> list[Fraction]:
    """h_1, …, h_g."""
    keep = keeps(world, prefix, draft_ids)
    stop = []
    for at in range(1, len(draft_ids)):
        excess = sum(leftover(world, prefix + draft_ids[:at], keep[at]))
        short = 1 - keep[at]
        stop.append(excess / (excess + short) if excess + short else ONE)
    return [*stop, keep[-1]]


def leftover(world: World, prefix: Tokens, keep: Fraction) -> Row:
    return tuple(max(keep * t - d, ZERO) for t, d in zip(world.target(prefix), world.draft(prefix), strict=True))


def normal(row: Row, otherwise: Row) -> Row:
    return tuple(weight / sum(row) for weight in row) if any(row) else otherwise


def block_cuts(world: World, prefix: Tokens, chain: Sequence[Tokens]) -> Cuts:
    """Where the coins of the rule `block` are cut when it judges this chain of drafts, by its equations."""
    draft_ids: Tokens = sum(chain, ())
    start, before = len(prefix), [prefix + draft_ids[:at] for at in range(len(draft_ids) + 1)]
    place = [(sum(map(len, chain[:n])), ids) for n, ids in enumerate(chain) for _ in ids]

    def cuts(domain: Domain, position: int) -> list[Fraction]:
        at = position - start
        target = world.target(before[at])
        if domain is Domain.SAMPLE:
            return cuts_of(target)
        first, ids = place[at]
        if domain is Domain.BLOCK:
            return [stops(world, before[first], ids)[at - first]]
        assert domain is Domain.RECOVER
        keep = keeps(world, before[first], ids)[at - first]
        rows_ = [leftover(world, before[at], scale) for scale in (keep, ONE)]  # the second for the controls
        return [cut for row in [*rows_, target] for cut in cuts_of(normal(row, target))]

    return cuts


def judgements(
    world: World, prefix: Tokens, chain: Sequence[Tokens], *, take_bonus: bool = True
) -> Iterator[tuple[Fraction, Judgement]]:
    """What the shipped `judge_blocks` says of this chain of drafts, and how likely it is to."""
    draft_ids: Tokens = sum(chain, ())
    start, cuts = len(prefix), block_cuts(world, prefix, chain)
    before = [prefix + draft_ids[:at] for at in range(len(draft_ids) + 1)]
    logits = torch.stack([world.logits(at) for at in (before if take_bonus else before[:-1])])
    draft_rows = rows.unpack(world.wire_rows(before[:-1]), world.vocab_size) if draft_ids else None

    def run(coins: ScriptedCoins) -> Judgement:
        return judge_blocks(
            logits, chain, SamplingParams(), coins, start=start, take_bonus=take_bonus, draft_rows=draft_rows
        )

    return every_way(cuts, run)


def judged(world: World, prefix: Tokens, *chain: Tokens, take_bonus: bool = True) -> Law:
    """The law of what is committed, given this chain of drafts: fractions that sum to 1."""
    draft_ids: Tokens = sum(chain, ())
    law: Law = defaultdict(Fraction)
    for weight, judgement in judgements(world, prefix, chain, take_bonus=take_bonus):
        own = () if judgement.token_id is None else (judgement.token_id,)
        assert own or (not take_bonus and judgement.num_accepted == len(draft_ids))
        law[draft_ids[: judgement.num_accepted] + own] += weight
    assert sum(law.values()) == 1
    return law


Judged = Callable[..., Law]


def drafting(
    world: World,
    lengths: Sequence[int],
    *,
    take_bonus: bool = True,
    law: Callable[[Tokens], Row] | None = None,
    judge: Judged = judged,
) -> Strategy:
    """A chain of drafts of these lengths, judged together, and so on after whatever came out."""
    ends = [0, *itertools.accumulate(lengths)]

    def step(prefix: Tokens) -> Iterator[tuple[Fraction, Tokens]]:
        for weight, ids in drafts(world, prefix, ends[-1], law):
            chain = [ids[a:b] for a, b in itertools.pairwise(ends)]
            for outcome, chance in judge(world, prefix, *chain, take_bonus=take_bonus).items():
                yield weight * chance, outcome

    return step


@pytest.mark.parametrize("world", SMALL + LARGE + ROUNDED, ids=str)
@pytest.mark.parametrize("length", [1, 2])
def test_one_draft_then_the_target_is_exact(world: World, length: int) -> None:
    assert error(world, 3, output_law(world, 3, drafting(world, [length]), then=plain(world))) == 0


@pytest.mark.parametrize("world", SMALL, ids=str)
def test_a_draft_of_three_is_exact(world: World) -> None:
    assert error(world, 4, output_law(world, 4, drafting(world, [3]), then=plain(world))) == 0


@pytest.mark.parametrize("world", SMALL, ids=str)
def test_a_new_draft_after_a_rejection_is_exact(world: World) -> None:
    """The next block starts afresh: no state is carried over but the tokens."""
    assert error(world, 3, output_law(world, 3, drafting(world, [2]))) == 0


@pytest.mark.parametrize("world", SMALL, ids=str)
def test_open_drafts_whose_retained_row_judges_the_successor_are_exact(world: World) -> None:
    assert error(world, 3, output_law(world, 3, drafting(world, [2], take_bonus=False))) == 0


@pytest.mark.parametrize("world", SMALL, ids=str)
def test_an_open_draft_followed_by_self_decode_is_exact(world: World) -> None:
    def self_decode(prefix: Tokens) -> Iterator[tuple[Fraction, Tokens]]:
        for outcome, chance in judged(world, prefix).items():
            yield chance, outcome

    first = drafting(world, [2], take_bonus=False)
    assert error(world, 3, output_law(world, 3, first, then=self_decode)) == 0


@pytest.mark.parametrize("world", SMALL, ids=str)
@pytest.mark.parametrize("lengths", [(1, 1), (2, 1), (1, 2)])
@pytest.mark.parametrize("take_bonus", [True, False])
def test_drafts_that_share_a_pass_are_exact(world: World, lengths: Sequence[int], take_bonus: bool) -> None:
    law = output_law(world, 3, drafting(world, lengths, take_bonus=take_bonus), then=plain(world))
    assert error(world, 3, law) == 0


@pytest.mark.parametrize("world", SMALL, ids=str)
@pytest.mark.parametrize("length", [2, 3])
def test_salvaging_a_late_draft_is_exact(world: World, length: int) -> None:
    """The verifier has decoded y by itself; the draft's rest is a block of its own iff the draft begins with y."""

    def step(prefix: Tokens) -> Iterator[tuple[Fraction, Tokens]]:
        for weight, ids in drafts(world, prefix, length):
            for own, chance in judged(world, prefix).items():
                if own != ids[:1]:
                    yield weight * chance, own
                    continue
                for outcome, rest in judged(world, prefix + own, ids[1:]).items():
                    yield weight * chance * rest, own + outcome

    assert error(world, 3, output_law(world, 3, step, then=plain(world))) == 0


@pytest.mark.parametrize("world", SMALL + LARGE, ids=str)
def test_a_replacement_never_equals_the_token_it_replaces(world: World) -> None:
    """Coordinator and drafter tell a rejection by what was committed, as under every other rule."""
    for _, ids in drafts(world, (), 2):
        for _, judgement in judgements(world, (), [ids]):
            if judgement.source is Source.RECOVERED:
                assert judgement.token_id != ids[judgement.num_accepted]


def stopping(world: World, ends: Callable[[Tokens, int], bool], *, keeps_it: bool) -> Strategy:
    """Drafts of up to two that end where `ends(prefix, token)` says so, after that token or before it."""

    def step(prefix: Tokens) -> Iterator[tuple[Fraction, Tokens]]:
        shortened: Law = defaultdict(Fraction)
        for weight, ids in drafts(world, prefix, 2):
            at = next((i for i, x in enumerate(ids) if ends(prefix + ids[:i], x)), 2)
            shortened[ids[: at + keeps_it]] += weight
        for ids, weight in shortened.items():
            for outcome, chance in judged(world, prefix, ids).items():
                yield weight * chance, outcome

    return step


def by_row(world: World) -> Callable[[Tokens, int], bool]:
    return lambda prefix, _: max(world.draft(prefix)) < Fraction(2, 3)


def by_token(world: World) -> Callable[[Tokens, int], bool]:
    return lambda prefix, x: world.draft(prefix)[x] < Fraction(1, 2)


@pytest.mark.parametrize("world", SMALL, ids=str)
def test_where_a_draft_ends_may_depend_on_the_tokens_it_keeps(world: World) -> None:
    for ends in (by_row(world), by_token(world)):
        assert error(world, 3, output_law(world, 3, stopping(world, ends, keeps_it=True))) == 0
    assert error(world, 3, output_law(world, 3, stopping(world, by_row(world), keeps_it=False))) == 0


def arriving(world: World, *, as_one: bool) -> Strategy:
    """An open draft of one token and its successor, which has arrived in time for the pass iff its token is 0."""

    def step(prefix: Tokens) -> Iterator[tuple[Fraction, Tokens]]:
        for weight, ids in drafts(world, prefix, 2):
            first, second = ids[:1], ids[1:]
            if second == (0,):
                chain = (ids,) if as_one else (first, second)
                for outcome, chance in judged(world, prefix, *chain).items():
                    yield weight * chance, outcome
                continue
            for outcome, chance in judged(world, prefix, first, take_bonus=False).items():
                if outcome != first:
                    yield weight * chance, outcome
                    continue
                for rest, then in judged(world, prefix + first, second).items():
                    yield weight * chance * then, first + rest

    return step


@pytest.mark.parametrize("world", SMALL, ids=str)
def test_which_drafts_share_a_pass_may_depend_on_what_is_in_them(world: World) -> None:
    assert error(world, 3, output_law(world, 3, arriving(world, as_one=False))) == 0


def reusing(world: World, judge: Judged) -> Law:
    """The law of two tokens where the draft noise of position 1 is thrown once, for a first and for a second draft."""
    law: Law = defaultdict(Fraction)
    every_cut = {cut for x in range(world.vocab_size) for cut in cuts_of(world.draft((x,)))}
    edges = sorted({ZERO, *every_cut})

    def drawn(prefix: Tokens, at: Fraction) -> Tokens:
        return (next(x for x, cut in enumerate(cuts_of(world.draft(prefix))) if at < cut),)

    for weight, head in drafts(world, (), 1):
        for low, high in itertools.pairwise(edges):
            middle = (low + high) / 2
            for outcome, chance in judge(world, (), head + drawn(head, middle)).items():
                mass = weight * (high - low) * chance
                if len(outcome) > 1:
                    law[outcome[:2]] += mass
                    continue
                for rest, then in judge(world, outcome, drawn(outcome, middle)).items():
                    law[(outcome + rest)[:2]] += mass * then
    return law


# Negative controls. A world of one-token rows has nothing random in a draft, and little to go wrong.

VARIED = [world for world in SMALL if world.width > 1]


def worst(law: Callable[[World], Law]) -> Fraction:
    return max(error(world, 2, law(world)) for world in VARIED)


def test_draft_noise_used_again_after_a_rejection_shows_under_block_and_not_under_token() -> None:
    assert worst(lambda world: reusing(world, judged)) > Fraction(1, 100)
    assert worst(lambda world: reusing(world, token_judged)) == 0


def test_a_block_that_reaches_further_because_of_what_is_in_it_shows() -> None:
    assert worst(lambda world: output_law(world, 2, arriving(world, as_one=True))) > Fraction(1, 100)


def test_the_residual_of_token_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    """The excess must be scaled by the running product. Few samples would ever show it."""

    def unscaled(target_probs: Tensor, keep: Tensor, draft_rows: DraftRows, at: int) -> Tensor:
        return token.residual(target_probs[at], draft_rows.ids[at], draft_rows.probs[at])

    monkeypatch.setattr(block, "residual", unscaled)
    world = World(seed=13, vocab_size=4, width=4)  # with fewer tokens there is often nothing to tell apart
    assert error(world, 2, output_law(world, 2, drafting(world, [2]))) > Fraction(1, 1000)


def test_replacing_from_the_target_row_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(block, "residual", lambda target_probs, keep, draft_rows, at: target_probs[at])
    assert worst(lambda world: output_law(world, 2, drafting(world, [2]))) > Fraction(1, 100)


def test_stopping_the_scan_at_the_first_failure_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    def first_failure(stop: list[float], coins: ScriptedCoins, start: int) -> int:
        for at, h in enumerate(stop):
            if not coins.uniform(Domain.BLOCK, start + at) < h:
                return at
        return len(stop)

    monkeypatch.setattr(block, "scan", first_failure)
    assert worst(lambda world: output_law(world, 2, drafting(world, [2]))) > Fraction(1, 100)


def test_dropping_a_token_by_its_own_probability_shows() -> None:
    assert worst(lambda world: output_law(world, 2, stopping(world, by_token(world), keeps_it=False))) > Fraction(
        1, 100
    )


def test_sampling_from_the_full_row_while_sending_the_truncated_one_shows() -> None:
    assert worst(lambda world: output_law(world, 2, drafting(world, [2], law=world.full_draft))) > Fraction(1, 100)


# By hand, and with real coins.


def test_the_papers_example_keeps_eleven_ninths_where_token_keeps_ten() -> None:
    """Target (1/3, 2/3), draft (2/3, 1/3), two tokens: section 2 of the paper. The counts hold thirds exactly."""

    class Paper(World):
        def _row(self, name: str, prefix: Tokens) -> Row:
            third = Fraction(1, 3)
            return (third, 2 * third) if name == "target" else (2 * third, third)

    world = Paper(seed=0, vocab_size=2, width=2)

    def mean_kept(judge: Judged) -> Fraction:
        total = ZERO
        for weight, ids in drafts(world, (), 2):
            total += weight * sum(((len(out) - 1) * chance for out, chance in judge(world, (), ids).items()), ZERO)
        return total

    assert mean_kept(token_judged) == Fraction(10, 9)
    assert mean_kept(judged) == Fraction(11, 9)


def test_a_row_padded_with_a_token_of_no_mass_judges_alike() -> None:
    """Rows of drafts that share a pass are widened to one width with token 0, which may stand in the row already."""
    logits = as_logits([0.5, 0.25, 0.25], [0.6, 0.2, 0.2], [0.1, 0.1, 0.8]).double()
    target_probs = logits.softmax(-1)
    lean = as_rows([0.5, 0.5, 0.0], [0.25, 0.75, 0.0])
    padded = DraftRows(torch.nn.functional.pad(lean.ids, (0, 3)), torch.nn.functional.pad(lean.probs, (0, 3)))
    keep = block.keep_probs(target_probs, (0, 1), lean)
    assert torch.equal(keep, block.keep_probs(target_probs, (0, 1), padded))
    assert torch.equal(block.stop_probs(target_probs, keep, lean), block.stop_probs(target_probs, keep, padded))


def test_coins_of_a_block_are_new_in_each_epoch_and_the_others_are_not() -> None:
    first, second = PhiloxCoins(7, epoch=1), PhiloxCoins(7, epoch=2)
    assert first.uniform(Domain.BLOCK, 5) != second.uniform(Domain.BLOCK, 5)
    for domain in (Domain.ACCEPT, Domain.RECOVER, Domain.SAMPLE):
        assert first.uniform(domain, 5) == second.uniform(domain, 5)


def test_real_coins_have_the_targets_law() -> None:
    """One seed feeds the drafter and the verifier, so a coin used for two things would show."""
    base, num_runs, vocab_size = 20_260_301, 500, 4
    outputs = []
    for seed in range(base, base + num_runs):
        prefix: Tokens = ()
        epoch = 0
        while len(prefix) < 2:
            ids, draft_rows = sampled_draft(prefix, 2, vocab_size, SamplingParams(), seed, epoch)
            logits, coins = chain_rows(prefix, ids, vocab_size), PhiloxCoins(seed, epoch)
            got = block.judge(logits, ids, SamplingParams(), coins, start=len(prefix), draft_rows=draft_rows)
            assert got.token_id is not None
            prefix += (*ids[: got.num_accepted], got.token_id)
            epoch += 1
        outputs.append(prefix[:2])
    p_value = p_value_of(outputs, chain_law(2, vocab_size, SamplingParams()))
    assert p_value > 1e-3, f"seeds from {base}: p = {p_value}"
