"""What the engine is held against: transformers' generation, batched and one by one, and its bare forward pass."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from paceline.types import Tokens

PAGE_SIZE = 32  # of transformers' cache


class Measured(NamedTuple):
    num_tokens: int
    seconds: float
    outputs: list[Tokens]


class Transformers:
    """The baselines, on a model of their own with the same weights."""

    def __init__(self, target: str, dtype: str, num_blocks: int, max_batch_tokens: int) -> None:
        import transformers

        self._transformers: Any = transformers
        self._transformers.utils.logging.set_verbosity_error()
        factory: Any = transformers.AutoModelForCausalLM
        self.model = factory.from_pretrained(target, dtype=getattr(torch, dtype), attn_implementation="sdpa").eval()
        # An end-of-sequence token would end a request early, and the three would do different work.
        self.model.generation_config.eos_token_id = None
        self._num_blocks, self._max_batch_tokens = num_blocks, max_batch_tokens

    def one_by_one(self, prompts: Sequence[Tokens], num_tokens: int) -> Measured:
        outputs: list[Tokens] = []
        started_s = time.perf_counter()
        with torch.inference_mode():
            for prompt in prompts:
                ids = torch.tensor([prompt])
                found = self.model.generate(
                    ids,
                    attention_mask=torch.ones_like(ids),
                    max_new_tokens=num_tokens,
                    do_sample=False,
                    pad_token_id=0,
                )
                outputs.append(tuple(found[0, len(prompt) :].tolist()))
        return Measured(sum(map(len, outputs)), time.perf_counter() - started_s, outputs)

    def batched(self, prompts: Sequence[Tokens], num_tokens: int) -> Measured:
        """What `generate_batch` does, without the start and the end of its manager, which take half a second."""
        config: Any = self._transformers.GenerationConfig
        settings = config(max_new_tokens=num_tokens, do_sample=False, eos_token_id=-1, pad_token_id=0)
        limits = self._transformers.ContinuousBatchingConfig(
            page_size=PAGE_SIZE, num_blocks=self._num_blocks, max_batch_tokens=self._max_batch_tokens
        )
        with self.model.continuous_batching_context_manager(
            generation_config=settings, continuous_batching_config=limits, block=True, timeout=5
        ) as manager:
            self._collect(manager, [list(prompts[0])], 2)  # its first request waits for its memory
            started_s = time.perf_counter()
            outputs = self._collect(manager, [list(prompt) for prompt in prompts], num_tokens)
            seconds = time.perf_counter() - started_s
        return Measured(sum(map(len, outputs)), seconds, outputs)

    @staticmethod
    def _collect(manager: Any, inputs: list[list[int]], num_tokens: int) -> list[Tokens]:
        found: dict[str, Tokens] = {}
        names = manager.add_requests(inputs=inputs, max_new_tokens=num_tokens)
        while len(found) < len(inputs):
            result = manager.get_result(timeout=1)
            if result is not None and result.is_finished():
                found[result.request_id] = tuple(result.generated_tokens)
            elif result is None and not manager.is_running():
                raise RuntimeError("transformers' generation thread has ended")
        return [found[name] for name in names]


class Bare:
    """transformers' forward pass over one token of each of several sequences, with its own cache."""

    def __init__(self, target: str, dtype: str, prompts: Sequence[Tokens]) -> None:
        import transformers

        factory: Any = transformers.AutoModelForCausalLM
        self._model = factory.from_pretrained(target, dtype=getattr(torch, dtype), attn_implementation="sdpa").eval()
        with torch.inference_mode():
            self._cache = self._model(torch.tensor(prompts), use_cache=True, logits_to_keep=1).past_key_values
        self._ids = torch.tensor([[prompt[-1]] for prompt in prompts])

    def step_ms(self) -> float:
        started_s = time.perf_counter()
        with torch.inference_mode():
            self._model(self._ids, past_key_values=self._cache, use_cache=True, logits_to_keep=1)
        seconds = time.perf_counter() - started_s
        self._cache.crop(-1)
        return 1e3 * seconds


def exact_logits(target: str, texts: Sequence[Tokens]) -> list[torch.Tensor]:
    """Rows of every position of each text by transformers in float64: what rounding is measured against."""
    import transformers

    factory: Any = transformers.AutoModelForCausalLM
    model = factory.from_pretrained(target, dtype=torch.float64, attn_implementation="eager").eval()
    with torch.inference_mode():
        return [model(torch.tensor([text]), use_cache=False).logits[0] for text in texts]
