"""Teaching the drafter the target's distribution (Zhou et al. 2023, "DistillSpec", arXiv 2310.08461).

A drafted token is accepted with probability `1 - TV(target_probs, draft_probs)` (Leviathan et al. 2023, section
3.2), so the total variation distance is the loss that counts. Its gradient is faint where the two distributions
barely overlap, which is where the Kullback-Leibler divergence is strong: the loss is a mixture of both.

The drafter learns on text and on what the target itself wrote, because that is what it continues when it serves.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn import functional
from transformers import DynamicCache, PreTrainedModel

from models.corpus import IGNORED, Encoded, InputError
from paceline.engine.weights import eos_token_ids

# Prompts are known when a request arrives, so the drafter never drafts them; they only help it to read.
WEIGHT_OF_PROMPT = 0.2


def divergence(
    draft_logits: torch.Tensor,
    target_logits: torch.Tensor,
    labels: torch.Tensor,
    is_completion: torch.Tensor,
    *,
    share_of_tv: float,
) -> torch.Tensor:
    """`(1 - share_of_tv) * KL(target || draft) + share_of_tv * TV`, a mean over positions; logits [..., vocab_size].

    Positions with an IGNORED label do not count, those of prompts count WEIGHT_OF_PROMPT.
    """
    draft_log_probs = functional.log_softmax(draft_logits.float(), dim=-1)
    target_log_probs = functional.log_softmax(target_logits.float(), dim=-1)
    target_probs = target_log_probs.exp()
    kl = (target_probs * (target_log_probs - draft_log_probs)).sum(-1)
    tv = 0.5 * (target_probs - draft_log_probs.exp()).abs().sum(-1)
    weight = torch.where(is_completion, 1.0, WEIGHT_OF_PROMPT) * (labels != IGNORED)
    return (((1 - share_of_tv) * kl + share_of_tv * tv) * weight).sum() / weight.sum().clamp(min=1)


@dataclass(slots=True)
class _Active:
    """The sequences of a batch that have not ended: which they are, and their next input token."""

    indices: torch.Tensor
    tokens: torch.Tensor
    mask: torch.Tensor


@torch.inference_mode()
def continuations(
    model: PreTrainedModel,
    prompts: Sequence[tuple[int, ...]],
    *,
    temperature: float,
    seed: int,
    max_new_tokens: int = 256,
    batch_size: int = 128,
) -> Iterator[tuple[int, Encoded]]:
    """What the model writes after every prompt, with the prompt's index; shortest prompts first.

    Temperature 0 is greedy. A document ends in end-of-text, or after `max_new_tokens` without one.
    """
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    generator = torch.Generator(model.device).manual_seed(seed)
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        written = _write(model, [prompts[i] for i in batch], temperature, generator, max_new_tokens)
        for index, token_ids in zip(batch, written, strict=True):
            yield index, Encoded((*prompts[index], *token_ids), len(prompts[index]))


def _write(
    model: PreTrainedModel,
    prompts: Sequence[tuple[int, ...]],
    temperature: float,
    generator: torch.Generator,
    max_new_tokens: int,
) -> list[list[int]]:
    written: list[list[int]] = [[] for _ in prompts]
    cache = DynamicCache(config=model.config)
    active = _first_input(prompts, model)
    ends = torch.tensor(eos_token_ids(model), dtype=torch.long, device=model.device)
    for _ in range(max_new_tokens):
        positions = active.mask.sum(-1, keepdim=True) - 1
        if active.tokens.shape[1] > 1:
            positions = (active.mask.cumsum(-1) - 1).clamp(min=0)
        logits = model(
            input_ids=active.tokens,
            attention_mask=active.mask,
            position_ids=positions,
            past_key_values=cache,
            logits_to_keep=1,
        ).logits[:, -1]
        tokens = _choose(logits, temperature, generator)
        for index, token in zip(active.indices.tolist(), tokens.tolist(), strict=True):
            written[index].append(token)
        keep = torch.isin(tokens, ends, invert=True).nonzero()[:, 0]
        if len(keep) == 0:
            break
        if len(keep) < len(tokens):
            cache.batch_select_indices(keep)
        mask = functional.pad(active.mask[keep], (0, 1), value=1)
        active = _Active(active.indices[keep], tokens[keep, None], mask)
    return written


def _first_input(prompts: Sequence[tuple[int, ...]], model: PreTrainedModel) -> _Active:
    """All prompts in one rectangle, padded on the left so that the last tokens line up."""
    length = max(len(prompt) for prompt in prompts)
    pad = model.config.pad_token_id or 0  # never attended to
    tokens = [[pad] * (length - len(prompt)) + list(prompt) for prompt in prompts]
    mask = [[0] * (length - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    device = model.device
    return _Active(
        torch.arange(len(prompts), device=device),
        torch.tensor(tokens, device=device),
        torch.tensor(mask, device=device),
    )


def _choose(logits: torch.Tensor, temperature: float, generator: torch.Generator) -> torch.Tensor:
    if temperature == 0:
        return logits.argmax(-1)
    probs = functional.softmax(logits.float() / temperature, dim=-1)
    return torch.multinomial(probs, 1, generator=generator)[:, 0]


def write_samples(samples: Sequence[Encoded], path: Path) -> None:
    """Token ids, not text: text sampled at temperature 1 may be split into other tokens when it is read again."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"token_ids": sample.token_ids, "prompt_length": sample.prompt_length}) for sample in samples]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def read_samples(path: Path) -> list[Encoded]:
    try:
        records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        return [Encoded(tuple(r["token_ids"]), int(r["prompt_length"])) for r in records]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"--samples {path}: cannot be read ({error}); write it with the command sample") from error
