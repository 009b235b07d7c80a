"""How a draft is judged: one file a rule, and the table of them.

A rule is a pure function of tensors and coins. Judging an empty draft is the target's plain decode of one
token, whatever the rule; a retained row is just the first row.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor

from paceline.rows import DraftRows
from paceline.types import Rule, SamplingParams, Tokens
from verifier.rules import block, coupled, match, token
from verifier.rules.chain import judge_blocks
from verifier.rules.coins import Coins, PhiloxCoins
from verifier.rules.judgement import Judgement

__all__ = ["RULES", "Coins", "Judge", "Judgement", "PhiloxCoins", "judge", "judge_blocks"]


class Judge(Protocol):
    """The signature of every rule; `token.judge` and `match.judge` say what the arguments are."""

    def __call__(
        self,
        target_logits: Tensor,
        draft_ids: Tokens,
        sampling: SamplingParams,
        coins: Coins,
        *,
        start: int,
        take_bonus: bool = True,
        draft_rows: DraftRows | None = None,
    ) -> Judgement: ...


RULES: Mapping[Rule, Judge] = {
    Rule.MATCH: match.judge,
    Rule.COUPLED: coupled.judge,
    Rule.TOKEN: token.judge,
    Rule.BLOCK: block.judge,
}


def judge(
    rule: Rule,
    target_logits: Tensor,
    draft_ids: Tokens,
    sampling: SamplingParams,
    coins: Coins,
    *,
    start: int,
    take_bonus: bool = True,
    draft_rows: DraftRows | None = None,
) -> Judgement:
    """Judge g `draft_ids` at `start`, `start` + 1, … by `rule`, given `target_logits` [g + 1, vocab]."""
    return RULES[rule](
        target_logits,
        draft_ids,
        sampling,
        coins,
        start=start,
        take_bonus=take_bonus,
        draft_rows=draft_rows,
    )
