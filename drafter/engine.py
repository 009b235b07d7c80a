"""The drafter's engine: many requests, one draft model, one thread.

A step forwards one token for every request that has room in its window (and a chunk of the prompt for those that are
catching up), in one ragged pass, then chooses each request's next token from its row. What is chosen from is what is
sent (`draws.py`): under rejection sampling the row is truncated and quantised first, and the token drawn from that.

What of the device is left is for branches: drafts for other outcomes than the chains' (`branching.py`).

A policy may end a draft before a token is drawn from its row. That row then gives the next draft's first token: at once
if the window has room, else it is kept until there is, so that no token is ever forwarded for it a second time.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from drafter.branching import Branching
from drafter.draws import RowShape, draw, keep, pack
from drafter.look import AcceptProbs, Look, look
from drafter.policies import Need, Policy, make
from drafter.requests import Entry, Replies, Requests
from drafter.session import Session
from paceline.acceptance_head import TrainedHead
from paceline.engine.cost import CostModel
from paceline.engine.room import Sharing
from paceline.engine.runner import Chunk, PoolFull, Runner
from paceline.errors import EngineLost, Unavailable
from paceline.holdings import Figures
from paceline.length_policy import LengthPolicy, offered
from paceline.places import in_turns
from paceline.rows import CountRows
from paceline.types import Draft, DrafterAsk, Fault, OpenDraft, WorkerInfo

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Entry(Entry[CountRows]):
    """With the row after the whole chain, if it is computed and nothing was drawn from it."""

    spare: Look | None = None

    @property
    def has_row(self) -> bool:
        """Whether there is a row to draw the next token from already."""
        return self.spare is not None and self.session.computed == len(self.session.tokens)

    def take_row(self) -> Look:
        """That row, which is drawn from once."""
        row, self.spare = self.spare, None
        assert row is not None
        return row


class DrafterEngine(Requests[_Entry]):
    """See the top of the file. Belongs to one thread."""

    def __init__(
        self,
        runner: Runner,
        info: WorkerInfo,
        *,
        row_width: int = 64,
        row_bits: int = 12,
        draft_temperature: float | None = None,
        max_num_batched_tokens: int = 512,
        clock: Callable[[], float] = time.perf_counter,
        cost: CostModel | None = None,
        head: TrainedHead | None = None,
    ) -> None:
        """`row_width`, `row_bits`: what is kept of a draft row, and how finely.

        `draft_temperature`: of what is sampled, whatever the request's own; None = the request's.
        `cost`: as measured at the start, or None to learn it while running. `head`: this model's, if it has one.
        """
        self.cost = cost or CostModel()
        # The longest request is one that has all of the pool to itself.
        longest = min(runner.info.max_model_len, runner.room())
        offers = offered(has_head=head is not None)
        super().__init__(replace(info, cost=self.cost.cost, policies=offers, max_model_len=longest), longest, clock)
        self.runner = runner
        self._head: AcceptProbs | None = head.accept_probs if head else None
        self._thresholds = head.info.thresholds if head else {}
        self._row_shape = RowShape(row_width, row_bits, draft_temperature)
        self._branching = Branching(runner, self._row_shape)
        self._max_num_batched_tokens = max_num_batched_tokens
        self._is_stalled = False  # all that is wanted waits for room which only an ask can make
        self.num_preemptions = 0

    @property
    def held(self) -> Figures:
        return {**super().held, "kv_blocks": self.runner.num_held_blocks}

    # --- asks

    def handle(self, peer: int, ask: DrafterAsk, waited_s: float = 0.0) -> Replies:
        self._is_stalled = False
        self._branching.asked()
        return super().handle(peer, ask, waited_s)

    def drop(self, peer: int) -> None:
        self._is_stalled = False
        super().drop(peer)

    def _open(self, key: str, peer: int, ask: OpenDraft) -> _Entry:
        entry = _Entry(peer, Session(ask), self._make(ask.policy))
        self.runner.open(key)
        return entry

    def _follow(self, entry: _Entry) -> None:
        before = entry.policy
        super()._follow(entry)
        self._branching.settle(f"{entry.peer}/{entry.session.ask.request_id}", entry.session)
        if entry.policy is not before and entry.spare is not None:
            entry.session.computed -= entry.has_row  # what the new policy would see of it was not looked at
            entry.spare = None

    def _make(self, policy: LengthPolicy) -> Policy:
        return make(policy, self._thresholds)

    def _close(self, key: str) -> _Entry | None:
        if entry := super()._close(key):
            self._branching.settle(key, None)
            self.runner.close(key)
        return entry

    def _check(self, token_ids: Sequence[int]) -> None:
        """Raises Unavailable for a token that this model has no row for: the target's vocabulary may be wider."""
        vocab_size = self.runner.info.vocab_size
        if token_ids and max(token_ids) >= vocab_size:
            fix = f"this drafter's vocabulary has {vocab_size} tokens; the request goes on without it"
            raise Unavailable(f"token_ids={max(token_ids)}: {fix}")

    # --- work

    def has_work(self) -> bool:
        if self.runner.lost is not None or (not self._is_stalled and super().has_work()):
            return True
        return self._branching.has_work(self._sessions)

    @property
    def _sessions(self) -> dict[str, Session[CountRows]]:
        return {key: entry.session for key, entry in self._entries.items()}

    def step(self) -> Replies:
        """One forward pass, one token more for every request that has a row; the drafts this completed.

        Raises EngineLost.
        """
        if self.runner.lost is not None:
            raise EngineLost(self.runner.lost)
        started_s = self._clock()
        going = self._with_room()
        waiting = [entry for key in going if (entry := self._entries[key]).has_row]
        chunks = self._chunks(going)
        policies = {key: entry.policy for key, entry in self._entries.items()}
        branches = self._branching.take(self._sessions, policies, chunks, self.info.cost)
        every = [*chunks, *(growing.chunk for growing in branches)]
        whole = [self._entries[chunk.sequence] for chunk in chunks if chunk.num_rows]
        policies_here = [*(entry.policy for entry in whole), *(growing.policy for growing in branches)]
        try:
            logits, hidden = self._forward(every, policies_here)
        except PoolFull as error:
            return self._make_room(chunks, error)
        ms = 1e3 * (self._clock() - started_s)
        self.info = self.cost.seen(self.info, every, ms)
        for chunk in chunks:
            session = self._entries[chunk.sequence].session
            session.computed = chunk.start + len(chunk.token_ids)
            if not chunk.num_rows:
                self._charge(session, started_s)
        found = look(policies_here, logits, hidden, self._head)
        looks = [*(entry.take_row() for entry in waiting), *found[: len(whole)]]
        replies = self._extend([*waiting, *whole], looks, started_s)
        if branches:
            complete = self._branching.extend(branches, found[len(whole) :], self._sessions, ms / len(every))
            replies += [(self._entries[key].peer, branch) for key, branch in complete]
        return replies

    def _forward(self, chunks: Sequence[Chunk], policies: Sequence[Policy]) -> tuple[Tensor, Tensor | None]:
        """Logits [n, vocab], and the hidden states [n, d] that they come from if one of `policies` needs them."""
        if self._head and any(Need.ACCEPT_PROB in policy.needs for policy in policies):
            return self.runner.forward_with_hidden(chunks)
        return self.runner.forward(chunks), None

    def _charge(self, session: Session[CountRows], since_s: float) -> float:
        """Count the time since then as spent on the draft being made; returns the time now."""
        now_s = self._clock()
        session.draft_ms += 1e3 * (now_s - since_s)
        return now_s

    def _with_room(self) -> dict[str, Session[CountRows]]:
        """The sessions that want a token and have room for it; the youngest may lose their cache for the others."""
        wanted = {key: entry.session for key, entry in self._entries.items() if entry.session.wants_token()}
        sharing = self._share(wanted)
        if len(self._branching) and (sharing.preempted or not wanted.keys() <= set(sharing.going)):
            self._branching.give_way(self._sessions)
            sharing = self._share(wanted)
        for key in sharing.preempted:
            self._preempt(key)
        going = {key: wanted[key] for key in sharing.going if key in wanted}
        self._is_stalled = not going and not sharing.preempted
        for key, session in going.items():
            if session.computed == 0:
                session.computed = self.runner.adopt(key, session.tokens)
        return going

    def _share(self, wanted: Mapping[str, Session[CountRows]]) -> Sharing:
        ends = {key: len(session.tokens) for key, session in wanted.items()}
        return self.runner.share([self.runner.claim(key, ends.get(key, 0)) for key in self._entries])

    def _preempt(self, key: str) -> None:
        """The cache goes, the chain stays and is forwarded anew."""
        session = self._entries[key].session
        log.info("%s loses its cache to older requests", session.ask.request_id)
        self.runner.restart(key)
        session.computed = 0
        self._entries[key].spare = None
        self.num_preemptions += 1

    def _make_room(self, chunks: Sequence[Chunk], error: PoolFull) -> Replies:
        """The estimate was short by a block. Branches give way, then the youngest; one that has all to itself can never
        fit."""
        if len(self._branching):
            self._branching.give_way(self._sessions)
            return []
        wanting = {chunk.sequence for chunk in chunks}
        rivals = [key for key in self._entries if key in wanting or self.runner.length(key)]
        if len(rivals) > 1:
            self._preempt(rivals[-1])
            return []
        return [self._refuse(self._entries[rivals[0]], error)]

    def _chunks(self, wanting: Mapping[str, Session[CountRows]]) -> list[Chunk]:
        """What to forward: requests under way first, prompts in the room that they leave, coordinators in turn."""
        chunks: list[Chunk] = []
        room = self._max_num_batched_tokens
        pending = {key: len(session.tokens) - session.computed for key, session in wanting.items()}
        waiting = sorted(pending, key=pending.__getitem__)
        turns = in_turns((pending[key] > 1, self._entries[key].peer) for key in waiting)
        for _, key in sorted(zip(turns, waiting, strict=True), key=lambda pair: (pending[pair[1]] > 1, pair[0])):
            session = wanting[key]
            if self._entries[key].has_row:
                continue
            tokens = session.tokens[session.computed : session.computed + room]
            if not tokens:
                break
            whole = session.computed + len(tokens) == len(session.tokens)
            chunks.append(Chunk(key, session.computed, tokens, 1 if whole else 0))
            room -= len(tokens)
        return chunks

    def _extend(self, entries: Sequence[_Entry], looks: Sequence[Look], started_s: float) -> Replies:
        """Let each entry go on from its row; the drafts that are complete with it, or before it, and refusals."""
        replies: Replies = []
        drawing: list[tuple[_Entry, Look, float]] = []
        for entry, row in zip(entries, looks, strict=True):
            session, since_s = entry.session, started_s
            if session.draft_length and entry.policy.stops_before(row.before(session.draft_length)):
                since_s = self._charge(session, since_s)
                replies.append((entry.peer, self._send(session)))
                if not session.wants_token():
                    entry.spare = row.kept()
                    continue
            drawing.append((entry, row, since_s))
        drawn = draw([(entry.session, row.logits) for entry, row, _ in drawing], self._row_shape)
        for (entry, row, since_s), found in zip(drawing, drawn, strict=True):
            try:
                if isinstance(found, Exception):
                    raise found
                is_complete = keep(entry.session, entry.policy, row, found)
                self._charge(entry.session, since_s)
            except Exception as error:
                replies.append(self._refuse(entry, error))
                continue
            if is_complete:
                replies.append((entry.peer, self._send(entry.session)))
        return replies

    def _refuse(self, entry: _Entry, error: Exception) -> tuple[int, Fault]:
        # Whatever spoilt this request must not reach another through the prefix cache.
        self.runner.forget(f"{entry.peer}/{entry.session.ask.request_id}")
        return super()._refuse(entry, error)

    def _send(self, session: Session[CountRows]) -> Draft:
        return session.send(pack(session, self._row_shape))
