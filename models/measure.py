"""What a pair of models is worth: loss, agreement, acceptance, and what the draft's entropy says about it.

Three texts are measured: the held-out text, and what the target itself writes after the held-out questions,
greedily and sampled at temperature 1. The last two are what serving sees. Only positions that the model writes
count (answers and their end-of-text); both models read the same prefix, so no draft length plays a part.

At temperature 0 a drafted token is accepted when both models' most likely tokens agree. At temperature 1 it is
accepted with probability `1 - TV(target_probs, draft_probs)`, which is used as it is: nothing is drawn.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch.nn import functional
from transformers import LlamaForCausalLM

from models.corpus import Encoded

# Edges of the entropy buckets in nats; the last bucket has no upper end.
BUCKETS = (0.0, 0.1, 0.25, 0.5, 1.0, 1.5, 2.0, 3.0, math.inf)


# One document's columns, in the order of the fields of Positions.
Entry: TypeAlias = tuple[torch.Tensor, ...]


@dataclass(frozen=True, slots=True)
class Positions:
    """One entry per measured position, documents one after another; `starts` are the documents' first entries."""

    target_loss: torch.Tensor  # nats, of the token that is in the text
    draft_loss: torch.Tensor
    agrees: torch.Tensor  # bool: both models' most likely tokens are the same
    overlap: torch.Tensor  # 1 - TV of the two distributions
    entropy: torch.Tensor  # of the draft's distribution, nats
    starts: tuple[int, ...]


@torch.inference_mode()
def compare(
    target: LlamaForCausalLM,
    drafters: Sequence[LlamaForCausalLM],
    documents: Sequence[Encoded],
    *,
    batch_size: int = 16,
) -> list[Positions]:
    """The target's and each drafter's distributions at every position of the documents' completions."""
    entries: list[list[tuple[int, Entry]]] = [[] for _ in drafters]
    order = sorted(range(len(documents)), key=lambda i: len(documents[i].token_ids))
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        token_ids = _rectangle([documents[i].token_ids for i in batch]).to(target.device)
        target_logits = target(input_ids=token_ids, use_cache=False).logits
        for drafter, found in zip(drafters, entries, strict=True):
            draft_logits = drafter(input_ids=token_ids, use_cache=False).logits
            for row, index in enumerate(batch):
                document = documents[index]
                # The logits at place i are about the token at place i + 1.
                first, last = max(document.prompt_length - 1, 0), len(document.token_ids) - 1
                following = token_ids[row, first + 1 : last + 1]
                found.append((index, _entry(target_logits[row, first:last], draft_logits[row, first:last], following)))
    return [_joined(found) for found in entries]


def _joined(entries: list[tuple[int, Entry]]) -> Positions:
    """The entries of all documents in the documents' order."""
    columns = [entry for _, entry in sorted(entries, key=lambda item: item[0])]
    starts, total = [], 0
    for column in columns:
        starts.append(total)
        total += len(column[0])
    losses, draft_losses, agrees, overlaps, entropies = (torch.cat([c[i] for c in columns]) for i in range(5))
    return Positions(losses, draft_losses, agrees, overlaps, entropies, tuple(starts))


def _rectangle(sequences: Sequence[tuple[int, ...]]) -> torch.Tensor:
    """Sequences padded on the right, where causal attention never looks."""
    length = max(len(sequence) for sequence in sequences)
    return torch.tensor([[*sequence, *[0] * (length - len(sequence))] for sequence in sequences])


def _entry(target_logits: torch.Tensor, draft_logits: torch.Tensor, following: torch.Tensor) -> Entry:
    target_log_probs = functional.log_softmax(target_logits.float(), dim=-1)
    draft_log_probs = functional.log_softmax(draft_logits.float(), dim=-1)
    column = following[:, None]
    return (
        -target_log_probs.gather(-1, column)[:, 0].cpu(),
        -draft_log_probs.gather(-1, column)[:, 0].cpu(),
        (target_logits.argmax(-1) == draft_logits.argmax(-1)).cpu(),
        torch.minimum(target_log_probs.exp(), draft_log_probs.exp()).sum(-1).cpu(),
        -(draft_log_probs.exp() * draft_log_probs).sum(-1).cpu(),
    )


def summary(positions: Positions) -> dict[str, float]:
    """The figures of one text; `t0` is temperature 0, `t1` temperature 1."""
    agrees = positions.agrees.double()
    overlap, entropy = positions.overlap.double(), positions.entropy.double()
    return {
        "positions": len(agrees),
        "target_loss": float(positions.target_loss.double().mean()),
        "draft_loss": float(positions.draft_loss.double().mean()),
        "agreement_t0": float(agrees.mean()),
        "acceptance_t1": float(overlap.mean()),
        "accepted_of_4_t0": accepted_per_draft(positions, 4),
        "accepted_of_8_t0": accepted_per_draft(positions, 8),
        "entropy_accepted_t0": weighted_mean(entropy, agrees),
        "entropy_rejected_t0": weighted_mean(entropy, 1 - agrees),
        "entropy_accepted_t1": weighted_mean(entropy, overlap),
        "entropy_rejected_t1": weighted_mean(entropy, 1 - overlap),
        "correlation_t0": correlation(entropy, agrees),
        "correlation_t1": correlation(entropy, overlap),
    }


def buckets(positions: Positions) -> list[dict[str, float]]:
    """Acceptance by entropy of the draft: one entry per bucket, with its share of all positions."""
    entropy = positions.entropy
    result = []
    for low, high in itertools.pairwise(BUCKETS):
        inside = (entropy >= low) & (entropy < high)
        count = int(inside.sum())
        if count == 0:
            continue
        result.append(
            {
                "from": low,
                "to": high,
                "share": count / len(entropy),
                "agreement_t0": float(positions.agrees[inside].double().mean()),
                "acceptance_t1": float(positions.overlap[inside].double().mean()),
            }
        )
    return result


def accepted_per_draft(positions: Positions, draft_length: int) -> float:
    """Mean number of accepted tokens of a greedy draft of `draft_length`, walking as greedy serving walks.

    Exact on what the target wrote greedily: there a draft goes on being the text until the first disagreement,
    and the target's own token follows. On other texts it is an estimate. With agreement T T F T T and drafts
    of 2: 2 accepted, then (after the target's token at the F) 2 more: 2.0. The end of a document cuts drafts.
    """
    agrees = positions.agrees.tolist()
    accepted = drafts = 0
    for start, end in zip(positions.starts, (*positions.starts[1:], len(agrees)), strict=True):
        place = start
        while place < end:
            run = 0
            while run < draft_length and place + run < end and agrees[place + run]:
                run += 1
            accepted += run
            drafts += 1
            place += run + 1
    return accepted / drafts


def weighted_mean(values: torch.Tensor, weights: torch.Tensor) -> float:
    return float((values * weights).sum() / weights.sum())


def correlation(first: torch.Tensor, second: torch.Tensor) -> float:
    return float(torch.corrcoef(torch.stack([first, second]))[0, 1])
