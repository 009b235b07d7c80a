"""A draft that ends before a token is drawn: its row serves the next draft, once, while it is the right one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from drafter.engine import DrafterEngine
from paceline import sampling
from paceline.engine.runner import Chunk
from paceline.length_policy import LengthPolicy
from paceline.types import Commit, Draft, OpenDraft, Role, Rule, SamplingParams, Tokens, WorkerInfo
from tests.drafter.test_engine import PROMPT, check
from tests.verifier.test_engine import VOCAB, ToyRunner
from tests.verifier.test_rules import chain

# Toy rows have up to 1.8 nats; this stops above 1.25.
UNCERTAIN = "adaedl:threshold=0.5,max_length=5"
END = 40


class CountingRunner(ToyRunner):
    """Notes which positions are forwarded, in order."""

    def forward(self, chunks: Sequence[Chunk]) -> Tensor:
        self.positions: list[int]
        for chunk in chunks:
            self.positions += range(chunk.start, chunk.start + len(chunk.token_ids))
        return super().forward(chunks)


def engine() -> DrafterEngine:
    info = WorkerInfo(Role.DRAFTER, "h:1", 1, "m", "0" * 64, "0" * 64, VOCAB, 1000, 8, (), "float32", "cpu")
    runner: Any = CountingRunner(info)
    runner.positions = []
    return DrafterEngine(runner, info, row_width=3)


def opened(policy: str, *, window: int, rule: Rule = Rule.TOKEN, seed: int = 5) -> OpenDraft:
    parsed = LengthPolicy.parse(policy)
    return OpenDraft("r", 0, PROMPT, SamplingParams(), rule, seed, parsed, window, END, num_prompt_tokens=len(PROMPT))


def drafted(it: DrafterEngine) -> list[Draft]:
    """Everything that fits into the window."""
    found: list[Draft] = []
    while it.has_work():
        replies = it.step()
        found += [reply for _, reply in replies if isinstance(reply, Draft)]
    return found


def entropy_after(prefix: Tokens) -> float:
    return float(sampling.entropy_nats(chain(prefix, VOCAB)[None]))


def tokens_of(drafts: Sequence[Draft]) -> Tokens:
    return sum((draft.token_ids for draft in drafts), ())


@pytest.mark.parametrize("rule", list(Rule))
def test_the_chain_is_that_of_any_other_policy_and_only_cut_elsewhere(rule: Rule) -> None:
    plain, cut = engine(), engine()
    plain.handle(0, opened("fixed:length=5", window=64, rule=rule))
    cut.handle(0, opened(UNCERTAIN, window=64, rule=rule))
    expected, found = drafted(plain), drafted(cut)
    assert tokens_of(found) == tokens_of(expected)
    assert len({len(draft.token_ids) for draft in found}) > 2, "the policy cuts nowhere, or everywhere"
    for draft in found:
        prefix = PROMPT + tokens_of(found)[: draft.start - len(PROMPT)]
        rows = [entropy_after(prefix + draft.token_ids[:at]) for at in range(len(draft.token_ids) + 1)]
        assert all(nats <= 1.25 for nats in rows[1:-1]), "it should have ended before"
        assert rows[-1] > 1.25 or len(draft.token_ids) == 5 or draft.end == END


def test_no_position_is_forwarded_twice_whether_the_window_has_room_or_not() -> None:
    for window in (1, 2, 64):
        it = engine()
        it.handle(0, opened(UNCERTAIN, window=window))
        committed = len(PROMPT)
        while committed < END:
            drafts = drafted(it)
            assert drafts, "it drafts on once there is room"
            for draft in drafts:
                it.handle(0, Commit("r", 0, draft.start, draft.token_ids))
                committed = draft.end
        positions = it.runner.positions  # type: ignore[attr-defined]
        assert positions == list(range(END - 1)), "each once, in order; the last token needs no successor"


def test_a_row_that_waits_for_the_window_is_not_used_after_a_commit_that_disagrees() -> None:
    num_waiting = 0
    for seed in range(20):
        it = engine()
        it.handle(0, opened(UNCERTAIN, window=1, seed=seed))
        (draft,) = drafted(it)
        (entry,) = it._entries.values()
        num_waiting += entry.has_row
        other = (draft.token_ids[-1] + 1) % VOCAB
        it.handle(0, Commit("r", 1, draft.start, (*draft.token_ids[:-1], other)))
        again = drafted(it)[0]
        assert (again.start, again.epoch) == (draft.end, 1)
        check_start(again, PROMPT + draft.token_ids[:-1] + (other,), seed)
    assert num_waiting > 5, "no row ever waited"


def check_start(draft: Draft, prefix: Tokens, seed: int) -> None:
    """The draft's first token was drawn from the row after `prefix` (`check` wants whole drafts of three)."""
    assert draft.rows is not None
    width = draft.rows.width
    ids = torch.frombuffer(bytearray(draft.rows.ids[: 4 * width]), dtype=torch.int32)
    assert set(ids.tolist()) == set(chain(prefix, VOCAB).topk(width).indices.tolist())


def test_a_bonus_after_a_draft_that_ended_before_a_token_makes_its_row_stale() -> None:
    for seed in range(12):
        it = engine()
        it.handle(0, opened(UNCERTAIN, window=1, seed=seed))
        (draft,) = drafted(it)
        bonus = 3
        it.handle(0, Commit("r", 1, draft.start, (*draft.token_ids, bonus)))
        again = drafted(it)[0]
        assert again.start == draft.end + 1
        check_start(again, (*PROMPT, *draft.token_ids, bonus), seed)


def test_other_requests_in_the_batch_neither_see_nor_change_it() -> None:
    alone = engine()
    alone.handle(0, opened(UNCERTAIN, window=64))
    expected = [draft.token_ids for draft in drafted(alone)]
    it = engine()
    it.handle(0, opened(UNCERTAIN, window=64))
    it.handle(1, opened("confidence:threshold=0.2", window=64, seed=9))
    it.handle(2, opened("svip:threshold_nats=1.5", window=64, seed=10))
    found: list[Draft] = []
    while it.has_work():
        found += [reply for peer, reply in it.step() if peer == 0 and isinstance(reply, Draft)]
    assert [draft.token_ids for draft in found] == expected


def test_what_the_verifier_looked_at_reaches_the_policy() -> None:
    it = engine()
    it.handle(0, opened(UNCERTAIN, window=1))
    (draft,) = drafted(it)
    (entry,) = it._entries.values()
    policy: Any = entry.policy
    other = (draft.token_ids[0] + 1) % VOCAB
    it.handle(0, Commit("r", 1, draft.start, (other,)))
    assert policy.acceptance == pytest.approx(0.45)
    assert policy.threshold == pytest.approx(0.501)
    it.handle(0, Commit("r", 1, draft.start + 1, (3, 4)))
    assert policy.acceptance == pytest.approx(0.45), "nothing was sent that this could test"


def test_the_row_is_drawn_from_as_it_is_sent() -> None:
    """The rows of drafts that began with a row of before, against the law and the noise of their place."""
    for seed in range(6):
        it = engine()
        it.handle(0, opened("adaedl:threshold=0.9,max_length=3", window=64, seed=seed))
        prefix: Tokens = PROMPT
        for draft in drafted(it):
            if len(draft.token_ids) == 3:
                check(draft, prefix, seed, SamplingParams(), 12)
            prefix += draft.token_ids
