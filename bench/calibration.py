"""What the drafter's own row says about whether its token will be accepted.

Entropies do not travel with a draft, so they are computed offline: the draft model reads the recorded output, and its
row at each position is the one that the served drafter drew from, since a draft that is judged has the output as its
prefix. Which tokens were accepted is recorded: by a token's source. Rows of float32; unscaled, as policies see them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.stats import rankdata

from models.measure import BUCKETS
from paceline import sampling as law
from paceline.client import Completion
from paceline.types import Source, Tokens


@dataclass(frozen=True, slots=True)
class Row:
    """What can be known before a token is drawn."""

    entropy_nats: float
    margin: float  # logit of the likeliest token less that of the second
    top_prob: float


@dataclass(frozen=True, slots=True)
class Recorded:
    """An output with its prompt, and the draft model's row for each of its tokens."""

    sources: tuple[Source, ...]
    rows: tuple[Row, ...]


@dataclass(frozen=True, slots=True)
class Judged:
    """A drafted token that the verifier looked at."""

    row: Row
    accepted: bool


@dataclass(frozen=True, slots=True)
class Walk:
    """A draft: the row of its first token, and how many of its tokens were accepted."""

    row: Row
    accepted_length: int


@torch.inference_mode()
def record(model: Any, prompt: Tokens, completion: Completion) -> Recorded:
    """`model`: the draft model, of transformers."""
    ids = torch.tensor([[*prompt, *completion.token_ids]])
    logits = model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1].float()
    top = logits.topk(2, dim=-1).values
    columns = (law.entropy_nats(logits), top[:, 0] - top[:, 1], logits.softmax(-1).amax(-1))
    rows = tuple(Row(*values) for values in zip(*(column.tolist() for column in columns), strict=True))
    return Recorded(completion.sources, rows)


def load_drafter(drafter: str) -> Any:
    """Raises OSError or ValueError for what is no model."""
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    model: Any = AutoModelForCausalLM.from_pretrained(drafter, dtype=torch.float32)
    return model.eval()


def judged(recorded: Iterable[Recorded]) -> list[Judged]:
    """Accepted tokens, and the places where a recovered one stands because the drafted one was rejected."""
    return [
        Judged(row, source is Source.ACCEPTED)
        for output in recorded
        for source, row in zip(output.sources, output.rows, strict=True)
        if source in (Source.ACCEPTED, Source.RECOVERED)
    ]


def walks(recorded: Iterable[Recorded]) -> list[Walk]:
    """The drafts of mode `sequential`, where each one ends with a token of the target's own.

    Example: self-decoded, accepted, accepted, recovered, recovered, accepted → drafts with 2, 0 and 1 accepted, of
    which the last was cut by the end of the output. A draft that was kept whole may have been accepted further.
    """
    found = []
    for output in recorded:
        start = None
        for i, source in enumerate(output.sources):
            if source is Source.ACCEPTED:
                start = i if start is None else start
                continue
            if source in (Source.RECOVERED, Source.BONUS):
                first = i if start is None else start
                found.append(Walk(output.rows[first], i - first))
            start = None
        if start is not None:
            found.append(Walk(output.rows[start], len(output.sources) - start))
    return found


def figures(recorded: Sequence[Recorded]) -> dict[str, Any]:
    """Acceptance and accepted length by entropy, and how well each signal tells the accepted from the rejected."""
    tested, drafts = judged(recorded), walks(recorded)
    accepted = [token.accepted for token in tested]
    signals = {
        "entropy": [-token.row.entropy_nats for token in tested],
        "margin": [token.row.margin for token in tested],
        "top_prob": [token.row.top_prob for token in tested],
    }
    return {
        "num_tested": len(tested),
        "num_drafts": len(drafts),
        "entropy_accepted": _mean([token.row.entropy_nats for token in tested if token.accepted]),
        "entropy_rejected": _mean([token.row.entropy_nats for token in tested if not token.accepted]),
        "auc": {name: auc(values, accepted) for name, values in signals.items()},
        "by_entropy": by_entropy(tested, drafts),
    }


def by_entropy(tested: Sequence[Judged], drafts: Sequence[Walk]) -> list[dict[str, Any]]:
    """One entry a bucket of entropy: of tested tokens their share and acceptance, of drafts the accepted length.

    A draft is in the bucket of its first token's row.
    """
    buckets = []
    for low, high in itertools.pairwise(BUCKETS):
        tokens = [token for token in tested if low <= token.row.entropy_nats < high]
        lengths = [draft.accepted_length for draft in drafts if low <= draft.row.entropy_nats < high]
        if tokens or lengths:
            buckets.append(
                {
                    "from_nats": low,
                    "to_nats": None if math.isinf(high) else high,
                    "num_tested": len(tokens),
                    "acceptance": _mean([float(token.accepted) for token in tokens]),
                    "num_drafts": len(lengths),
                    "accepted_length": _mean(lengths),
                }
            )
    return buckets


def auc(scores: Sequence[float], positive: Sequence[bool]) -> float | None:
    """The chance that an accepted token scores over a rejected one, ties counting half (Mann and Whitney 1947).

    None if all were accepted, or none.
    """
    num_positive = sum(positive)
    num_negative = len(positive) - num_positive
    if not num_positive or not num_negative:
        return None
    rank_sum = float(np.asarray(rankdata(scores))[np.asarray(positive, dtype=bool)].sum())
    return (rank_sum - num_positive * (num_positive + 1) / 2) / (num_positive * num_negative)


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None
