"""The drafter's engine: many requests, one draft model, one thread.

A step forwards one token for every request that has room in its window (and a chunk of the prompt for those that are
catching up), in one ragged pass, then chooses each request's next token from its row. What is chosen from is what is
sent (`draws.py`): under rejection sampling the row is truncated and quantised first, and the token drawn from that.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from drafter.draws import draw
from drafter.policies import Policy, make
from drafter.session import Session
from paceline import rows
from paceline import sampling as law
from paceline.engine.cost import CostModel
from paceline.engine.runner import Chunk, PoolFull, Runner
from paceline.errors import EngineLost, InvalidInput, Overloaded, PacelineError, Unavailable
from paceline.rows import CountRows
from paceline.types import Close, Commit, Draft, DrafterAsk, DrafterReply, Fault, OpenDraft, WorkerInfo

log = logging.getLogger(__name__)

Replies = list[tuple[int, DrafterReply]]


@dataclass(slots=True)
class _Entry:
    """A session, whose it is, and its policy."""

    peer: int
    session: Session[CountRows]
    policy: Policy


class DrafterEngine:
    """See the top of the file. Belongs to one thread."""

    def __init__(
        self,
        runner: Runner,
        info: WorkerInfo,
        *,
        row_width: int = 64,
        max_num_batched_tokens: int = 512,
        clock: Callable[[], float] = time.perf_counter,
        cost: CostModel | None = None,
    ) -> None:
        """`cost`: as measured at the start, or None to learn it while running."""
        self.runner = runner
        self.cost = cost or CostModel()
        self._longest = min(runner.info.max_model_len, runner.room())  # tokens of a request, the pool being empty
        self.info = replace(info, cost=self.cost.cost, max_model_len=self._longest)
        self._row_width = row_width
        self._max_num_batched_tokens = max_num_batched_tokens
        self._clock = clock
        self._entries: dict[str, _Entry] = {}  # by the sequence's name in the pool, oldest first
        self._is_stalled = False  # all that is wanted waits for room which only an ask can make
        self.num_preemptions = 0

    # --- asks

    def handle(self, peer: int, ask: DrafterAsk) -> Replies:
        """Take one ask; what comes back is what an open that was sent again asks for once more."""
        self._is_stalled = False
        key = f"{peer}/{ask.request_id}"
        entry = self._entries.get(key)
        match ask:
            case OpenDraft() if entry:
                self._check(ask.token_ids)
                return [(peer, draft) for draft in entry.session.reopen(ask)]
            case OpenDraft():
                self._admit(ask)
                self.runner.open(key)
                self._entries[key] = _Entry(peer, Session(ask), make(ask.policy))
            case Commit() if entry:
                self._check(ask.token_ids)
                entry.session.commit(ask)
            case Close():
                self._close(key)
        return []

    def _admit(self, ask: OpenDraft) -> None:
        """Raises InvalidInput for a request that can never be drafted here, Overloaded if there is no place now."""
        if len(ask.token_ids) >= self._longest:
            fix = f"this drafter holds requests of at most {self._longest} tokens"
            raise InvalidInput("token_ids", f"{len(ask.token_ids)} tokens", fix)
        self._check(ask.token_ids)
        if len(self._entries) >= self.info.max_num_seqs:
            raise Overloaded("requests on this drafter", self.info.max_num_seqs, retry_after_s=1.0)

    def _check(self, token_ids: Sequence[int]) -> None:
        """Raises Unavailable for a token that this model has no row for: the target's vocabulary may be wider."""
        vocab_size = self.runner.info.vocab_size
        if token_ids and max(token_ids) >= vocab_size:
            fix = f"this drafter's vocabulary has {vocab_size} tokens; the request goes on without it"
            raise Unavailable(f"token_ids={max(token_ids)}: {fix}")

    def _close(self, key: str) -> None:
        if self._entries.pop(key, None):
            self.runner.close(key)

    def drop(self, peer: int) -> None:
        """That coordinator's stream has ended: free all its requests."""
        self._is_stalled = False
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

    # --- work

    def has_work(self) -> bool:
        if self.runner.lost is not None:
            return True
        return not self._is_stalled and any(entry.session.wants_token() for entry in self._entries.values())

    def step(self) -> Replies:
        """One forward pass, one token more for every request whose row it gave; the drafts this completed.

        Raises EngineLost.
        """
        if self.runner.lost is not None:
            raise EngineLost(self.runner.lost)
        started_s = self._clock()
        chunks = self._chunks(self._with_room())
        try:
            logits = self.runner.forward(chunks)
        except PoolFull as error:
            return self._make_room(chunks, error)
        self.info = self.cost.seen(self.info, chunks, 1e3 * (self._clock() - started_s))
        whole = [self._entries[chunk.sequence] for chunk in chunks if chunk.num_rows]
        for chunk in chunks:
            session = self._entries[chunk.sequence].session
            session.computed = chunk.start + len(chunk.token_ids)
        complete, refusals = self._extend(whole, logits)
        step_ms = 1e3 * (self._clock() - started_s)
        for chunk in chunks:
            if entry := self._entries.get(chunk.sequence):  # else it was refused just now
                entry.session.draft_ms += step_ms
        return refusals + [(entry.peer, _send(entry.session)) for entry in complete]

    def _with_room(self) -> dict[str, Session[CountRows]]:
        """The sessions that want a token and have room for it; the youngest may lose their cache for the others."""
        wanted = {key: entry.session for key, entry in self._entries.items() if entry.session.wants_token()}
        ends = {key: len(session.tokens) for key, session in wanted.items()}
        sharing = self.runner.share([self.runner.claim(key, ends.get(key, 0)) for key in self._entries])
        for key in sharing.preempted:
            self._preempt(key)
        going = {key: wanted[key] for key in sharing.going if key in wanted}
        self._is_stalled = not going and not sharing.preempted
        for key, session in going.items():
            if session.computed == 0:
                session.computed = self.runner.adopt(key, session.tokens)
        return going

    def _preempt(self, key: str) -> None:
        """The cache goes, the chain stays and is forwarded anew."""
        session = self._entries[key].session
        log.info("%s loses its cache to older requests", session.ask.request_id)
        self.runner.restart(key)
        session.computed = 0
        self.num_preemptions += 1

    def _make_room(self, chunks: Sequence[Chunk], error: PoolFull) -> Replies:
        """The estimate was short by a block. The youngest gives way; one that has all to itself can never fit."""
        wanting = {chunk.sequence for chunk in chunks}
        rivals = [key for key in self._entries if key in wanting or self.runner.length(key)]
        if len(rivals) > 1:
            self._preempt(rivals[-1])
            return []
        return [self._refuse(self._entries[rivals[0]], error)]

    def _chunks(self, wanting: Mapping[str, Session[CountRows]]) -> list[Chunk]:
        """What to forward: requests under way first, prompts in the room that they leave."""
        chunks: list[Chunk] = []
        room = self._max_num_batched_tokens
        for key, session in sorted(wanting.items(), key=lambda pair: len(pair[1].tokens) - pair[1].computed):
            tokens = session.tokens[session.computed : session.computed + room]
            if not tokens:
                break
            whole = session.computed + len(tokens) == len(session.tokens)
            chunks.append(Chunk(key, session.computed, tokens, 1 if whole else 0))
            room -= len(tokens)
        return chunks

    def _extend(self, entries: Sequence[_Entry], logits: Tensor) -> tuple[list[_Entry], Replies]:
        """One token more for each entry from its row of `logits` [n, vocab]: whose draft is complete, and refusals."""
        if not entries:
            return [], []
        complete: list[_Entry] = []
        refusals: Replies = []
        drawn = draw([entry.session for entry in entries], logits, self._row_width)
        entropies = _entropies(entries, logits)
        for entry, found, entropy in zip(entries, drawn, entropies, strict=True):
            try:
                if isinstance(found, Exception):
                    raise found
                session = entry.session
                stop = entry.policy.stops(session.draft_length + 1, entropy)
                if found.row is not None:
                    session.rows.append(found.row)
                if session.push(found.token_id, stop=stop):
                    complete.append(entry)
            except Exception as error:
                refusals.append(self._refuse(entry, error))
        return complete, refusals

    def _refuse(self, entry: _Entry, error: Exception) -> tuple[int, Fault]:
        """This request cannot be drafted here; the others can, and its verifier goes on alone."""
        request_id, reason = entry.session.ask.request_id, str(error)
        if isinstance(error, PacelineError):
            log.warning("refusing %s: %s", request_id, reason)
        else:
            log.exception("the drafter failed on %s, and on no other request", request_id, exc_info=error)
            reason = f"the drafter failed on this request: {type(error).__name__}; its log says more"
        key = f"{entry.peer}/{request_id}"
        self.runner.forget(key)  # whatever spoilt this request must not reach another through the prefix cache
        self._close(key)
        return entry.peer, Fault(request_id, reason)


def _entropies(entries: Sequence[_Entry], logits: Tensor) -> list[float]:
    """Each row's entropy in nats before penalties and temperature; 0 where no policy looks at it."""
    entropies = [0.0] * len(entries)
    wanted = [at for at, entry in enumerate(entries) if entry.policy.needs_entropy]
    if wanted:
        rows_wanted = logits if len(wanted) == len(entries) else logits[wanted]
        for at, entropy in zip(wanted, law.entropy_nats(rows_wanted).tolist(), strict=True):
            entropies[at] = entropy
    return entropies


def _send(session: Session[CountRows]) -> Draft:
    if not session.rows:
        return session.send(None)
    ids = torch.cat([kept.ids for kept in session.rows])
    counts = torch.cat([kept.counts for kept in session.rows])
    return session.send(rows.pack(ids, counts))
