"""The engine without a model: it drafts what it has seen, says when it has not, and needs no heavy library."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from drafter.guess import Method
from drafter.lookup import PromptLookup
from drafter.model_free import MAX_LEARNED, METHODS, ModelFreeEngine
from drafter.suffix import SuffixDecoding
from paceline.errors import InvalidInput, Overloaded, Unsupported
from paceline.length_policy import LengthPolicy
from paceline.types import (
    Close,
    Commit,
    Draft,
    DrafterReply,
    OpenDraft,
    Pass,
    Role,
    Rows,
    Rule,
    SamplingParams,
    Tokens,
    WorkerInfo,
)

PROMPT = (1, 2, 3, 4, 5, 6, 7, 1, 2)
INFO = WorkerInfo(Role.DRAFTER, "h:1", 1, "m", "0" * 64, "", 2**32 - 1, 10_000, 2, (), "", "cpu")


def engine(method: Method | None = None) -> ModelFreeEngine:
    return ModelFreeEngine(method or PromptLookup(), INFO)


def opened(
    name: str = "r", tokens: Tokens = PROMPT, *, rule: Rule = Rule.MATCH, policy: str = "fixed:length=2", **more: Any
) -> OpenDraft:
    settings: dict[str, Any] = {"window": 2, "end": 100_000} | more
    return OpenDraft(name, 0, tokens, SamplingParams(0), rule, 1, LengthPolicy.parse(policy), **settings)


def replies(it: ModelFreeEngine) -> list[DrafterReply]:
    found = []
    while it.has_work():
        found += [reply for _, reply in it.step()]
    return found


def drafts(it: ModelFreeEngine) -> list[tuple[int, Tokens, bool]]:
    return [(r.start, r.token_ids, r.is_open) for r in replies(it) if isinstance(r, Draft)]


@pytest.mark.parametrize("method", [PromptLookup(), SuffixDecoding()])
def test_it_drafts_ahead_until_the_window_is_full(method: Method) -> None:
    it = engine(method)
    it.handle(1, opened())
    assert drafts(it) == [(9, (3, 4), True), (11, (5, 6), True)]
    it.handle(1, Commit("r", 1, 9, (3, 4)))
    assert drafts(it) == [(13, (7, 1), True)]


def test_a_draft_says_in_advance_that_nothing_follows_it() -> None:
    it = engine()
    it.handle(1, opened(tokens=(1, 2, 3, 4, 1, 2), policy="fixed:length=8", end=8))
    assert drafts(it) == [(6, (3, 4), False)], "the request ends there"
    it = engine()
    it.handle(1, opened(tokens=(1, 2, 9, 8, 7), policy="fixed:length=8"))
    it.handle(1, Commit("r", 1, 5, (1, 2)))
    assert drafts(it)[0] == (7, (9, 8, 7, 1, 2, 9, 8, 7), True)
    it = engine(PromptLookup(max_ngram=3, min_ngram=3))
    it.handle(1, opened(tokens=(1, 2, 3, 4, 5, 5, 5, 1, 2, 3), policy="fixed:length=8", stop_token_ids=(4,)))
    assert drafts(it) == [(10, (4,), False)]


def test_where_nothing_is_known_it_passes_once_and_again_after_the_next_commit() -> None:
    it = engine()
    it.handle(1, opened(tokens=(1, 2, 3)))
    assert replies(it) == [Pass("r", 0, 3)]
    assert not it.has_work()
    it.handle(1, Commit("r", 1, 3, (4,)))
    assert replies(it) == [Pass("r", 1, 4)]
    it.handle(1, Commit("r", 2, 4, (1, 2)))
    assert drafts(it)[0] == (6, (3, 4), True)


@pytest.mark.parametrize("rule", Rule)
def test_under_rejection_sampling_a_draft_comes_with_the_truth_that_nothing_was_sampled(rule: Rule) -> None:
    it = engine()
    it.handle(1, opened(rule=rule))
    first = replies(it)[0]
    assert isinstance(first, Draft)
    assert first.rows == (Rows.certain((3, 4)) if rule.needs_rows else None)


@pytest.mark.parametrize(
    ("policy", "want"),
    [
        ("svip:threshold_nats=0.6", (7, 9)),
        ("confidence:threshold=0.6", (7, 9)),
        ("adaedl:threshold=0.7", (7,)),
        ("fixed:length=3", (7, 9, 0)),
    ],
)
def test_the_length_policy_sees_how_often_the_guess_was_right(policy: str, want: Tokens) -> None:
    """The pair 5, 6 is followed by 7 always, and 6, 7 by 8 and 9 alike: ln 2 nats, which is more than 0.6, and a lower
    bound of 1 - sqrt(0.2 ln 2) = 0.63 on the acceptance. AdaEDL stops before such a token, the others after it."""
    text = (5, 6, 7, 8, 0, 5, 6, 7, 9, 0, 4, 5, 6)
    it = engine(SuffixDecoding(max_ngram=2))
    it.handle(1, opened(tokens=text, policy=policy, window=1))
    assert drafts(it) == [(13, want, False)]


def test_a_policy_that_needs_a_trained_head_is_neither_offered_nor_taken() -> None:
    it = engine()
    assert "svip" in it.info.policies
    assert "specdecpp" not in it.info.policies
    with pytest.raises(Unsupported, match="no acceptance head"):
        it.handle(1, opened(policy="specdecpp"))
    assert not it.has_work()


def test_a_long_prompt_is_taken_in_bit_by_bit_between_the_drafts_of_others() -> None:
    it = engine()
    it.handle(1, opened("long", (*range(2 * MAX_LEARNED + 1), 5, 6)))
    it.handle(1, opened("short"))
    assert [reply.request_id for _, reply in it.step()] == ["short"]
    assert [reply.request_id for _, reply in it.step()] == ["short"]
    assert [reply.request_id for _, reply in it.step()] == ["long"]


def test_an_open_that_is_repeated_is_answered_with_what_is_outstanding() -> None:
    it = engine()
    it.handle(1, opened(tokens=(1, 2, 3)))
    replies(it)
    assert it.handle(1, opened(tokens=(1, 2, 3))) == [(1, Pass("r", 0, 3))]


def test_there_are_places_for_so_many_requests_of_such_a_length() -> None:
    it = engine()
    with pytest.raises(InvalidInput, match="at most 10000 tokens"):
        it.handle(1, opened(tokens=(1,) * 10_000))
    it.handle(1, opened("a"))
    it.handle(1, opened("b"))
    with pytest.raises(Overloaded, match="full at 2"):
        it.handle(1, opened("c"))
    it.handle(1, Close("a"))
    it.handle(1, opened("c"))
    it.drop(1)
    assert not it.has_work()


def test_its_places_are_divided_between_coordinators() -> None:
    it = engine()
    for name in "ab":
        it.handle(1, opened(name))
    with pytest.raises(Overloaded):
        it.handle(2, opened("c"))
    it.handle(1, Close("a"))
    with pytest.raises(Overloaded):
        it.handle(1, opened("d"))
    it.handle(2, opened("c"))
    it.drop(2)
    it.handle(1, opened("d"))
    assert it.num_requests == 2


def test_its_cost_is_measured_before_it_registers_and_small() -> None:
    it = engine()
    assert it.info.cost is not None
    assert 0 < it.info.cost.ms(1, 1, 1000) < 50, "not a time to assert on, but the unit is milliseconds"


def test_what_a_closed_request_wrote_serves_the_next_where_sharing_is_on() -> None:
    it = engine(SuffixDecoding(max_shared_tokens=100))
    it.handle(1, opened("a", (1, 2)))
    it.handle(1, Commit("a", 1, 2, (3, 4, 5, 6)))
    it.handle(1, Close("a"))
    it.handle(1, opened("b", (9, 2, 3)))
    assert drafts(it)[0] == (3, (4, 5), True)
    it.drop(1)
    it.handle(1, opened("c", (9, 2, 3)))
    assert drafts(it) == []


def test_nothing_heavy_is_imported() -> None:
    """What makes a start take seconds: torch, transformers, numpy."""
    program = """
import sys
import deploy.roles
from argparse import Namespace
from deploy.model_free import make_engine
from drafter.server import DRAFTER
import paceline.worker
for name in sys.argv[1:]:
    make_engine(Namespace(model=name, max_ngram=None, min_ngram=None, share_between_requests=False, max_model_len=None,
                          suffix_tokens=None, max_num_seqs=4))
print({"torch", "transformers", "numpy", "scipy", "tokenizers", "huggingface_hub"} & set(sys.modules))
"""
    command = [sys.executable, "-c", program, *METHODS]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "set()\n", done.stderr
