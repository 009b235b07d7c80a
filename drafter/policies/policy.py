"""The seam of the length policies: when to stop a draft.

Rules. A policy is asked twice about a row. *Before* a token is drawn from it, it may end the draft without that token:
it sees what is known by then, never a token that would be dropped. *After* a token was drawn and kept it may end the
draft with that token, whose own probability it may see. A token that was drawn is never dropped: that would change
the output's law under rejection sampling (docs/exactness.md, Traps).

The first token of a draft is always drawn, or a policy that has once become too strict could never learn otherwise.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import ClassVar, Protocol


class Need(enum.Flag):
    """What of `Seen` a policy looks at; the caller computes nothing else."""

    NOTHING = 0
    ENTROPY = enum.auto()
    TOKEN_PROB = enum.auto()
    ACCEPT_PROB = enum.auto()


@dataclass(frozen=True, slots=True)
class Seen:
    """What a policy may know of a row. A field that it does not need stands at its default.

    The row is the draft model's unscaled softmax over the whole vocabulary: no temperature, no truncation, no penalty.
    """

    draft_length: int  # tokens in the draft; asked after a token was kept, that one included
    entropy_nats: float = 0.0  # of the row
    token_prob: float = 1.0  # what the row gives the token that was kept; only where asked after keeping it
    accept_prob: float = 1.0  # the acceptance head's, for the token that stands before the row


class Policy(Protocol):
    """One request's policy. Created for the request by `drafter.policies.make`, and lost with it."""

    __slots__ = ()

    needs: ClassVar[Need] = Need.NOTHING

    def stops_before(self, seen: Seen) -> bool:
        """Whether the draft ends with the tokens it has; not asked while it has none."""
        return False

    def stops_after(self, seen: Seen) -> bool:
        """Whether the draft ends with the token that was just kept. Asked of every token, in order."""
        ...

    def observe(self, num_tested: int, num_accepted: int) -> None:
        """The outcome of drafted tokens: how many the verifier looked at, and how many of these it kept."""
        return
