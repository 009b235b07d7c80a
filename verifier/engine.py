"""The verifier's engine: many requests, one target, one thread.

A step is three beats: see what each session wants and let the batcher choose, forward it all in one ragged pass,
judge each request's rows by its rule. Sessions decide, the runner computes, rules judge; this file only carries
tensors between them.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from paceline import rows
from paceline import sampling as law
from paceline.engine.cost import CostModel
from paceline.engine.runner import Chunk, PoolFull, Runner
from paceline.errors import InvalidInput, Overloaded, PeerFault
from paceline.rows import DraftRows
from paceline.types import (
    Blame,
    Close,
    Decode,
    Draft,
    Fault,
    OpenVerify,
    Rule,
    Source,
    Tokens,
    Verdict,
    VerifierAsk,
    VerifierReply,
    Verify,
    WorkerInfo,
)
from verifier.batcher import Budget, Ready, plan
from verifier.rules import Judgement, PhiloxCoins, judge, judge_blocks
from verifier.session import Need, Session, Work

log = logging.getLogger(__name__)

Replies = list[tuple[int, VerifierReply]]


@dataclass(slots=True)
class _Entry:
    """A session, whose it is, and its coins."""

    peer: int
    session: Session[Tensor]  # a retained row is [1, vocab] float32
    coins: PhiloxCoins

    @property
    def request_id(self) -> str:
        return self.session.ask.request_id


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
        self.info = replace(info, cost=self.cost.cost)
        self._longest = min(runner.info.max_model_len, runner.room())  # tokens of a request, the pool being empty
        self.budget = budget or Budget()
        self._clock = clock
        self._entries: dict[str, _Entry] = {}  # by the sequence's name in the pool, oldest first
        self._active: dict[str, None] = {}  # those that may have work; a set that remembers its order
        self._is_stalled = False  # all that is wanted waits for room which only an ask can make
        self.num_preemptions = 0

    @property
    def num_requests(self) -> int:
        return len(self._entries)

    # --- asks

    def handle(self, peer: int, ask: VerifierAsk) -> Replies:
        """Take one ask; the answer is empty unless the log answers it already."""
        self._is_stalled = False
        key = f"{peer}/{ask.request_id}"
        entry = self._entries.get(key)
        now_s = self._clock()
        verdict: Verdict | None = None
        match ask:
            case OpenVerify() if entry:
                verdict = entry.session.reopen(ask, now_s)
            case OpenVerify():
                self._admit(ask)
                self.runner.open(key)
                room = self.runner.info.max_model_len - len(ask.token_ids)
                ask = replace(ask, num_decode=min(ask.num_decode, room))
                self._entries[key] = _Entry(peer, Session(ask, now_s), PhiloxCoins(ask.seed))
            case Close():
                self._close(key)
                return []
            case Verify() if entry:
                try:
                    self._check(entry.session.ask.rule, ask.draft)
                except PeerFault as error:
                    return [(peer, Fault(ask.request_id, str(error), Blame.DRAFTER))]
                verdict = entry.session.verify(ask, now_s)
            case Decode() if entry:
                room = max(0, self.runner.info.max_model_len - ask.start)
                verdict = entry.session.decode(replace(ask, num_tokens=min(ask.num_tokens, room)), now_s)
            case _:
                return []  # it was closed, or refused, while the ask was on its way
        self._active[key] = None
        return [(peer, verdict)] if verdict else []

    def _admit(self, ask: OpenVerify) -> None:
        """Raises InvalidInput for a prompt that can never be served here, Overloaded if there is no place now."""
        if len(ask.token_ids) + 1 > self._longest:
            fix = f"this verifier holds requests of at most {self._longest} tokens: shorten the prompt"
            raise InvalidInput("token_ids", f"{len(ask.token_ids)} tokens", fix)
        if max(ask.token_ids) >= self.runner.info.vocab_size:
            fix = f"must be below the vocabulary's size {self.runner.info.vocab_size}"
            raise InvalidInput("token_ids", max(ask.token_ids), fix)
        if len(self._entries) >= self.info.max_num_seqs:
            raise Overloaded("requests on this verifier", self.info.max_num_seqs, retry_after_s=1.0)

    def _close(self, key: str) -> None:
        if self._entries.pop(key, None):
            self.runner.close(key)
        self._active.pop(key, None)

    def _check(self, rule: Rule, draft: Draft) -> None:
        """Everything that a drafter could get wrong, before it touches a session. Raises PeerFault."""
        vocab_size = self.runner.info.vocab_size
        if max(draft.token_ids) >= vocab_size:
            raise PeerFault(f"token id {max(draft.token_ids)} of a draft is not below {vocab_size}")
        if draft.end > self.runner.info.max_model_len:
            raise PeerFault(f"a draft reaches to position {draft.end}, beyond {self.runner.info.max_model_len}")
        if not rule.needs_rows:
            return
        if draft.rows is None:
            raise PeerFault("a draft to be judged by rejection sampling came without its rows")
        rows.unpack(draft.rows, vocab_size, token_ids=draft.token_ids)

    def drop(self, peer: int) -> None:
        """That coordinator's stream has ended: free all its requests."""
        self._is_stalled = False
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
        return bool(self._active) and not self._is_stalled

    def step(self) -> Replies:
        """At most one forward pass; the verdicts and refusals that came of it."""
        replies: Replies = []
        wanted = {key: work for key in list(self._active) if (work := self._wanted(key, replies))}
        wanted = self._with_room(wanted)
        while wanted:
            shares = plan([self._ready(key, work) for key, work in wanted.items()], self.budget)
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
        entry = self._entries[youngest]
        log.warning("refusing %s: %s", entry.request_id, error)
        self._close(youngest)
        return [(entry.peer, Fault(entry.request_id, str(error)))]

    def _wanted(self, key: str, replies: Replies) -> Work | None:
        """What the session wants forwarded, once all is done for which a retained row suffices."""
        entry = self._entries[key]
        while work := entry.session.work():
            row = entry.session.retained
            if row is None:
                return work
            if work.need is Need.JUDGE:
                if entry.session.ask.rule is Rule.BLOCK:
                    return work  # what becomes of the first token depends on all of the draft
                first = judge(
                    entry.session.ask.rule,
                    _adjusted(entry, row),
                    work.draft_ids[:1],
                    entry.session.ask.sampling,
                    entry.coins,
                    start=len(entry.session.log),
                    take_bonus=False,
                    draft_rows=_unpack(work, self.runner.info.vocab_size, 1),
                )
                if first.num_accepted:
                    return work
            else:
                first = self._judge(entry, work, row)
            verdict = self._commit(entry, work, first, row, None)
            replies.append((entry.peer, replace(verdict, queue_ms=self._waited_ms(entry))))
        self._active.pop(key, None)
        return None

    def _ready(self, key: str, work: Work) -> Ready:
        num_drafted = len(work.draft_ids)
        since_s = self._entries[key].session.since_s
        return Ready(key, len(work.token_ids) - num_drafted, num_drafted, since_s)

    def _forward(self, works: dict[str, Work], shares: dict[str, int]) -> Replies:
        """Forward each work's share in one pass, and judge those whose rows are complete."""
        started_s = self._clock()
        chunks = []
        for key, work in works.items():
            whole = shares[key] == len(work.token_ids)
            tokens = work.token_ids[: shares[key]]
            chunks.append(Chunk(key, work.start, tokens, work.num_rows if whole else 0))
        logits = self.runner.forward(chunks)
        self.info = self.cost.seen(self.info, chunks, 1e3 * (self._clock() - started_s))
        replies: Replies = []
        at = 0
        for chunk in chunks:
            entry, work = self._entries[chunk.sequence], works[chunk.sequence]
            target_rows = logits[at : at + chunk.num_rows]
            at += chunk.num_rows
            if not chunk.num_rows:
                entry.session.prefilled(len(chunk.token_ids), None)
            elif work.need is Need.PREFILL:
                entry.session.prefilled(len(chunk.token_ids), target_rows)
            else:
                waited_ms = 1e3 * (started_s - entry.session.since_s)
                verdict = self._verdict(entry, work, target_rows)
                took_ms = 1e3 * (self._clock() - started_s)
                batch_tokens = sum(shares.values())
                verdict = replace(verdict, verify_ms=took_ms, queue_ms=max(0.0, waited_ms), batch_tokens=batch_tokens)
                entry.session.since_s = self._clock()
                replies.append((entry.peer, verdict))
        return replies

    def _verdict(self, entry: _Entry, work: Work, target_rows: Tensor) -> Verdict:
        if entry.session.retained is not None:
            target_rows = torch.cat([entry.session.retained, target_rows])
        return self._commit(entry, work, self._judge(entry, work, target_rows), target_rows, target_rows[-1:])

    def _judge(self, entry: _Entry, work: Work, target_rows: Tensor) -> Judgement:
        ask = entry.session.ask
        draft_rows = _unpack(work, self.runner.info.vocab_size) if ask.rule.needs_rows else None
        start, take_bonus = len(entry.session.log), work.take_bonus
        target_rows = _adjusted(entry, target_rows, work.draft_ids)
        if ask.rule is Rule.BLOCK:
            drafts = [draft.token_ids for draft in work.drafts]
            coins = replace(entry.coins, epoch=work.drafts[0].epoch if drafts else 0)
            return judge_blocks(
                target_rows, drafts, ask.sampling, coins, start=start, take_bonus=take_bonus, draft_rows=draft_rows
            )
        return judge(
            ask.rule,
            target_rows,
            work.draft_ids,
            ask.sampling,
            entry.coins,
            start=start,
            take_bonus=take_bonus,
            draft_rows=draft_rows,
        )

    def _commit(
        self, entry: _Entry, work: Work, said: Judgement, target_rows: Tensor, last_row: Tensor | None
    ) -> Verdict:
        logprobs: tuple[float, ...] = ()
        sampling = entry.session.ask.sampling
        if sampling.logprobs:
            new = work.draft_ids[: said.num_accepted] + (() if said.token_id is None else (said.token_id,))
            logprobs = law.log_probs_of(_adjusted(entry, target_rows, work.draft_ids), new, sampling)
        source = said.source or Source.BONUS
        return entry.session.judged(work, said.num_accepted, said.token_id, source, last_row, logprobs)

    def _waited_ms(self, entry: _Entry) -> float:
        return max(0.0, 1e3 * (self._clock() - entry.session.since_s))


def _adjusted(entry: _Entry, target_rows: Tensor, draft_ids: Tokens = ()) -> Tensor:
    """Rows as the request's biases and penalties want them; a retained row stays raw, as its judgement comes later."""
    session = entry.session
    num_prompt_tokens = session.num_prompt_tokens
    return law.adjusted_logits(
        target_rows, session.ask.sampling, session.log, draft_ids, num_prompt_tokens=num_prompt_tokens
    )


def _unpack(work: Work, vocab_size: int, num_rows: int | None = None) -> DraftRows | None:
    """The sparse rows of all the work's drafts; of the first `num_rows` tokens if given."""
    if not work.drafts:
        return None
    parts = [rows.unpack(draft.rows, vocab_size) for draft in work.drafts if draft.rows]
    width = max(part.ids.shape[1] for part in parts)
    ids = torch.cat([_widen(part.ids, width) for part in parts])[:num_rows]
    probs = torch.cat([_widen(part.probs, width) for part in parts])[:num_rows]
    return DraftRows(ids, probs)


def _widen(tensor: Tensor, width: int) -> Tensor:
    """`tensor` [rows, n] padded to [rows, width] with zeros: token 0 with no further mass changes nothing."""
    return torch.nn.functional.pad(tensor, (0, width - tensor.shape[1]))
