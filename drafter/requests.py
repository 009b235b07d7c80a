"""The requests that a drafter holds, whatever it drafts with: how each is taken, told of commits, and given up.

An engine is this and a `step`. A request is known by its coordinator's stream and its id, oldest first.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from drafter.policies import Policy, make
from drafter.session import Session
from paceline.errors import InvalidInput, PacelineError
from paceline.holdings import Figures
from paceline.length_policy import LengthPolicy
from paceline.places import Places
from paceline.types import Close, Commit, DrafterAsk, DrafterReply, Fault, OpenDraft, WorkerInfo

log = logging.getLogger(__name__)

Replies = list[tuple[int, DrafterReply]]
Row = TypeVar("Row")


@dataclass(slots=True)
class Entry(Generic[Row]):
    """A session, whose it is, and its policy."""

    peer: int
    session: Session[Row]
    policy: Policy


E = TypeVar("E", bound=Entry[Any])


class Requests(ABC, Generic[E]):
    """See the top of the file. Belongs to one thread."""

    def __init__(self, info: WorkerInfo, longest: int, clock: Callable[[], float]) -> None:
        """`longest`: tokens of a request, beyond which there is no room to draft for it."""
        self.info = info
        self._clock = clock
        self._longest = longest
        self._entries: dict[str, E] = {}
        self._places = Places(info.max_num_seqs)

    @abstractmethod
    def _open(self, key: str, peer: int, ask: OpenDraft) -> E:
        """Make room for a new request."""

    def _close(self, key: str) -> E | None:
        """Free what a request holds; the entry that it had, if it is known."""
        return self._entries.pop(key, None)

    def _check(self, token_ids: Sequence[int]) -> None:
        """Raises Unavailable for tokens that cannot be drafted after."""

    def handle(self, peer: int, ask: DrafterAsk, waited_s: float = 0.0) -> Replies:
        """Take one ask; what comes back is what an open that was sent again asks for once more."""
        key = f"{peer}/{ask.request_id}"
        entry = self._entries.get(key)
        match ask:
            case OpenDraft() if entry:
                self._check(ask.token_ids)
                replies = entry.session.reopen(ask)
                self._follow(entry)
                return [(peer, reply) for reply in replies]
            case OpenDraft():
                self._admit(peer, ask)
                self._entries[key] = self._open(key, peer, ask)
            case Commit() if entry:
                self._check(ask.token_ids)
                entry.session.commit(ask)
                self._follow(entry)
            case Close():
                self._close(key)
        return []

    def _make(self, policy: LengthPolicy) -> Policy:
        """A new policy for a request. Raises PacelineError if this drafter does not offer it."""
        return make(policy)

    def _follow(self, entry: E) -> None:
        """Tell the policy what has become of its drafts; another one takes over if the coordinator wants it."""
        outcome = entry.session.take_outcome()
        if outcome.num_tested:
            entry.policy.observe(outcome.num_tested, outcome.num_accepted)
        if entry.session.take_new_policy():
            entry.policy = self._make(entry.session.ask.policy)

    def _admit(self, peer: int, ask: OpenDraft) -> None:
        """Raises InvalidInput for a request that can never be drafted here, Overloaded if there is no place now."""
        if len(ask.token_ids) >= self._longest:
            fix = f"this drafter holds requests of at most {self._longest} tokens"
            raise InvalidInput("token_ids", f"{len(ask.token_ids)} tokens", fix)
        self._check(ask.token_ids)
        holders = (entry.peer for entry in self._entries.values())
        self._places.take("requests on this drafter", peer, holders, self._clock())

    def _refuse(self, entry: E, error: Exception) -> tuple[int, Fault]:
        """This request cannot be drafted here; the others can, and its verifier goes on alone."""
        request_id, reason = entry.session.ask.request_id, str(error)
        if isinstance(error, PacelineError):
            log.warning("refusing %s: %s", request_id, reason)
        else:
            log.exception("the drafter failed on %s, and on no other request", request_id, exc_info=error)
            reason = f"the drafter failed on this request: {type(error).__name__}; its log says more"
        self._close(f"{entry.peer}/{request_id}")
        return entry.peer, Fault(request_id, reason)

    def drop(self, peer: int) -> None:
        """That coordinator's stream has ended: free all its requests."""
        self._places.drop(peer)
        for key in [key for key, entry in self._entries.items() if entry.peer == peer]:
            self._close(key)

    def fail(self, error: Exception) -> list[tuple[int, Fault]]:
        """A step has failed: refuse every request; their verifiers go on alone."""
        faults = [
            (entry.peer, Fault(entry.session.ask.request_id, f"the drafter failed: {type(error).__name__}"))
            for entry in self._entries.values()
        ]
        for key in list(self._entries):
            self._close(key)
        return faults

    @property
    def num_requests(self) -> int:
        return len(self._entries)

    @property
    def held(self) -> Figures:
        return {"requests": len(self._entries)}

    def has_work(self) -> bool:
        return any(entry.session.wants_token() for entry in self._entries.values())
