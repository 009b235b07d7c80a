"""The verifier's engine: many requests, one target, one thread.

A step is three beats: see what each session wants and let the batcher choose, forward it all in one ragged pass,
judge each request's rows by its rule. Sessions decide, the runner computes, rules judge; this file only carries
tensors between them.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from paceline import rows
from paceline.engine.cost import CostModel
from paceline.engine.runner import Chunk, PoolFull, Runner
from paceline.errors import EngineLost, InvalidInput, PacelineError, PeerFault
from paceline.holdings import Figures
from paceline.places import Places
from paceline.types import (
    Blame,
    Close,
    Decode,
    Draft,
    Fault,
    OpenVerify,
    Rule,
    Verdict,
    VerifierAsk,
    VerifierReply,
    Verify,
    WorkerInfo,
)
from verifier.batcher import MIN_PROMPT_TOKENS, Budget, Ready, plan
from verifier.judging import Entry, TargetRows, retain, settle, settle_by_retained_row, share_out
from verifier.rules import PhiloxCoins
from verifier.session import Need, Session, Work

log = logging.getLogger(__name__)

Replies = list[tuple[int, VerifierReply]]


class VerifierEngine:
    """See the top of the file. Belongs to one thread."""

    def __init__(
        self,
        runner: Runner,
        info: WorkerInfo,
        budget: Budget | None = None,
        clock: Callable[[], float] = time.perf_counter,
        cost: CostModel | None = None,
    ) -> None:
        """`cost`: as measured at the start, or None to learn it while running."""
        self.runner = runner
        self.cost = cost or CostModel()
        self._longest = min(runner.info.max_model_len, runner.room())  # tokens of a request, the pool being empty
        # A request that the pool could never hold is refused at the coordinator's door, not when it has outgrown it.
        self._info = replace(info, cost=self.cost.cost, max_model_len=self._longest)
        self.budget = budget or Budget()
        self._clock = clock
        self._entries: dict[str, Entry] = {}  # by the sequence's name in the pool, oldest first
        self._active: dict[str, None] = {}  # those that may have work; a set that remembers its order
        self._is_stalled = False  # all that is wanted waits for room which only an ask can make
        self._places = Places(info.max_num_seqs)
        self.num_preemptions = 0

    @property
    def info(self) -> WorkerInfo:
        """What to register, with the cache as it is now."""
        return replace(self._info, cache=self.runner.cache_use(self.num_preemptions))

    @property
    def num_requests(self) -> int:
        return len(self._entries)

    @property
    def held(self) -> Figures:
        return {"requests": len(self._entries), "kv_blocks": self.runner.num_held_blocks}

    # --- asks

    def handle(self, peer: int, ask: VerifierAsk, waited_s: float = 0.0) -> Replies:
        """Take one ask; the answer is empty unless the log answers it already."""
        self._is_stalled = False
        key = f"{peer}/{ask.request_id}"
        entry = self._entries.get(key)
        came_s = self._clock() - waited_s
        verdict: Verdict | None = None
        match ask:
            case OpenVerify() if entry:
                verdict = entry.session.reopen(ask, came_s)
            case OpenVerify():
                self._admit(peer, ask)
                self.runner.open(key)
                room = self.runner.info.max_model_len - len(ask.token_ids)
                ask = replace(ask, num_decode=min(ask.num_decode, room))
                self._entries[key] = Entry(peer, Session(ask, came_s), PhiloxCoins(ask.seed))
            case Close():
                self._close(key)
                return []
            case Verify() if entry:
                try:
                    draft = self._read(entry.session.ask.rule, ask.draft)
                except PeerFault as error:
                    return [(peer, Fault(ask.request_id, str(error), Blame.DRAFTER))]
                verdict = entry.session.verify(replace(ask, draft=draft), came_s)
            case Decode() if entry:
                room = max(0, self.runner.info.max_model_len - ask.start)
                verdict = entry.session.decode(replace(ask, num_tokens=min(ask.num_tokens, room)), came_s)
            case _:
                return []  # it was closed, or refused, while the ask was on its way
        self._active[key] = None
        return [(peer, verdict)] if verdict else []

    def _admit(self, peer: int, ask: OpenVerify) -> None:
        """Raises InvalidInput for a prompt that can never be served here, Overloaded if there is no place now."""
        if len(ask.token_ids) + 1 > self._longest:
            fix = f"this verifier holds requests of at most {self._longest} tokens: shorten the prompt"
            raise InvalidInput("token_ids", f"{len(ask.token_ids)} tokens", fix)
        if max(ask.token_ids) >= self.runner.info.vocab_size:
            fix = f"must be below the vocabulary's size {self.runner.info.vocab_size}"
            raise InvalidInput("token_ids", max(ask.token_ids), fix)
        holders = (entry.peer for entry in self._entries.values())
        self._places.take("requests on this verifier", peer, holders, self._clock())

    def _close(self, key: str) -> None:
        if self._entries.pop(key, None):
            self.runner.close(key)
        self._active.pop(key, None)

    def _read(self, rule: Rule, draft: Draft) -> Draft:
        """The draft with its rows read; everything that a drafter could get wrong is refused here. Raises PeerFault."""
        vocab_size = self.runner.info.vocab_size
        if max(draft.token_ids) >= vocab_size:
            raise PeerFault(f"token id {max(draft.token_ids)} of a draft is not below {vocab_size}")
        if draft.end > self.runner.info.max_model_len:
            raise PeerFault(f"a draft reaches to position {draft.end}, beyond {self.runner.info.max_model_len}")
        if not rule.needs_rows:
            return replace(draft, rows=None)
        if draft.rows is None:
            raise PeerFault("a draft to be judged by rejection sampling came without its rows")
        device = self.runner.info.device
        return replace(draft, rows=rows.read(draft.rows, vocab_size, token_ids=draft.token_ids, device=device))

    def drop(self, peer: int) -> None:
        """That coordinator's stream has ended: free all its requests."""
        self._is_stalled = False
        self._places.drop(peer)
        for key in [key for key, entry in self._entries.items() if entry.peer == peer]:
            self._close(key)

    def fail(self, error: Exception) -> list[tuple[int, Fault]]:
        """A step has failed: refuse every request, so that each can go on elsewhere."""
        faults = [
            (entry.peer, Fault(entry.request_id, f"the verifier failed: {type(error).__name__}"))
            for entry in self._entries.values()
        ]
        for key in list(self._entries):
            self._close(key)
        return faults

    # --- work

    def has_work(self) -> bool:
        return self.runner.lost is not None or (bool(self._active) and not self._is_stalled)

    def step(self) -> Replies:
        """At most one forward pass; the verdicts and refusals that came of it. Raises EngineLost."""
        if self.runner.lost is not None:
            raise EngineLost(self.runner.lost)
        replies: Replies = []
        wanted = {key: work for key in list(self._active) if (work := self._wanted(key, replies))}
        wanted = self._with_room(wanted)
        while wanted:
            ready = [self._ready(key, work) for key, work in wanted.items()]
            shares = plan(ready, self.budget, self._prompt_room(ready))
            try:
                replies += self._forward({key: wanted[key] for key in shares}, shares)
                break
            except PoolFull as error:
                replies += self._make_room(wanted, error)
        return replies

    def _with_room(self, wanted: dict[str, Work]) -> dict[str, Work]:
        """The part of `wanted` that the pool has room for; the youngest requests may lose their cache for it."""
        if not wanted:
            return wanted
        ends = {key: work.start + len(work.token_ids) for key, work in wanted.items()}
        sharing = self.runner.share([self.runner.claim(key, ends.get(key, 0)) for key in self._entries])
        for key in sharing.preempted:
            self._preempt(key)
        going = [key for key in sharing.going if key in wanted]
        self._is_stalled = not going and not sharing.preempted
        return {key: work for key in going if (work := self._started(key, wanted[key]))}

    def _started(self, key: str, work: Work) -> Work | None:
        """The same work, less what is cached of it already; None if nothing remains that must be done now."""
        session = self._entries[key].session
        if session.computed == 0 and (num_cached := self.runner.adopt(key, session.log)):
            session.adopted(num_cached)
            return session.work()
        return work

    def _preempt(self, key: str) -> None:
        log.info("%s loses its cache to older requests", self._entries[key].request_id)
        self.runner.restart(key)
        self._entries[key].session.preempted()
        self._active[key] = None
        self.num_preemptions += 1

    def _make_room(self, wanted: dict[str, Work], error: PoolFull) -> Replies:
        """The estimate was short by a block. The youngest gives way; one that has all to itself can never fit."""
        rivals = [key for key in self._entries if key in wanted or self.runner.length(key)]
        youngest = rivals[-1]
        wanted.pop(youngest, None)
        if len(rivals) > 1:
            self._preempt(youngest)
            return []
        return [self._refuse(youngest, error)]

    def _wanted(self, key: str, replies: Replies) -> Work | None:
        """What the session wants forwarded, once all is done for which a retained row suffices."""
        entry = self._entries[key]
        try:
            while work := entry.session.work():
                verdict = settle_by_retained_row(entry, work)
                if verdict is None:
                    return work
                replies.append((entry.peer, replace(verdict, queue_ms=self._waited_ms(entry))))
        except Exception as error:
            replies.append(self._refuse(key, error))
        self._active.pop(key, None)
        return None

    def _refuse(self, key: str, error: Exception) -> tuple[int, Fault]:
        """This request cannot go on here; the others do."""
        entry, reason = self._entries[key], str(error)
        if isinstance(error, PacelineError):
            log.warning("refusing %s: %s", entry.request_id, reason)
        else:
            log.exception("the verifier failed on %s, and on no other request", entry.request_id, exc_info=error)
            reason = f"the verifier failed on this request: {type(error).__name__}; its log says more"
        self.runner.forget(key)  # whatever spoilt this request must not reach another through the prefix cache
        self._close(key)
        return entry.peer, Fault(entry.request_id, reason)

    def _ready(self, key: str, work: Work) -> Ready:
        num_drafted, entry = len(work.draft_ids), self._entries[key]
        return Ready(key, len(work.token_ids) - num_drafted, num_drafted, entry.session.since_s, entry.peer)

    def _prompt_room(self, ready: Sequence[Ready]) -> int:
        """How many tokens of prompts to take in beside requests under way, whose next pass begins when this one ends.

        Those that want nothing now count too: their drafts are on the way.
        """
        cost, waiting = self._info.cost, [wish for wish in ready if not wish.is_running]
        running = [entry.session for entry in self._entries.values() if entry.session.is_running]
        if not (waiting and running and cost and cost.per_token_ms):
            return self.budget.max_num_batched_tokens
        num_tokens = max(len(running), sum(wish.num_tokens for wish in ready if wish.is_running))
        context = sum(session.computed for session in running) / len(running)
        alone_ms = cost.ms(num_tokens, len(running), context)
        return max(MIN_PROMPT_TOKENS, int(self.budget.prompt_share * alone_ms / cost.per_token_ms))

    def _forward(self, works: dict[str, Work], shares: dict[str, int]) -> Replies:
        """Forward each work's share in one pass, and judge those whose rows are complete."""
        started_s = self._clock()
        chunks = []
        for key, work in works.items():
            whole = shares[key] == len(work.token_ids)
            tokens = work.token_ids[: shares[key]]
            chunks.append(Chunk(key, work.start, tokens, work.num_rows if whole else 0))
        logits = self.runner.forward(chunks)
        self._info = self.cost.seen(self._info, chunks, 1e3 * (self._clock() - started_s))
        parts = share_out(logits, [chunk.num_rows for chunk in chunks])
        replies: Replies = []
        for chunk, target in zip(chunks, parts, strict=True):
            entry, work = self._entries[chunk.sequence], works[chunk.sequence]
            waited_ms = max(0.0, 1e3 * (started_s - entry.session.since_s))
            try:
                verdict = self._settled(entry, work, chunk, target)
            except Exception as error:
                replies.append(self._refuse(chunk.sequence, error))
                continue
            if verdict:
                entry.session.since_s = now_s = self._clock()
                took_ms = 1e3 * (now_s - started_s)
                verdict = replace(verdict, verify_ms=took_ms, queue_ms=waited_ms, batch_tokens=sum(shares.values()))
                replies.append((entry.peer, verdict))
        return replies

    @staticmethod
    def _settled(entry: Entry, work: Work, chunk: Chunk, target: TargetRows) -> Verdict | None:
        """What one request's part of a pass leads to; None if it was a prompt, or a part of one."""
        if chunk.num_rows and work.need is not Need.PREFILL:
            return settle(entry, work, target)
        retain(entry, len(chunk.token_ids), target)
        return None

    def _waited_ms(self, entry: Entry) -> float:
        return max(0.0, 1e3 * (self._clock() - entry.session.since_s))
