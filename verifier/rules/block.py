"""The rule `block`: a draft is judged as a whole, which keeps at least as much of it as `token` does.

Sun et al. 2025 ("Block verification accelerates speculative decoding", algorithm 2). With x_1, …, x_g drawn from
draft_probs, and everything given the tokens before:

    keep_0 = 1,  keep_i = min(1, keep_{i-1} target_probs(x_i) / draft_probs(x_i))
    excess_i = sum_x (keep_i target_probs(x | x_1 … x_i) - draft_probs(x | x_1 … x_i))+
    h_i = excess_i / (excess_i + 1 - keep_i)  for i < g,   h_g = keep_g
    tau = the largest i whose own coin falls below h_i, else 0
    after tau < g draw from norm((keep_tau target_probs - draft_probs)+), after tau = g from target_probs

Why: P(tau >= i | x_1 … x_i) = keep_i, by induction from the end. So a failure at i does not end the scan, and where
a draft ends may depend on its own tokens (a stopping time), but on nothing that was drafted beyond its end: drafts
that queued up are judged one by one, since which of them have arrived depends on what is in them (`chain.py`).

The draft's end and the coins behind it have been looked at even where its beginning is rejected. So both the draft
noise and these coins are keyed by the epoch, which every rejection ends.

Shapes: g drafted tokens, vocab tokens, width kept tokens of a sparse draft row. keep in log space, all in float64.
"""

from __future__ import annotations

import torch
from torch import Tensor

from paceline import sampling as law
from paceline.noise import Domain
from paceline.rows import DraftRows
from paceline.types import SamplingParams, Source, Tokens
from verifier.rules import token
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
    """As `token.judge`, for exactly one draft: where it ends is part of the equations."""
    num_drafted = len(draft_ids)
    if draft_rows is None or not num_drafted:  # nothing to judge as a whole, or refused for its missing rows
        return token.judge(target_logits, draft_ids, sampling, coins, start=start, take_bonus=take_bonus)
    token.check_shapes(len(target_logits), num_drafted, draft_rows, take_bonus=take_bonus)
    target_probs = law.target_probs(target_logits, sampling)
    keep = keep_probs(target_probs, draft_ids, draft_rows)
    num_accepted = scan(stop_probs(target_probs, keep, draft_rows).tolist(), coins, start)
    if num_accepted < num_drafted:
        row = residual(target_probs, keep, draft_rows, num_accepted)
        token_id = law.sample_inverse(row, coins.uniform(Domain.RECOVER, start + num_accepted))
        return Judgement(num_accepted, token_id, Source.RECOVERED)
    if not take_bonus:
        return Judgement(num_drafted, None, None)
    token_id = law.sample_inverse(target_probs[-1], coins.uniform(Domain.SAMPLE, start + num_drafted))
    return Judgement(num_drafted, token_id, Source.BONUS)


def keep_probs(target_probs: Tensor, draft_ids: Tokens, draft_rows: DraftRows) -> Tensor:
    """keep_0, …, keep_g: [g + 1] float64, never rising above 1 and never recovering from 0."""
    log_keep = [0.0]
    for log_ratio in token.ratios(target_probs, draft_ids, draft_rows).log().tolist():
        log_keep.append(min(0.0, log_keep[-1] + log_ratio))
    return torch.tensor(log_keep, dtype=torch.float64, device=target_probs.device).exp()


def stop_probs(target_probs: Tensor, keep: Tensor, draft_rows: DraftRows) -> Tensor:
    """h_1, …, h_g: [g] float64. Only the tokens of the sparse row need a look: elsewhere all of target is excess."""
    inner, probs, ids = keep[1:-1, None], draft_rows.probs[1:], draft_rows.ids[1:]
    target = target_probs[1 : len(keep) - 1].double()
    target = target / target.sum(-1, keepdim=True)
    inside = torch.where(probs > 0, target.gather(-1, ids), 0.0)  # an entry without mass may stand twice (padding)
    outside = (1 - inside.sum(-1)).clamp_(min=0.0)
    excess = inner[:, 0] * outside + (inner * inside - probs).clamp_(min=0.0).sum(-1)
    short = 1 - inner[:, 0]
    stop = torch.where(excess + short > 0, excess / (excess + short), 1.0)  # both 0: the laws are equal
    return torch.cat([stop, keep[-1:]])


def scan(stop: list[float], coins: Coins, start: int) -> int:
    """tau, by looking from the end: what fails before or behind it changes nothing."""
    for at in reversed(range(len(stop))):
        if coins.uniform(Domain.BLOCK, start + at) < stop[at]:
            return at + 1
    return 0


def residual(target_probs: Tensor, keep: Tensor, draft_rows: DraftRows, at: int) -> Tensor:
    """norm((keep_at target_probs - draft_probs)+) [vocab] float64 of the row after the first `at` drafted tokens."""
    return token.residual(keep[at] * target_probs[at].double(), draft_rows.ids[at], draft_rows.probs[at])
