"""From logits to the law that is sampled: the only implementation, for drafters and verifiers alike.

Rejection sampling is exact for the law it is given, so that law must be the fully processed one, and the same
one wherever it is formed. The order is that of vLLM and of transformers:

    temperature  ->  top-k  ->  top-p  ->  softmax

Ties. Temperature 0 puts all mass on the likeliest token, the lowest id if several are. top-k keeps everything
as likely as the k-th, hence more than k on a tie. top-p drops the unlikeliest tokens whose summed mass is at
most 1 - top_p, the highest ids first among equals, and never the likeliest one.

Laws are fp32, computed from fp32 logits; float64 logits stay float64, for tests. Shapes: n positions, vocab
tokens. Every row is processed by itself. A parameter that depends on history (a penalty, say) would enter
`processed_logits` ahead of the temperature, with each row's own hypothetical prefix; one that only cuts the
law (min-p) after top-p.
"""

from __future__ import annotations

import torch
from torch import Tensor

from paceline.types import SamplingParams

# A lower temperature acts like this one (vLLM calls it greedy), so that scaled fp32 logits cannot overflow.
MIN_TEMPERATURE = 1e-5


def target_probs(logits: Tensor, sampling: SamplingParams) -> Tensor:
    """The law [n, vocab] that a token is drawn from, given `logits` [n, vocab]. Rows sum to 1; fp32."""
    if sampling.is_greedy:
        logits = _wide(logits)
        return torch.zeros_like(logits).scatter_(-1, logits.argmax(-1, keepdim=True), 1.0)
    return processed_logits(logits, sampling).softmax(-1)


def target_log_probs(logits: Tensor, sampling: SamplingParams) -> Tensor:
    """The logarithm [n, vocab] of `target_probs`, -inf where a token is cut off."""
    if sampling.is_greedy:
        return target_probs(logits, sampling).log_()
    return processed_logits(logits, sampling).log_softmax(-1)


def processed_logits(logits: Tensor, sampling: SamplingParams) -> Tensor:
    """Scaled logits [n, vocab] with -inf for every token that is cut off; not for greedy sampling."""
    scores = _wide(logits) / max(sampling.temperature, MIN_TEMPERATURE)
    if 0 < sampling.top_k < scores.shape[-1]:
        scores = _keep_top_k(scores, sampling.top_k)
    if sampling.top_p < 1:
        scores = _keep_top_p(scores, sampling.top_p)
    return scores


def sample(probs_row: Tensor, gumbel_row: Tensor) -> int:
    """Gumbel-max: argmax of log p + G over the tokens with p > 0, given two rows [vocab]."""
    return int((probs_row.double().log() + gumbel_row).argmax())


def sample_log_probs(log_probs: Tensor, gumbel: Tensor) -> Tensor:
    """Gumbel-max of every row: [n] token ids from log p [n, vocab] and G [n, vocab], added in float64."""
    return (log_probs.double() + gumbel).argmax(-1)


def sample_inverse(probs_row: Tensor, uniform: float) -> int:
    """Inverse CDF of a row p [vocab]: the first token whose running sum exceeds `uniform` times the whole.

    Only tokens with p > 0 take part: a parallel sum may rise by a rounding error at a zero.
    """
    support = probs_row.nonzero().squeeze(-1)
    cdf = probs_row[support].double().cumsum(-1)
    at = int(torch.searchsorted(cdf, uniform * cdf[-1], right=True))
    return int(support[min(at, len(support) - 1)])


def entropy_nats(logits: Tensor) -> Tensor:
    """The entropy [n] in nats of the softmax of `logits` [n, vocab]: whole vocabulary, temperature 1."""
    entropy: Tensor = torch.special.entr(_wide(logits).softmax(-1)).sum(-1)
    return entropy


def _keep_top_k(scores: Tensor, top_k: int) -> Tensor:
    kth = scores.topk(top_k, dim=-1).values[..., -1:]
    return scores.masked_fill(scores < kth, -torch.inf)


def _keep_top_p(scores: Tensor, top_p: float) -> Tensor:
    ordered, ids = _sorted(scores)
    tail_mass = ordered.flip(-1).softmax(-1).cumsum(-1).flip(-1)  # summed from the unlikely end
    dropped = tail_mass <= 1 - top_p
    dropped[..., 0] = False
    return scores.masked_fill(torch.zeros_like(scores, dtype=torch.bool).scatter_(-1, ids, dropped), -torch.inf)


def _sorted(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Scores in descending order and their ids, lower ids first among equals; what is cut off may be left
    out.

    After top-k there is little to sort: 10 ms instead of 30 for 9 rows of 152k tokens on one core.
    """
    num_kept = int((scores > -torch.inf).sum(-1).max())
    if num_kept > scores.shape[-1] // 8:
        ordered, order = scores.sort(dim=-1, descending=True, stable=True)
        return ordered, order
    ids = scores.topk(max(num_kept, 1), dim=-1).indices.sort(dim=-1).values
    ordered, order = scores.gather(-1, ids).sort(dim=-1, descending=True, stable=True)
    return ordered, ids.gather(-1, order)


def _wide(logits: Tensor) -> Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()
