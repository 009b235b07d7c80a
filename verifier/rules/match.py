"""The rule `match`: the target samples every position itself, and a draft is kept while it agrees.

SpecExec (Svirschevski et al. 2024) and SpecEdge verify this way. The output is the target's own sample
whatever the draft is, so it is exact for any drafter, a lying one too; nothing but ids is needed. Acceptance
is sum_v target_probs(v) draft_probs(v), against 1 - TV under `token`; with temperature 0 nothing is lost.
"""

from __future__ import annotations

from collections.abc import Sequence

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

    The target's token after the last one kept is always emitted; `take_bonus` and `draft_rows` change
    nothing.
    """
    return judge_by_own_sample(target_logits, draft_ids, sampling, coins, start=start, domain=Domain.SAMPLE)


def judge_by_own_sample(
    target_logits: Tensor,
    draft_ids: Tokens,
    sampling: SamplingParams,
    coins: Coins,
    *,
    start: int,
    domain: Domain,
) -> Judgement:
    """Keep while draft_i == y_i, then emit y_i: the target's own sample with the noise of `domain`."""
    num_drafted = len(draft_ids)
    if len(target_logits) != num_drafted + 1:
        raise ValueError(f"{len(target_logits)} target rows for {num_drafted} drafted tokens: needs one more")
    own_ids = own_sample(target_logits, sampling, coins, start=start, domain=domain).tolist()
    return compare(draft_ids, own_ids)


def compare(draft_ids: Tokens, own_ids: Sequence[int]) -> Judgement:
    """Keep while draft_i == y_i, then emit y_i, given the target's own tokens y: one more than were drafted."""
    for at, (draft_id, own_id) in enumerate(zip(draft_ids, own_ids, strict=False)):
        if draft_id != own_id:
            return Judgement(at, own_id, Source.RECOVERED)
    return Judgement(len(draft_ids), own_ids[len(draft_ids)], Source.BONUS if draft_ids else Source.SELF_DECODED)


def own_sample(target_logits: Tensor, sampling: SamplingParams, coins: Coins, *, start: int, domain: Domain) -> Tensor:
    """The target's own tokens [n] for `target_logits` [n, vocab]: argmax, or Gumbel-max of its law."""
    if sampling.is_greedy:
        return target_logits.argmax(-1)
    num_rows, vocab_size = target_logits.shape
    gumbel = coins.gumbel(domain, range(start, start + num_rows), vocab_size, target_logits.device)
    return law.sample_log_probs(law.target_log_probs(target_logits, sampling), gumbel)
