"""Which tokens go into the next forward pass: pure policy, no tensors, no clock.

There is no prefill phase and no decode phase, only tokens that are wanted and a budget. Requests that are under way
(a draft to judge, a token to decode) want few tokens and go first, longest waiting first; what is left of the budget
goes to prompts, in chunks. So a long prompt never stalls a running request, it only takes the room they leave, and no
more of it than lengthens their pass by a bounded part: on a CPU a full budget takes seconds. Where the budget is short,
the coordinators whose requests these are take turns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from paceline.places import in_turns

MIN_PROMPT_TOKENS = 16  # of prompts in a pass, however slow they are: they must come to an end too


@dataclass(frozen=True, slots=True)
class Budget:
    max_num_batched_tokens: int = 2048  # tokens in a pass; more lengthen it for everyone in it
    max_num_seqs: int = 64  # requests in a pass
    prompt_share: float = 2.0  # time that prompts may take of a pass, over what those under way would take alone


@dataclass(frozen=True, slots=True)
class Ready:
    """A request that wants `num_pending` committed tokens forwarded, and `num_drafted` after them."""

    key: str
    num_pending: int
    num_drafted: int
    since_s: float  # when it began to wait
    peer: int = 0  # whose it is

    @property
    def is_running(self) -> bool:
        """Whether it is under way; else it has a prompt, or most of one, to forward."""
        return self.num_pending <= 1

    @property
    def num_tokens(self) -> int:
        return self.num_pending + self.num_drafted


def plan(ready: Sequence[Ready], budget: Budget, prompt_room: int | None = None) -> dict[str, int]:
    """Tokens to forward now, by request: all it wants, or the first part of a prompt.

    `prompt_room`: tokens of prompts at most; None = as many as the budget leaves. A part leaves at least one pending
    token over, so that the pass which ends a prompt always yields its rows. Never empty unless `ready` is. Example:
    budget 10, a draft of 4 and a prompt of 50 → 4 and 6.
    """
    shares: dict[str, int] = {}
    room = budget.max_num_batched_tokens
    prompt_room = room if prompt_room is None else prompt_room
    waiting = sorted(ready, key=lambda wish: (wish.num_pending > 1, wish.since_s))
    turns = in_turns((wish.num_pending > 1, wish.peer) for wish in waiting)
    for _, wish in sorted(zip(turns, waiting, strict=True), key=lambda pair: (pair[1].num_pending > 1, pair[0])):
        if len(shares) == budget.max_num_seqs:
            break
        most = room if wish.is_running else min(room, prompt_room)
        part = wish.num_tokens if wish.num_tokens <= most else min(most, wish.num_pending - 1)
        if not shares and part <= 0:
            part = wish.num_tokens  # it cannot be split, and would wait for ever
        if part > 0:
            shares[wish.key] = part
            room -= part
            prompt_room -= 0 if wish.is_running else part
    return shares
