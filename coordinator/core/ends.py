"""Where an output ends: at a token that ends it, or at its length. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from coordinator.core.events import RequestSpec
from paceline.types import FinishReason, Source, Tokens


def cut(
    spec: RequestSpec, num_committed: int, tokens: Tokens, sources: tuple[Source, ...]
) -> tuple[Tokens, tuple[Source, ...]]:
    """What comes after `num_committed` tokens, up to max_tokens and to the first that ends the output (it is kept)."""
    room = spec.end - num_committed
    for i, token in enumerate(tokens[:room]):
        if token in spec.stop_token_ids:
            room = i + 1
            break
    return tokens[:room], sources[:room]


def finish_reason(spec: RequestSpec, committed: Sequence[int]) -> FinishReason | None:
    """Why the output ends with the last of `committed`, prompt and output together; None if it does not."""
    if committed[-1] in spec.stop_token_ids:
        return FinishReason.STOP
    return FinishReason.LENGTH if len(committed) >= spec.end else None
