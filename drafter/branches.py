"""The branches of one request: drafts for what may be committed instead of its chain. No tensors, no clock.

Which outcomes are likely is read off the rows that the chain was drawn from. A token of the chain is doubtful as far
as its row is: its rejection is taken to be as likely as the row's mass beside its likeliest token, scaled so that
past rejections come out right. If it is rejected, another token of the row is taken to come with that token's share
of the mass. So an outcome, the first rejected position and what stands there instead, has a probability; the likeliest
ones are drafted for first, and those that are too unlikely not at all.

A branch leaves only parts of the chain that were sent: the coordinator has heard of them before it.

What is drafted in a branch has noise of its own (`paceline.noise`, by the branch's number), so nothing that becomes
of the chain, or of another branch, tells anything about it. Which branches there are depends on rows, on the chain
and on time, never on what is in them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Generic, TypeVar

from drafter.chain import Chain, Choice
from paceline.types import MAX_BRANCH_TOKENS, Branch, Draft, OpenDraft, Rows

Row = TypeVar("Row")

NUM_OTHERS = 4  # tokens of a row beside the drawn one that are considered
_LEAST_PROB = 0.01  # of an outcome that is drafted for
_MEMORY = 0.98  # of a tested token, in the scale of doubts


class Offshoot(Chain[Row]):
    """One branch while it is drafted: the chain up to where it leaves it, another token, and what follows."""

    def __init__(self, ask: OpenDraft, epoch: int, number: int, prefix: Sequence[int], token_id: int) -> None:
        super().__init__(ask, [*prefix, token_id], epoch)
        self.number = number
        self.token_id = token_id
        self.position = len(prefix)
        self.draft: Draft | None = None  # once it is complete

    def send(self, rows: Rows | None) -> Branch:
        """Close it."""
        self.draft = self._draft(rows)
        return Branch(self.token_id, self.draft)


class Branches(Generic[Row]):
    """See the top of the file."""

    def __init__(self) -> None:
        self._offshoots: dict[tuple[int, int], Offshoot[Row]] = {}  # by position and outcome
        self._num_begun = 0  # ever: a number is never used twice, so noise is not either
        self._num_rejected, self._doubts = 1.0, 2.0  # of tested tokens, fading

    @property
    def growing(self) -> list[Offshoot[Row]]:
        """Those that are not complete."""
        return [offshoot for offshoot in self._offshoots.values() if offshoot.draft is None]

    def tested(self, choice: Choice, *, is_rejected: bool) -> None:
        """The verifier has looked at a token of the chain."""
        self._num_rejected = _MEMORY * self._num_rejected + is_rejected
        self._doubts = _MEMORY * self._doubts + choice.doubt

    def next(self, chain: Chain[Row], positions: range) -> tuple[int, int] | None:
        """The likeliest outcome in unverified `positions` of the chain that no branch is made for, if any is worth it:
        a position, and the token there."""
        ask = chain.ask
        if not self._has_room(ask):
            return None
        best, most = None, _LEAST_PROB
        for prob, position, token_id in self._outcomes(chain.choices, positions):
            is_new = (position, token_id) not in self._offshoots and token_id != chain.tokens[position]
            if prob > most and is_new and position + 1 < ask.end and token_id not in ask.stop_token_ids:
                best, most = (position, token_id), prob
        return best

    def _has_room(self, ask: OpenDraft) -> bool:
        if len(self._offshoots) >= ask.branches:
            return False
        longest = ask.policy.max_length
        lengths = [len(it.draft.token_ids) if it.draft else longest for it in self._offshoots.values()]
        return sum(lengths) + longest <= MAX_BRANCH_TOKENS

    def _outcomes(self, choices: Mapping[int, Choice], positions: range) -> Iterator[tuple[float, int, int]]:
        """Probability, position and token of what may come instead of the chain."""
        scale = self._num_rejected / self._doubts
        reach = 1.0
        for position in positions:
            choice = choices.get(position)
            if choice is None:
                return
            rejected = min(1.0, scale * choice.doubt)
            for token_id, share in choice.others:
                yield reach * rejected * share, position, token_id
            reach *= 1 - rejected

    def begin(self, chain: Chain[Row], outcome: tuple[int, int]) -> Offshoot[Row]:
        """A branch for an outcome, to be drafted."""
        position, token_id = outcome
        self._num_begun += 1
        offshoot = Offshoot[Row](chain.ask, chain.epoch, self._num_begun, chain.tokens[:position], token_id)
        self._offshoots[outcome] = offshoot
        return offshoot

    def drop(self, offshoot: Offshoot[Row]) -> None:
        """Forget one of which nothing is drawn; it may be begun anew."""
        self._offshoots.pop((offshoot.position, offshoot.token_id), None)

    def matching(self, tokens: Sequence[int], end: int) -> Offshoot[Row] | None:
        """The branch that was made for how committed tokens leave the chain, if it has more than they.

        `tokens`: the chain up to `end`, but with the committed ones in their place, of which `end` says how many.
        """
        for (position, token_id), offshoot in self._offshoots.items():
            if position >= end or tokens[position] != token_id:
                continue
            known = tokens[position + 1 : end]
            mine = offshoot.tokens[position + 1 :]
            if offshoot.tokens[:position] != tokens[:position] or mine[: len(known)] != known:
                continue
            # Complete or not: whether it is depends on its length, so on what is in it.
            if len(mine) > len(known):
                return offshoot
        return None

    def settle(self, end: int) -> None:
        """The chain is committed up to `end`: nothing else can come there any more."""
        self._offshoots = {outcome: it for outcome, it in self._offshoots.items() if outcome[0] >= end}

    def clear(self) -> None:
        """The chain is another one."""
        self._offshoots.clear()
