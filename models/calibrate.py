"""What predicts that a drafted token is kept, how well, and where to stop drafting by it.

Shapes: n drafted tokens; c chains (drafts of the drafter's own) of up to K tokens.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from models.acceptance import Drafted
from models.measure import BUCKETS

# A target's pass over a draft step. Overlapped or not, these are the pairs that one meets.
COST_RATIOS = (2.0, 3.0, 6.0, 12.0, 25.0, 50.0)
# A head that was taught to fear rejections says little above 0 for a long draft, so the steps are those of the
# probability that all is kept: 0.99, and then 5 % less each time, down to one in ten thousand.
THRESHOLDS = tuple(round(1 - 0.99 * 0.95**step, 5) for step in range(180))


def auc(score: Tensor, accept: Tensor) -> float:
    """The probability that a kept token has a higher `score` [n] than one that was not; ties count half.

    `accept` [n] is each token's probability of being kept: it counts as kept with that weight and as rejected with the
    rest, so that nothing is drawn. With scores 1, 2 and acceptances 0, 1 it is 1.
    """
    values, group = score.double().unique(return_inverse=True)  # type: ignore[no-untyped-call]
    kept = torch.zeros(len(values), dtype=torch.float64).index_add_(0, group, accept.double())
    rejected = torch.zeros(len(values), dtype=torch.float64).index_add_(0, group, 1 - accept.double())
    below = rejected.cumsum(0) - rejected
    total = kept.sum() * rejected.sum()
    return float((kept * (below + rejected / 2)).sum() / total) if total else math.nan


def buckets(drafted: Drafted) -> list[dict[str, float]]:
    """Mean acceptance by entropy: one entry a bucket, with its share of all tokens."""
    found = []
    for low, high in itertools.pairwise(BUCKETS):
        inside = (drafted.entropy >= low) & (drafted.entropy < high)
        if count := int(inside.sum()):
            mean = float(drafted.accept[inside].double().mean())
            found.append({"from": low, "to": high, "share": count / len(drafted), "acceptance": mean})
    return found


@dataclass(frozen=True, slots=True)
class Chains:
    """Drafts as columns: [c, K], zero beyond a chain's end (the drafter's end-of-sequence token)."""

    accept: Tensor  # of each token, given that all before it are kept
    predicted: Tensor  # the head's opinion of the same
    lengths: Tensor  # [c]

    @classmethod
    def of(cls, chains: Sequence[Drafted], predicted: Sequence[Tensor]) -> Chains:
        lengths = torch.tensor([len(chain) for chain in chains])
        padded = [
            torch.nn.utils.rnn.pad_sequence([column.double().cpu() for column in columns], batch_first=True)
            for columns in ([chain.accept for chain in chains], predicted)
        ]
        return cls(padded[0], padded[1], lengths)

    def stop_by_head(self, threshold: float) -> Tensor:
        """Draft lengths [c] under `specdecpp`: a token is kept once its row is there, and is not in the product."""
        is_over = 1 - self.predicted.cumprod(-1) > threshold
        first = torch.where(is_over.any(-1), is_over.double().argmax(-1) + 2, self.predicted.shape[1])
        return first.minimum(self.lengths)

    def stop_at(self, length: int) -> Tensor:
        """Draft lengths [c] under `fixed`."""
        return self.lengths.clamp(max=length)

    def rate(self, lengths: Tensor, cost_ratio: float) -> float:
        """Expected tokens in the time of a draft step: draft, then a target's pass that adds one of its own.

        Under the rule `token`, drafting and verifying in turn.
        """
        kept = self.accept.cumprod(-1)
        counts = torch.arange(kept.shape[1]) < lengths[:, None]
        num_tokens = (kept * counts).sum() + len(lengths)
        return float(num_tokens / (lengths.sum() + cost_ratio * len(lengths)))


def calibrated(chains: Chains, cost_ratios: Sequence[float] = COST_RATIOS) -> dict[float, float]:
    """By cost ratio: the threshold with most expected tokens per unit of time."""
    lengths = {threshold: chains.stop_by_head(threshold) for threshold in THRESHOLDS}
    return {ratio: max(lengths, key=lambda at: chains.rate(lengths[at], ratio)) for ratio in cost_ratios}


def rates(chains: Chains, thresholds: Mapping[float, float]) -> list[dict[str, float]]:
    """By cost ratio: what the best fixed length and the head give, as `rate` counts it."""
    found = []
    for ratio, threshold in sorted(thresholds.items()):
        fixed = {length: chains.rate(chains.stop_at(length), ratio) for length in range(1, chains.accept.shape[1] + 1)}
        best = max(fixed, key=lambda length: fixed[length])
        by_head = chains.stop_by_head(threshold)
        found.append(
            {
                "cost_ratio": ratio,
                "fixed_length": best,
                "fixed": fixed[best],
                "threshold": threshold,
                "head": chains.rate(by_head, ratio),
                "head_mean_length": float(by_head.double().mean()),
            }
        )
    return found
