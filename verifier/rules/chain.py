"""Drafts that queued up and were forwarded together, judged one after the other.

`match`, `coupled` and `token` decide token by token, so the seams between drafts do not matter to them. Under `block`
they do: which drafts have arrived depends on how long they took to draft, hence on what is in them, and a block must
not reach further because of what is in it. So each draft is a block of its own. Kept whole and open, it hands the row
after it to its successor, as a retained row would: the pass is shared, the judgement is not.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from paceline.rows import DraftRows
from paceline.types import SamplingParams, Tokens
from verifier.rules import block
from verifier.rules.coins import Coins
from verifier.rules.judgement import Judgement


def judge_blocks(
    target_logits: Tensor,
    drafts: Sequence[Tokens],
    sampling: SamplingParams,
    coins: Coins,
    *,
    start: int,
    take_bonus: bool,
    draft_rows: DraftRows | None,
) -> Judgement:
    """Judge `drafts`, all open but perhaps the last, by `block`, given the logits and rows of them all in a row.

    `take_bonus` is the last one's.
    """
    at = 0
    judgement = Judgement(0, None, None)
    for number, draft_ids in enumerate(drafts or ((),)):
        end, is_last = at + len(draft_ids), number >= len(drafts) - 1
        judgement = block.judge(
            target_logits[at : end + 1],
            draft_ids,
            sampling,
            coins,
            start=start + at,
            take_bonus=take_bonus and is_last,
            draft_rows=draft_rows and DraftRows(draft_rows.ids[at:end], draft_rows.probs[at:end]),
        )
        if judgement.token_id is not None:
            return Judgement(at + judgement.num_accepted, judgement.token_id, judgement.source)
        at = end
    return Judgement(at, None, None)
