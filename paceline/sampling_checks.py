"""The ranges of the target law's parameters: one place for every face and every wire."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from paceline.errors import InvalidInput

if TYPE_CHECKING:
    from paceline.types import SamplingParams

MAX_SEED = 2**63 - 1
MAX_LOGIT_BIASES = 1024
MAX_STOP_TOKEN_IDS = 256
MAX_TOP_LOGPROBS = 20  # OpenAI's and vLLM's


def check(sampling: SamplingParams) -> None:
    """Raises InvalidInput for a field out of its range."""
    if not (math.isfinite(sampling.temperature) and 0 <= sampling.temperature <= 100):
        raise InvalidInput("temperature", sampling.temperature, "must be a number from 0 (greedy) to 100")
    if not (math.isfinite(sampling.top_p) and 0 < sampling.top_p <= 1):
        raise InvalidInput("top_p", sampling.top_p, "must be greater than 0 and at most 1 (1 = off)")
    if not 0 <= sampling.top_k < 2**31:
        raise InvalidInput("top_k", sampling.top_k, "must be 0 (off) or a positive number of tokens")
    if sampling.seed is not None and not 0 <= sampling.seed <= MAX_SEED:
        raise InvalidInput("seed", sampling.seed, f"must be from 0 to {MAX_SEED}")
    if not 0 <= sampling.min_p <= 1:
        raise InvalidInput("min_p", sampling.min_p, "must be from 0 (off) to 1")
    if not 0.01 <= sampling.repetition_penalty <= 100:
        raise InvalidInput("repetition_penalty", sampling.repetition_penalty, "must be from 0.01 to 100 (1 = off)")
    for name in ("presence_penalty", "frequency_penalty"):
        if not -2 <= getattr(sampling, name) <= 2:
            raise InvalidInput(name, getattr(sampling, name), "must be from -2 to 2 (0 = off)")
    _check_ids(sampling)
    _check_logprobs(sampling)


def _check_ids(sampling: SamplingParams) -> None:
    if len(sampling.logit_bias) > MAX_LOGIT_BIASES:
        raise InvalidInput("logit_bias", len(sampling.logit_bias), f"give at most {MAX_LOGIT_BIASES} token ids")
    for token_id, bias in sampling.logit_bias:
        if not (0 <= token_id < 2**32 and -100 <= bias <= 100):
            raise InvalidInput("logit_bias", (token_id, bias), "give token ids and numbers from -100 to 100")
    if len({token_id for token_id, _ in sampling.logit_bias}) < len(sampling.logit_bias):
        raise InvalidInput("logit_bias", "…", "give each token id once")
    if not 0 <= sampling.min_tokens < 2**32:
        raise InvalidInput("min_tokens", sampling.min_tokens, "must be 0 (off) or a positive number of tokens")
    if len(sampling.stop_token_ids) > MAX_STOP_TOKEN_IDS:
        raise InvalidInput("stop_token_ids", len(sampling.stop_token_ids), f"give at most {MAX_STOP_TOKEN_IDS}")
    if not all(0 <= token_id < 2**32 for token_id in sampling.stop_token_ids):
        raise InvalidInput("stop_token_ids", sampling.stop_token_ids, "must be token ids")


def _check_logprobs(sampling: SamplingParams) -> None:
    if not 0 <= sampling.top_logprobs <= MAX_TOP_LOGPROBS:
        raise InvalidInput("top_logprobs", sampling.top_logprobs, f"must be from 0 to {MAX_TOP_LOGPROBS}")
    if sampling.top_logprobs and not sampling.logprobs:
        raise InvalidInput("top_logprobs", sampling.top_logprobs, "needs logprobs")
