"""The rule `token`: rejection sampling, position by position.

Leviathan et al. 2023 ("Fast inference from transformers via speculative decoding", algorithm 1) and Chen et
al. 2023. With x drawn from draft_probs:

    keep x with probability  min(1, target_probs(x) / draft_probs(x))
    else draw from           norm((target_probs - draft_probs)+)

Then x or its replacement has the law target_probs exactly, and is kept with probability 1 - TV, the best
possible. This needs draft rows that are truthful: the law the token was drawn from, truncated and quantised
as it was. What is decided about x may not depend on x in any other way: never drop a drafted token because of
its own probability.

Shapes: g drafted tokens, vocab tokens, width kept tokens of a sparse draft row. All in float64, where the
counts of a draft row are as good as exact.
"""

from __future__ import annotations

import torch
from torch import Tensor

from paceline import sampling as law
from paceline.noise import Domain
from paceline.rows import DraftRows
from paceline.types import SamplingParams, Source, Tokens
from verifier.rules.coins import Coins
from verifier.rules.judgement import Judgement


def judge(
    target_logits: Tensor,
    draft_ids: Tokens,
    sampling: SamplingParams,
    coins: Coins,
    *,
    start: int,
    take_bonus: bool = True,
    draft_rows: DraftRows | None = None,
) -> Judgement:
    """Judge g drafted tokens at `start`, `start` + 1, … by `target_logits` [g + 1, vocab] of these positions.

    Without `take_bonus` (an open draft) the last row may be absent: the caller retains it to judge the
    successor. `draft_rows` may be absent if nothing was drafted: then this is the target's plain decode of
    one token.
    """
    num_drafted = len(draft_ids)
    check_shapes(len(target_logits), num_drafted, draft_rows, take_bonus=take_bonus)
    target_probs = law.target_probs(target_logits, sampling)
    if num_drafted:
        assert draft_rows is not None
        for at, keep in enumerate(accept_probs(target_probs, draft_ids, draft_rows).tolist()):
            if not coins.uniform(Domain.ACCEPT, start + at) < keep:
                row = residual(target_probs[at], draft_rows.ids[at], draft_rows.probs[at])
                token_id = law.sample_inverse(row, coins.uniform(Domain.RECOVER, start + at))
                return Judgement(at, token_id, Source.RECOVERED)
    if not take_bonus:
        return Judgement(num_drafted, None, None)
    token_id = law.sample_inverse(target_probs[-1], coins.uniform(Domain.SAMPLE, start + num_drafted))
    return Judgement(num_drafted, token_id, Source.BONUS if num_drafted else Source.SELF_DECODED)


def check_shapes(num_rows: int, num_drafted: int, draft_rows: DraftRows | None, *, take_bonus: bool) -> None:
    """Raises ValueError unless there is a target row for each token that may be chosen, and a draft row a token."""
    if num_rows != num_drafted + 1 and (take_bonus or num_rows != num_drafted):
        raise ValueError(f"{num_rows} target rows for {num_drafted} drafted tokens: needs one more")
    if num_drafted and (draft_rows is None or len(draft_rows.ids) != num_drafted):
        raise ValueError(f"{num_drafted} drafted tokens need as many draft rows")


def accept_probs(target_probs: Tensor, draft_ids: Tokens, draft_rows: DraftRows) -> Tensor:
    """min(1, target_probs(x_i) / draft_probs(x_i)) for the g drafted tokens x_i: [g] float64."""
    return ratios(target_probs, draft_ids, draft_rows).clamp_(max=1.0)


def ratios(target_probs: Tensor, draft_ids: Tokens, draft_rows: DraftRows) -> Tensor:
    """target_probs(x_i) / draft_probs(x_i) for the g drafted tokens x_i: [g] float64.

    `target_probs` is [g or more, vocab]. A token that its own row gives no mass is never kept: no truthful
    drafter sends one, and target_probs(x) = 0 is never kept either, as the test `uniform < accept` is strict.
    """
    drafted = torch.tensor(draft_ids, device=target_probs.device)[:, None]
    target = target_probs[: len(draft_ids)].gather(-1, drafted).squeeze(-1).double()
    draft = torch.where(draft_rows.ids == drafted, draft_rows.probs, 0.0).sum(-1)
    return torch.where(draft > 0, target / draft, 0.0)


def residual(target_row: Tensor, draft_row_ids: Tensor, draft_row_probs: Tensor) -> Tensor:
    """norm((target_probs - draft_probs)+) [vocab] float64, from a row [vocab] and a sparse row [width].

    The target row itself if nothing is left, which only rounding can bring about: equal laws reject nothing.
    """
    target_row = target_row.double()
    excess = target_row.index_add(0, draft_row_ids, -draft_row_probs).clamp_(min=0.0)
    total = excess.sum()
    return excess / total if total > 0 else target_row
