"""The rule `coupled`: `match` with Gumbel noise that the drafter shares through the seed.

Daliri, Musco and Suresh 2024 ("Coupling without communication and drafter-invariant speculative decoding").
Both sides take argmax_v log p(v) + G(position, v) with the same G. The output is the target's own decode of
(seed, prompt), whatever the drafter, the draft lengths, retries and failures, and agreement is likelier than
with noise of one's own: between (1 - TV) / (1 + TV) and 1 - TV.
"""

from __future__ import annotations

from torch import Tensor

from paceline.noise import Domain
from paceline.rows import DraftRows
from paceline.types import SamplingParams, Tokens
from verifier.rules.coins import Coins
from verifier.rules.judgement import Judgement
from verifier.rules.match import judge_by_own_sample


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
    """As `match.judge`, with the shared noise of `Domain.COUPLED`."""
    return judge_by_own_sample(target_logits, draft_ids, sampling, coins, start=start, domain=Domain.COUPLED)
