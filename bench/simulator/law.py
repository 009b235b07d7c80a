"""A toy target and toy drafters: tokens as pure functions of what stands before them, so that lossless can be checked.

The target's successor depends on the position and the last three tokens. A drafter agrees with it or does not, always
in the same way at the same place, whatever mode, retries and failures bring it there: that is what greedy decoding
does, and it lets all modes be compared on the same luck.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

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


# After a rejection the target's token is the drafter's second, third, fourth likeliest this often (a trial pair whose
# drafter agrees with its target in 81 % of the places: among the top 2, 3, 4 in 47, 63, 73 %).
RANKS = (0.47, 0.16, 0.10)
NO_RANK = -1  # none of those


class Agreement(Protocol):
    """Where a drafter agrees with the target."""

    def agrees(self, request_id: str, prefix: Sequence[int]) -> bool:
        """Whether the drafter's token after `prefix` is the target's."""

    def rank(self, request_id: str, prefix: Sequence[int]) -> int:
        """Which of the drafter's next likeliest tokens is the target's where its first is not; 0 = its second."""


@dataclass(frozen=True, slots=True)
class Iid:
    """Independent from place to place, with probability `rate`."""

    rate: float

    def agrees(self, request_id: str, prefix: Sequence[int]) -> bool:
        return hash((*prefix[-4:], len(prefix), 7)) % 1000 < 1000 * self.rate

    def rank(self, request_id: str, prefix: Sequence[int]) -> int:
        luck = hash((11, len(prefix), *prefix[-4:])) // 7919 % 1000 / 1000
        for rank, reached in enumerate(itertools.accumulate(RANKS)):
            if luck < reached:
                return rank
        return NO_RANK


@dataclass(frozen=True, slots=True)
class RecordedRequest:
    """One request of a recorded run. What is None was not tried there."""

    num_prompt_tokens: int
    kept: tuple[bool | None, ...]  # by output position: whether a drafted token was kept there
    # Likewise, of rejected tokens: the place of what came instead among the branches made for that position.
    ranks: tuple[int | None, ...] = ()

    @property
    def num_generated_tokens(self) -> int:
        return len(self.kept)


@dataclass(frozen=True, slots=True)
class Recorded:
    """As it was in a recorded run. A position where nothing was tried there, or beyond its end, falls to `rest`."""

    rest: Agreement
    requests: Mapping[str, RecordedRequest] = field(default_factory=dict)

    def agrees(self, request_id: str, prefix: Sequence[int]) -> bool:
        request = self.requests.get(request_id)
        said = _at(request.kept, len(prefix) - request.num_prompt_tokens) if request else None
        return self.rest.agrees(request_id, prefix) if said is None else said

    def rank(self, request_id: str, prefix: Sequence[int]) -> int:
        request = self.requests.get(request_id)
        said = _at(request.ranks, len(prefix) - request.num_prompt_tokens) if request else None
        return self.rest.rank(request_id, prefix) if said is None else said


Said = TypeVar("Said")


def _at(values: Sequence[Said | None], place: int) -> Said | None:
    return values[place] if place < len(values) else None


def others(agreement: Agreement, request_id: str, prefix: Sequence[int]) -> tuple[tuple[int, float], ...]:
    """The drafter's next likeliest tokens after `prefix`, and how likely each is the target's if the first is not."""
    right = target_token(prefix)
    is_rejected = not agreement.agrees(request_id, prefix)
    rank = agreement.rank(request_id, prefix) if is_rejected else NO_RANK
    return tuple(
        (right if place == rank else (right + 2 + place) % VOCABULARY, share) for place, share in enumerate(RANKS)
    )


def draft_token(agreement: Agreement, request_id: str, prefix: Sequence[int]) -> int:
    """The drafter's token after `prefix`."""
    right = target_token(prefix)
    return right if agreement.agrees(request_id, prefix) else (right + 1) % VOCABULARY
