"""Drafts in which nothing is sampled are exact under rejection sampling, enumerated as in `test_enumeration`.

Every row is one-hot, as the drafters without a model send it; the tokens are those that they propose, prefix by prefix,
and where they have none to propose the target decodes by itself, after an open draft too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from functools import cache

import pytest
import torch

from drafter.guess import Guesser
from drafter.lookup import Lookup, PromptLookup
from drafter.suffix import Suffix, SuffixDecoding
from paceline import rows
from paceline.length_policy import LengthPolicy
from paceline.types import OpenDraft, Rows, Rule, SamplingParams, Tokens
from tests.verifier import test_block, test_enumeration
from tests.verifier.test_enumeration import Law, Strategy, World, error, output_law

ASK = OpenDraft("r", 0, (0,), SamplingParams(), Rule.TOKEN, 1, LengthPolicy(), 1, 100)
JUDGED: dict[Rule, Callable[..., Law]] = {Rule.TOKEN: test_enumeration.judged, Rule.BLOCK: test_block.judged}


class Copied(World):
    """The draft rows are one-hot: what a drafter without a model proposes after `start` and the prefix."""

    start: Tokens = (0, 1, 2, 0, 0, 1, 1, 2)
    kind: str = "lookup"

    def __hash__(self) -> int:
        return hash((self.seed, self.vocab_size, self.kind))

    @cache  # noqa: B019
    def proposal(self, prefix: Tokens) -> int | None:
        tokens = self.start + prefix
        guesser: Guesser = (
            Lookup(PromptLookup(3, 2)) if self.kind == "lookup" else Suffix(SuffixDecoding(min_ngram=2), ASK, None)
        )
        guesser.learn(tokens, len(tokens))
        found = guesser.guess(tokens)
        return found.token_id if found else None

    def wire_rows(self, prefixes: Sequence[Tokens]) -> Rows:
        proposed = [self.proposal(prefix) for prefix in prefixes]
        return Rows.certain(tuple(token for token in proposed if token is not None))


class CopiedBySuffix(Copied):
    kind = "suffix"


WORLDS = [kind(seed, vocab_size=3, width=1) for kind in (Copied, CopiedBySuffix) for seed in (1, 2)]


def proposed(world: Copied, prefix: Tokens, length: int) -> tuple[Tokens, bool]:
    """A draft of at most so many tokens, and whether there is a successor to it."""
    chain: Tokens = ()
    while len(chain) < length and (token := world.proposal(prefix + chain)) is not None:
        chain += (token,)
    return chain, world.proposal(prefix + chain) is not None


def drafting(world: Copied, rule: Rule, length: int, *, in_pearl: bool) -> Strategy:
    """As the engine does: open only if a successor is there; nothing proposed is nothing judged."""

    def step(prefix: Tokens) -> Iterator[tuple[Fraction, Tokens]]:
        draft_ids, goes_on = proposed(world, prefix, length)
        if not draft_ids:
            yield from test_enumeration.plain(world)(prefix)
            return
        law = JUDGED[rule](world, prefix, draft_ids, take_bonus=not (in_pearl and goes_on))
        yield from ((chance, outcome) for outcome, chance in law.items())

    return step


@pytest.mark.parametrize("world", WORLDS, ids=lambda world: f"{world.kind}-{world.seed}")
@pytest.mark.parametrize("rule", JUDGED)
@pytest.mark.parametrize("in_pearl", [False, True])
def test_copied_drafts_are_exact(world: Copied, rule: Rule, in_pearl: bool) -> None:
    for length in (1, 2, 3):
        assert error(world, 4, output_law(world, 4, drafting(world, rule, length, in_pearl=in_pearl))) == 0


@pytest.mark.parametrize("world", WORLDS, ids=lambda world: f"{world.kind}-{world.seed}")
@pytest.mark.parametrize("rule", JUDGED)
def test_passing_after_a_draft_that_promised_a_successor_is_exact_too(world: Copied, rule: Rule) -> None:
    """What was there to propose may be forgotten meanwhile: the retained row is sampled instead of judging."""

    def step(prefix: Tokens) -> Iterator[tuple[Fraction, Tokens]]:
        draft_ids, _ = proposed(world, prefix, 2)
        if not draft_ids or len(prefix) % 2:
            yield from test_enumeration.plain(world)(prefix)
            return
        law = JUDGED[rule](world, prefix, draft_ids, take_bonus=False)
        yield from ((chance, outcome) for outcome, chance in law.items())

    assert error(world, 4, output_law(world, 4, step)) == 0


def test_the_worlds_propose_something_and_nothing() -> None:
    for world in WORLDS:
        found = [world.proposal(prefix) for prefix in ((), (0,), (1, 1), (2, 2), (2, 1), (1, 0))]
        assert None in found
        assert len(set(found)) > 2


def test_certain_rows_are_those_of_a_law_without_chance() -> None:
    token_ids = (3, 0, 2)
    one_hot = torch.nn.functional.one_hot(torch.tensor(token_ids), 5).double()
    assert Rows.certain(token_ids) == rows.pack(*rows.truncate(one_hot, 1))
    read = rows.unpack(Rows.certain(token_ids), 5, token_ids=token_ids)
    assert read.probs.tolist() == [[1.0]] * 3
