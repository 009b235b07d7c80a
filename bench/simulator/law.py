"""A toy target and toy drafters: tokens as pure functions of what stands before them, so that lossless can be checked.

The target's successor depends on the position and the last three tokens. A drafter agrees with it or does not, always
in the same way at the same place, whatever mode, retries and failures bring it there: that is what greedy decoding
does, and it lets all modes be compared on the same luck.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from paceline.types import Tokens

VOCABULARY = 50
REACH = 3  # tokens that the successor depends on


def successor(position: int, tail: Sequence[int]) -> int:
    """The target's token at `position`, after `tail`, the last `REACH` tokens before it (fewer at the start)."""
    return hash((position, *tail)) % VOCABULARY


def target_token(prefix: Sequence[int]) -> int:
    return successor(len(prefix), prefix[-REACH:])


def greedy(prompt: Tokens, num_tokens: int) -> Tokens:
    """The target's own output after `prompt`."""
    tokens = list(prompt)
    for _ in range(num_tokens):
        tokens.append(target_token(tokens))
    return tuple(tokens[len(prompt) :])


def has_guess(prefix: Sequence[int], share: float) -> bool:
    """Whether a drafter without a model finds something that goes on like `prefix`; for a share of all prefixes."""
    return hash((*prefix[-2:], len(prefix), 5)) % 1000 < 1000 * share


class Agreement(Protocol):
    """Where a drafter agrees with the target."""

    def agrees(self, request_id: str, prefix: Sequence[int]) -> bool:
        """Whether the drafter's token after `prefix` is the target's."""


@dataclass(frozen=True, slots=True)
class Iid:
    """Independent from place to place, with probability `rate`."""

    rate: float

    def agrees(self, request_id: str, prefix: Sequence[int]) -> bool:
        return hash((*prefix[-4:], len(prefix), 7)) % 1000 < 1000 * self.rate


@dataclass(frozen=True, slots=True)
class Recorded:
    """As it was in a recorded run: for each output position whether a drafted token was kept there.

    A position where nothing was tested in that run, or that lies beyond its end, falls to `rest`.
    """

    rest: Agreement
    patterns: Mapping[str, tuple[int, Sequence[bool | None]]] = field(
        default_factory=dict
    )  # by request: (prompt, kept)

    def agrees(self, request_id: str, prefix: Sequence[int]) -> bool:
        num_prompt_tokens, kept = self.patterns.get(request_id, (0, ()))
        at = len(prefix) - num_prompt_tokens
        said = kept[at] if at < len(kept) else None
        return self.rest.agrees(request_id, prefix) if said is None else said


# After a rejection the target's token is the drafter's second, third, fourth likeliest this often (a trial pair whose
# drafter agrees with its target in 81 % of the places: among the top 2, 3, 4 in 47, 63, 73 %).
RANKS = (0.47, 0.16, 0.10)


def others(agreement: Agreement, request_id: str, prefix: Sequence[int]) -> tuple[tuple[int, float], ...]:
    """The drafter's next likeliest tokens after `prefix`, and how likely each is the target's if the first is not.

    One of them is the target's that often; the others are tokens that it does not want.
    """
    right = target_token(prefix)
    is_rejected = not agreement.agrees(request_id, prefix)
    luck = hash((11, len(prefix), *prefix[-4:])) // 7919 % 1000 / 1000
    found, reached = [], 0.0
    for rank, share in enumerate(RANKS):
        is_right = is_rejected and reached <= luck < reached + share
        found.append((right if is_right else (right + 2 + rank) % VOCABULARY, share))
        reached += share
    return tuple(found)


def draft_token(agreement: Agreement, request_id: str, prefix: Sequence[int]) -> int:
    """The drafter's token after `prefix`."""
    right = target_token(prefix)
    return right if agreement.agrees(request_id, prefix) else (right + 1) % VOCABULARY
