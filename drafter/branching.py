"""The branches that an engine drafts beside its chains: which of them take part in a pass, and their place in the pool.

While nothing else is to be drafted they have the device to themselves; otherwise they ride along as far as that is
nearly free (`room.py`).

A branch that is being drafted is a sequence of its own, which shares the full blocks of its request's prefix and
forwards the rest of it once more, less than a block. It is closed when the branch is complete, or is ruled out: going
on from a branch means forwarding its few tokens in the pass that is due anyway. Chains come first wherever room is
short.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from drafter.branches import Offshoot
from drafter.draws import Drawn, RowShape, draw, keep, pack
from drafter.look import Look
from drafter.policies import Policy
from drafter.room import CATCH_UP, Room
from drafter.session import Session
from paceline.engine.runner import Chunk, Runner
from paceline.rows import CountRows
from paceline.types import Branch, StepCost

log = logging.getLogger(__name__)

_MAX_CATCH_UP = 64  # tokens of the prefix that are forwarded once more; more than a block means that nothing is shared
_ROOM = 64  # tokens of the pool that are left free for each branch


@dataclass(slots=True)
class Growing:
    """A branch that is being drafted, and whose it is."""

    key: str  # the request's
    offshoot: Offshoot[CountRows]
    policy: Policy  # its own: the chain's may know what stands in a draft that is being made

    @property
    def sequence(self) -> str:
        return f"{self.key}#{self.offshoot.number}"

    @property
    def chunk(self) -> Chunk:
        offshoot = self.offshoot
        return Chunk(self.sequence, offshoot.computed, offshoot.tokens[offshoot.computed :], 1)


class Branching:
    """See the top of the file. Belongs to the engine's thread."""

    def __init__(self, runner: Runner, shape: RowShape) -> None:
        self._runner = runner
        self._shape = shape
        self._growing: dict[str, Growing] = {}  # by sequence
        self._is_short = False  # of room for another; only an ask can change that

    def __len__(self) -> int:
        return len(self._growing)

    def asked(self) -> None:
        """An ask has come: there may be room again."""
        self._is_short = False

    def settle(self, key: str, session: Session[CountRows] | None) -> None:
        """Let go of what has been ruled out for a request; of all of it if the request is gone."""
        wanted = session.branches.growing if session else []
        for growing in list(self._growing.values()):
            if growing.key == key and growing.offshoot not in wanted:
                self._free(growing)

    def give_way(self, sessions: Mapping[str, Session[CountRows]]) -> None:
        """Let go of everything: the chains want the room."""
        for growing in list(self._growing.values()):
            self._drop(growing, sessions[growing.key])

    def has_work(self, sessions: Mapping[str, Session[CountRows]]) -> bool:
        if self._growing:
            return True
        return not self._is_short and any(session.next_outcome() for session in sessions.values())

    def take(
        self,
        sessions: Mapping[str, Session[CountRows]],
        policies: Mapping[str, Policy],
        others: Sequence[Chunk],
        cost: StepCost | None,
    ) -> list[Growing]:
        """The branches that take part in a pass over `others`, the chains' part of it; oldest requests first."""
        room = Room(cost, [(len(chunk.token_ids), chunk.start) for chunk in others])
        taken: list[Growing] = []
        for growing in self._candidates(sessions, policies, room):
            room.add(len(growing.chunk.token_ids), growing.chunk.start)
            taken.append(growing)
        return taken

    def _candidates(
        self, sessions: Mapping[str, Session[CountRows]], policies: Mapping[str, Policy], room: Room
    ) -> Iterator[Growing]:
        """Those under way, then new ones while there is room: the likeliest outcome of each request in turn."""
        for growing in list(self._growing.values()):
            if room.takes(len(growing.chunk.token_ids), growing.chunk.start):
                yield growing
        going = list(sessions)
        while going and not self._is_short:
            for key in list(going):
                session = sessions[key]
                outcome = session.next_outcome() if room.takes(CATCH_UP, len(session.tokens)) else None
                begun = outcome and self._begin(key, session, outcome, policies[key])
                if begun:
                    yield begun
                else:
                    going.remove(key)

    def _begin(self, key: str, session: Session[CountRows], outcome: tuple[int, int], policy: Policy) -> Growing | None:
        """A new branch with its sequence; None if there is no room for it."""
        if self._runner.room() < _ROOM * (1 + len(self._growing)):
            self._is_short = True
            return None
        growing = Growing(key, session.begin_branch(outcome), copy.copy(policy))
        offshoot = growing.offshoot
        self._runner.open(growing.sequence)
        self._growing[growing.sequence] = growing
        offshoot.computed = self._runner.adopt(growing.sequence, offshoot.tokens)
        if len(offshoot.tokens) - offshoot.computed > _MAX_CATCH_UP:
            self._drop(growing, session)
            return None
        return growing

    def extend(
        self,
        taken: Sequence[Growing],
        looks: Sequence[Look],
        sessions: Mapping[str, Session[CountRows]],
        each_ms: float,
    ) -> list[tuple[str, Branch]]:
        """Let each go on from its row, which took `each_ms`; those that are complete, with their requests."""
        complete: list[tuple[str, Branch]] = []
        drawing: list[tuple[Growing, Look]] = []
        for growing, row in zip(taken, looks, strict=True):
            if growing.sequence not in self._growing:
                continue  # its request was refused in this pass
            offshoot = growing.offshoot
            offshoot.computed = len(offshoot.tokens)
            offshoot.draft_ms += each_ms
            if offshoot.draft_length and growing.policy.stops_before(row.before(offshoot.draft_length)):
                complete.append((growing.key, self._send(growing)))
            else:
                drawing.append((growing, row))
        drawn = draw([(growing.offshoot, row.logits) for growing, row in drawing], self._shape)
        for (growing, row), found in zip(drawing, drawn, strict=True):
            try:
                if self._is_complete(growing, row, found):
                    complete.append((growing.key, self._send(growing)))
            except Exception as error:
                # What is wrong with the request shows in its chain, which refuses it.
                log.warning("a branch of %s failed: %s", growing.offshoot.ask.request_id, error)
                self._drop(growing, sessions[growing.key])
        return complete

    @staticmethod
    def _is_complete(growing: Growing, row: Look, found: Drawn | Exception) -> bool:
        if isinstance(found, Exception):
            raise found
        return keep(growing.offshoot, growing.policy, row, found)

    def _send(self, growing: Growing) -> Branch:
        self._free(growing)
        return growing.offshoot.send(pack(growing.offshoot, self._shape))

    def _drop(self, growing: Growing, session: Session[CountRows]) -> None:
        """Draft a branch no further; none is begun before the next ask.

        What is drawn of it stays, and is gone on with if its outcome comes. Drawn anew it would be chosen by what is in
        it, since those that are complete, the shorter ones, are kept.
        """
        self._is_short = True
        self._free(growing)
        if not growing.offshoot.draft_length:
            session.branches.drop(growing.offshoot)

    def _free(self, growing: Growing) -> None:
        del self._growing[growing.sequence]
        self._runner.forget(growing.sequence)
        self._runner.close(growing.sequence)
