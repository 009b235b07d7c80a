"""From logits to the law that is sampled: the only implementation, for drafters and verifiers alike.

Rejection sampling is exact for the law it is given, so that law must be the fully processed one, and the same
one wherever it is formed. Two steps, in the order of transformers:

    `adjusted_logits`   logit bias  ->  repetition, frequency, presence penalty  ->  min_tokens
    `target_probs`      temperature  ->  top-k  ->  top-p  ->  min-p  ->  softmax

vLLM's order is the same but for min-p, which it applies before top-k: then top-p counts its mass among fewer tokens,
and may keep fewer. Transformers knows no frequency and no presence penalty; those are OpenAI's and vLLM's, and count
the output only, where the repetition penalty sees the prompt too.

Ties. Temperature 0 puts all mass on the likeliest token, the lowest id if several are. top-k keeps everything
as likely as the k-th, hence more than k on a tie. top-p drops the unlikeliest tokens whose summed mass is at
most 1 - top_p, the highest ids first among equals, and never the likeliest one.

Laws are fp32, computed from fp32 logits; float64 logits stay float64, for tests. Shapes: n positions, vocab
tokens. Every row is processed by itself; what depends on history sees each row's own hypothetical prefix, the
drafted tokens before it included.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from paceline.types import SamplingParams, Tokens

# A lower temperature acts like this one (vLLM calls it greedy), so that scaled fp32 logits cannot overflow.
MIN_TEMPERATURE = 1e-5

# Logits that a CPU core takes at a time, so that they stay in its cache: the entropies of 64 rows of 8,192 took 3.7 ms
# at once and 1.9 eight by eight; cutting them to their likeliest 64 took 28 ms one by one and 4 eight by eight.
_CACHED_LOGITS = 1 << 16


def adjusted_logits(
    logits: Tensor,
    sampling: SamplingParams,
    prefix: Sequence[int],
    draft_ids: Sequence[int] = (),
    *,
    num_prompt_tokens: int,
) -> Tensor:
    """Logits [n, vocab] of the rows after `prefix`, after `prefix` + `draft_ids[:1]`, …, biased and penalised.

    The first `num_prompt_tokens` of `prefix` are the prompt. `logits` itself if there is nothing to do.
    """
    if not sampling.adjusts_logits:
        return logits
    scores = _wide(logits).clone()
    num_rows, vocab_size = scores.shape
    bias = [(token_id, value) for token_id, value in sampling.logit_bias if token_id < vocab_size]
    if bias:
        ids, values = zip(*bias, strict=True)
        scores[:, list(ids)] += scores.new_tensor(values)
    if sampling.has_penalty:
        seen = _counts(prefix[:num_prompt_tokens], (), num_rows, scores)
        counts = _counts(prefix[num_prompt_tokens:], draft_ids, num_rows, scores)
        penalised = torch.where(scores < 0, scores * sampling.repetition_penalty, scores / sampling.repetition_penalty)
        scores = torch.where(seen + counts > 0, penalised, scores)
        scores -= sampling.frequency_penalty * counts
        scores -= sampling.presence_penalty * (counts > 0)
    num_early = sampling.min_tokens - (len(prefix) - num_prompt_tokens)
    if num_early > 0:
        scores[:num_early, [token_id for token_id in sampling.stop_token_ids if token_id < vocab_size]] = -torch.inf
    return scores


def _counts(prefix: Sequence[int], draft_ids: Sequence[int], num_rows: int, like: Tensor) -> Tensor:
    """How often each token stands before each row: [num_rows, vocab] of `like`'s dtype and device."""
    ids = torch.tensor(list(prefix), dtype=torch.long, device=like.device)
    counts = torch.bincount(ids, minlength=like.shape[-1]).to(like.dtype).repeat(num_rows, 1)
    for row, token_id in enumerate(draft_ids[: num_rows - 1], start=1):
        counts[row:, token_id] += 1
    return counts


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


def log_probs_of(logits: Tensor, token_ids: Sequence[int], sampling: SamplingParams) -> tuple[float, ...]:
    """log p of `token_ids` [m] under the laws of the first m of `logits` [n, vocab], adjusted ones.

    Greedy decoding takes the likeliest token for certain; what is told is its probability before that, at
    temperature 1.
    """
    if not token_ids:
        return ()
    rows = logits[: len(token_ids)]
    log_probs = _wide(rows).log_softmax(-1) if sampling.is_greedy else target_log_probs(rows, sampling)
    ids = torch.tensor(list(token_ids), device=logits.device)[:, None]
    return tuple(log_probs.gather(-1, ids).squeeze(-1).tolist())


def top_log_probs(logits: Tensor, count: int, sampling: SamplingParams) -> list[tuple[Tokens, tuple[float, ...]]]:
    """Of each of `logits` [n, vocab], adjusted ones: its `count` likeliest tokens, and log p of each as `log_probs_of`.

    The likeliest first, the lowest id first among equals; tokens that the law cuts off are left out.
    """
    log_probs = _wide(logits).log_softmax(-1) if sampling.is_greedy else target_log_probs(logits, sampling)
    # A stable sort of the few that can be among the first: topk says nothing of the order of equals.
    least = log_probs.topk(min(count, log_probs.shape[-1]), dim=-1).values[:, -1:]
    found = []
    for row, bound in zip(log_probs, least, strict=True):
        ids = ((row >= bound) & (row > -torch.inf)).nonzero().squeeze(-1)
        values, order = row[ids].sort(descending=True, stable=True)
        found.append((tuple(ids[order[:count]].tolist()), tuple(values[:count].tolist())))
    return found


def processed_logits(logits: Tensor, sampling: SamplingParams) -> Tensor:
    """Scaled logits [n, vocab] with -inf for every token that is cut off; not for greedy sampling."""
    scores = _wide(logits) / max(sampling.temperature, MIN_TEMPERATURE)
    if 0 < sampling.top_k < scores.shape[-1]:
        scores = _keep_top_k(scores, sampling.top_k)
    if sampling.top_p < 1:
        scores = _keep_top_p(scores, sampling.top_p)
    if sampling.min_p > 0:
        least = scores.amax(-1, keepdim=True) + math.log(sampling.min_p)
        scores = scores.masked_fill(scores < least, -torch.inf)
    return scores


def rows_at_once(logits: Tensor) -> int:
    """How many rows of `logits` [n, vocab] to take through a law together; a GPU wants them all."""
    return max(1, len(logits) if logits.is_cuda else _CACHED_LOGITS // logits.shape[-1])


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
    count = rows_at_once(logits)
    parts = (_wide(logits[first : first + count]) for first in range(0, max(1, len(logits)), count))
    return torch.cat([torch.special.entr(part.softmax(-1)).sum(-1) for part in parts])


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
