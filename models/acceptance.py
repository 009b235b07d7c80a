"""What an acceptance head learns from: drafted tokens, how likely each is to be kept, and its hidden state.

SpecDec++ (Huang et al. 2024, arXiv 2405.19715) lets the target answer prompts, X, has the draft model draw a token Y
at every position, and labels it with min(1, target_probs / draft_probs), its probability of being kept. Their code
then feeds one stream Z to the draft model, Z_i being X_i with probability 0.15 and Y_i otherwise: so the hidden states
see a prefix of drafted tokens that were drawn apart from one another, while the labels were computed after X. Here the
two agree. Every position is a branch of its own, X_<i and then Y_i: the prefix is what the target wrote, which is what
is committed when a draft is served. No token need stand for another in one stream, so there is nothing left to mix, and
every position has a hidden state where theirs has 85 of 100.

Shapes: n positions, d hidden size, L tokens of a document, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, DynamicCache, PreTrainedModel

from models.corpus import Encoded, InputError
from paceline import sampling as law
from paceline.engine import weights
from paceline.tokenizer import Tokenizer
from paceline.types import SamplingParams

# Relative error of a branch's hidden state against a plain pass over the same tokens: far above rounding, far below
# what a mask that was not heeded does.
_MAX_ERROR = {torch.float32: 1e-3, torch.bfloat16: 0.1}


@dataclass(frozen=True, slots=True)
class Pair:
    """Two models that share a vocabulary, and the law at which one drafts for the other."""

    target: PreTrainedModel
    drafter: PreTrainedModel
    tokenizer: Tokenizer
    sampling: SamplingParams
    target_hash: str
    drafter_hash: str

    @classmethod
    def load(cls, target: str, drafter: str, *, temperature: float, dtype: str, device: torch.device) -> Pair:
        """Raises InvalidInput for a folder that is no model, InputError if their tokenizers differ."""
        checkpoints = [weights.inspect(name) for name in (target, drafter)]
        (target_hash, target_tokenizer), (drafter_hash, drafter_tokenizer) = (each.hashes() for each in checkpoints)
        if target_tokenizer != drafter_tokenizer:
            fix = "its tokenizer is not the target's; both models must share their vocabulary"
            raise InputError(f"--drafter {drafter}: {fix}")
        loaded = [_load(str(each.folder), dtype, device) for each in checkpoints]
        tokenizer = Tokenizer.load(str(checkpoints[0].folder))
        return cls(loaded[0], loaded[1], tokenizer, SamplingParams(temperature), target_hash, drafter_hash)

    def encode(self, prompts: Sequence[str]) -> list[tuple[int, ...]]:
        """Token ids, as serving encodes them."""
        return [tuple(self.tokenizer.encode(prompt)) for prompt in prompts]


def _load(folder: str, dtype: str, device: torch.device) -> PreTrainedModel:
    factory: Any = AutoModelForCausalLM
    model = factory.from_pretrained(
        folder, dtype=weights.DTYPES[dtype], attn_implementation="sdpa", trust_remote_code=False, local_files_only=True
    )
    loaded: PreTrainedModel = model.to(device).eval().requires_grad_(False)
    return loaded


@dataclass(frozen=True, slots=True)
class Drafted:
    """Drafted tokens: columns of n entries, documents or chains one after another, on the CPU."""

    hidden: Tensor  # [n, d]: the draft model's, of the pass whose input is the token
    accept: Tensor  # probability that it is kept, given that all before it were
    entropy: Tensor  # of the unscaled row that it was drawn from, nats
    margin: Tensor  # between that row's two largest logits
    token_prob: Tensor  # what that row, unscaled, gives the token

    @classmethod
    def joined(cls, parts: Sequence[Drafted]) -> Drafted:
        return cls(*(torch.cat([getattr(part, name) for part in parts]) for name in cls.__slots__))

    def __len__(self) -> int:
        return len(self.accept)

    def columns(self) -> dict[str, Tensor]:
        """By name, for a file."""
        return {name: getattr(self, name).contiguous() for name in self.__slots__}


@torch.inference_mode()
def branches(pair: Pair, document: Encoded, generator: torch.Generator, *, num_draws: int = 1) -> Drafted:
    """Drafted tokens for every position of the document's completion, each after the document's own prefix."""
    ids = torch.tensor(document.token_ids, device=pair.drafter.device)
    first = document.prompt_length
    rows = slice(first - 1, len(ids) - 1)  # the row at place i is about the token at place i + 1
    target_logits = pair.target(input_ids=ids[None], use_cache=False).logits[0, rows]
    cache = DynamicCache()
    draft_logits = pair.drafter(input_ids=ids[None, :-1], past_key_values=cache).logits[0, first - 1 :]
    draft_probs = law.target_probs(draft_logits, pair.sampling)
    drawn = torch.multinomial(draft_probs, num_draws, replacement=True, generator=generator).flatten()
    target_logits, draft_logits = (rows.repeat_interleave(num_draws, 0) for rows in (target_logits, draft_logits))
    places = torch.arange(first, len(ids), device=drawn.device).repeat_interleave(num_draws)
    hidden = _branch_hidden(pair.drafter, cache, drawn, places)
    return _drafted(pair, hidden, target_logits, draft_logits, drawn)


def _branch_hidden(drafter: PreTrainedModel, cache: DynamicCache, drawn: Tensor, places: Tensor) -> Tensor:
    """[n, d] of tokens `drawn` [n] that stand side by side at positions `places` [n], after the cached ones before.

    All in one pass: a mask shows each of them the cache up to its place, and itself.
    """
    num_drawn, num_cached = len(drawn), int(cache.get_seq_length())
    sees_cached = torch.arange(num_cached, device=drawn.device) < places[:, None]
    sees = torch.cat([sees_cached, torch.eye(num_drawn, dtype=torch.bool, device=drawn.device)], dim=1)
    mask = torch.zeros(sees.shape, dtype=drafter.dtype, device=drawn.device)
    mask.masked_fill_(~sees, torch.finfo(drafter.dtype).min)
    inputs = {"input_ids": drawn[None], "position_ids": places[None], "attention_mask": mask[None, None]}
    return hidden_of(drafter, past_key_values=cache, **inputs)


def hidden_of(drafter: PreTrainedModel, **inputs: Any) -> Tensor:
    """[L, d]: what goes into the output embedding, for a batch of one."""
    noted: list[Tensor] = []
    output = drafter.get_output_embeddings()  # type: ignore[no-untyped-call]
    if output is None:
        raise InputError(
            f"--drafter {drafter.name_or_path}: has no output embedding; it cannot have an acceptance head"
        )
    hook = output.register_forward_pre_hook(lambda _module, given: noted.append(given[0][0]))
    try:
        drafter(**inputs)
    finally:
        hook.remove()
    return noted[-1]


def _drafted(pair: Pair, hidden: Tensor, target_logits: Tensor, draft_logits: Tensor, drawn: Tensor) -> Drafted:
    """`hidden` [n, d] and the rows [n, V] that `drawn` [n] is judged by and was drawn from."""
    width = min(target_logits.shape[-1], draft_logits.shape[-1])  # one of them may be padded
    column = drawn[:, None]
    target_probs = law.target_probs(target_logits[:, :width], pair.sampling).gather(-1, column)
    draft_probs = law.target_probs(draft_logits[:, :width], pair.sampling).gather(-1, column)
    largest = draft_logits.float().topk(2, dim=-1).values
    columns = (
        hidden,
        (target_probs / draft_probs).clamp(max=1)[:, 0],
        law.entropy_nats(draft_logits),
        largest[:, 0] - largest[:, 1],
        draft_logits.float().softmax(-1).gather(-1, column)[:, 0],
    )
    return Drafted(*(values.cpu() for values in columns))


@torch.inference_mode()
def chain(pair: Pair, drafted: Encoded) -> Drafted:
    """The tokens that the drafter itself wrote after `drafted`'s prompt, one after another, as one draft."""
    ids = torch.tensor(drafted.token_ids, device=pair.drafter.device)
    first = drafted.prompt_length
    rows = slice(first - 1, len(ids) - 1)
    target_logits = pair.target(input_ids=ids[None], use_cache=False).logits[0, rows]
    draft_logits = pair.drafter(input_ids=ids[None], use_cache=False).logits[0, rows]
    hidden = hidden_of(pair.drafter, input_ids=ids[None], use_cache=False)[first:]
    return _drafted(pair, hidden, target_logits, draft_logits, ids[first:])


@torch.inference_mode()
def check_branches(pair: Pair, document: Encoded) -> None:
    """Raises InputError unless this architecture heeds the mask that `branches` gives it."""
    ids = torch.tensor(document.token_ids, device=pair.drafter.device)
    first = document.prompt_length
    cache = DynamicCache()
    pair.drafter(input_ids=ids[None, :-1], past_key_values=cache)
    found = _branch_hidden(pair.drafter, cache, ids[first:], torch.arange(first, len(ids), device=ids.device))
    expected = hidden_of(pair.drafter, input_ids=ids[None], use_cache=False)[first:]
    error = float((found - expected).float().norm() / expected.float().norm())
    if not error <= _MAX_ERROR[pair.drafter.dtype]:
        name = type(pair.drafter).__name__
        fix = f"{name} does not heed a mask of its own (relative error {error:.2g}); shorter answers may help"
        raise InputError(f"--drafter {pair.drafter.name_or_path}: {fix}")
