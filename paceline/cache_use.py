"""What a worker's KV cache holds, as it says with its lease."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class CacheUse:
    """In tokens. What is looked up, found and preempted counts from the worker's start and never shrinks."""

    num_tokens: int  # that there is room for
    num_used_tokens: int  # of them taken by requests; what is only kept for others to find is free
    num_queried_tokens: int = 0  # of prompts that were looked up
    num_found_tokens: int = 0  # of these found
    num_preemptions: int = 0  # requests that lost their cache to older ones
    block_size: int = 0  # of a block, which is taken whole; 0 = it has not said

    @property
    def share(self) -> float:
        """Of the room, what requests have taken; 1 = all."""
        return self.num_used_tokens / self.num_tokens if self.num_tokens else 0.0
