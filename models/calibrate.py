"""What predicts that a drafted token is kept, how well, and where to stop drafting by it.

Shapes: n drafted tokens; c chains (drafts of the drafter's own) of up to K tokens.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from models.acceptance import Drafted
from models.measure import BUCKETS

# A target's pass over a draft step. Overlapped or not, these are the pairs that one meets.
COST_RATIOS = (2.0, 3.0, 6.0, 12.0, 25.0, 50.0)
# A head that was taught to fear rejections says little above 0 for a long draft, so the steps are those of the
# probability that all is kept: 0.99, and then 5 % less each time, down to one in ten thousand.
THRESHOLDS = tuple(round(1 - 0.99 * 0.95**step, 5) for step in range(180))
NATS = tuple(step / 10 for step in range(101))
PROBS = tuple(step / 100 for step in range(100))
GAMMA = 0.2  # adaedl's entropy_factor


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
    entropy: Tensor  # of its row
    token_prob: Tensor  # what its row gives it
    predicted: Tensor  # the head's opinion of `accept`
    lengths: Tensor  # [c]

    @classmethod
    def of(cls, chains: Sequence[Drafted], predicted: Sequence[Tensor]) -> Chains:
        def padded(columns: Sequence[Tensor]) -> Tensor:
            return torch.nn.utils.rnn.pad_sequence([column.double() for column in columns], batch_first=True)

        return cls(
            padded([chain.accept for chain in chains]),
            padded([chain.entropy for chain in chains]),
            padded([chain.token_prob for chain in chains]),
            padded(predicted),
            torch.tensor([len(chain) for chain in chains]),
        )

    @property
    def longest(self) -> int:
        return self.accept.shape[1]

    def drafts(self, lengths: Tensor, num_rows: Tensor | None = None) -> Drafts:
        """Drafts that end after so many tokens [c], or with the chain; by default with a row for each token."""
        lengths = lengths.minimum(self.lengths)
        kept = (self.accept.cumprod(-1) * (torch.arange(self.longest) < lengths[:, None])).sum(-1)
        return Drafts(lengths, kept, lengths if num_rows is None else num_rows.minimum(self.lengths))

    def by_length(self, length: float) -> Drafts:
        """`fixed`."""
        return self.drafts(torch.full_like(self.lengths, int(length)))

    def by_head(self, threshold: float) -> Drafts:
        """`specdecpp`: a token is kept once its row is there, and is not in the product."""
        return self.drafts(_first(1 - self.predicted.cumprod(-1) > threshold) + 2)

    def by_entropy_after(self, threshold_nats: float) -> Drafts:
        """`svip`."""
        return self.drafts(_first(self.entropy > threshold_nats) + 1)

    def by_entropy_before(self, threshold_nats: float) -> Drafts:
        """`adaedl` with a threshold that stays: the row that ends a draft has been computed."""
        is_over = self.entropy > threshold_nats
        is_over[:, 0] = False  # the first token is always drawn
        first = _first(is_over)
        return self.drafts(first, first + 1)

    def by_token_prob(self, threshold: float) -> Drafts:
        """`confidence`."""
        return self.drafts(_first(self.token_prob < threshold) + 1)


def _first(is_over: Tensor) -> Tensor:
    """The first column [c] that is, of [c, K]; K if none is."""
    return torch.where(is_over.any(-1), is_over.double().argmax(-1), is_over.shape[1])


@dataclass(frozen=True, slots=True)
class Drafts:
    """One draft of each chain: columns of [c]."""

    lengths: Tensor
    kept: Tensor  # expected tokens, under the rule `token`
    num_rows: Tensor  # computed for it

    def rate(self, cost_ratio: float) -> float:
        """Expected tokens in the time of a draft step: draft, then a target's pass that adds one of its own."""
        num_tokens = self.kept.sum() + len(self.kept)
        return float(num_tokens / (self.num_rows.sum() + cost_ratio * len(self.kept)))

    @property
    def mean_length(self) -> float:
        return float(self.lengths.double().mean())


def calibrated(chains: Chains, cost_ratios: Sequence[float] = COST_RATIOS) -> dict[float, float]:
    """By cost ratio: the head's threshold with most expected tokens per unit of time."""
    drafts = {threshold: chains.by_head(threshold) for threshold in THRESHOLDS}
    return {ratio: max(drafts, key=lambda at: drafts[at].rate(ratio)) for ratio in cost_ratios}


def rates(chains: Chains, thresholds: Mapping[float, float]) -> list[dict[str, Any]]:
    """By cost ratio and policy: its parameter, mean draft length, and expected tokens as `Drafts.rate` counts them.

    The head has its calibrated `thresholds`; every other policy the parameter that is best on these very chains.
    """
    others: dict[str, dict[float, Drafts]] = {
        "fixed": {length: chains.by_length(length) for length in range(1, chains.longest + 1)},
        "svip": {nats: chains.by_entropy_after(nats) for nats in NATS},
        "adaedl": {1 - math.sqrt(GAMMA * nats): chains.by_entropy_before(nats) for nats in NATS if GAMMA * nats <= 1},
        "confidence": {threshold: chains.by_token_prob(threshold) for threshold in PROBS},
    }
    found = []
    for ratio, threshold in sorted(thresholds.items()):
        entry: dict[str, Any] = {"cost_ratio": ratio}
        for name, drafts in others.items():
            best = max(drafts, key=lambda at, of=drafts, cost=ratio: of[at].rate(cost))  # type: ignore[misc]
            entry[name] = _figures(best, drafts[best], ratio)
        found.append(entry | {"specdecpp": _figures(threshold, chains.by_head(threshold), ratio)})
    return found


def _figures(parameter: float, drafts: Drafts, cost_ratio: float) -> dict[str, float]:
    return {"parameter": parameter, "mean_length": drafts.mean_length, "tokens": drafts.rate(cost_ratio)}
