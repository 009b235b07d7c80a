"""The drafter's engine: many requests, one draft model, one thread.

A step forwards one token for every request that has room in its window (and a chunk of the prompt for those that are
catching up), in one ragged pass, then chooses each request's next token from its row. What is chosen from is what is
sent: under rejection sampling the row is truncated and quantised first, and the token drawn from exactly that.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from drafter.policies import Policy, make
from drafter.session import Session
from paceline import noise, rows
from paceline import sampling as law
from paceline.engine.cost import CostModel
from paceline.engine.runner import Chunk, PoolFull, Runner
from paceline.errors import InvalidInput, Overloaded, Unavailable
from paceline.noise import Domain
from paceline.rows import CountRows
from paceline.types import (
    Close,
    Commit,
    Draft,
    DrafterAsk,
    DrafterReply,
    Fault,
    OpenDraft,
    Rule,
    SamplingParams,
    WorkerInfo,
)

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
        row_bits: int = 12,
        draft_temperature: float | None = None,
        max_num_batched_tokens: int = 512,
        clock: Callable[[], float] = time.perf_counter,
        cost: CostModel | None = None,
    ) -> None:
        """`row_width`, `row_bits`: what is kept of a draft row, and how finely.

        `draft_temperature`: of what is sampled, whatever the request's own; None = the request's.
        `cost`: as measured at the start, or None to learn it while running.
        """
        self.runner = runner
        self.cost = cost or CostModel()
        self.info = replace(info, cost=self.cost.cost)
        self._longest = min(runner.info.max_model_len, runner.room())  # tokens of a request, the pool being empty
        self._row_width, self._row_bits = row_width, row_bits
        self._draft_temperature = draft_temperature
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
        return not self._is_stalled and any(entry.session.wants_token() for entry in self._entries.values())

    def step(self) -> Replies:
        """One forward pass, one token more for every request whose row it gave; the drafts this completed."""
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
        complete = [entry for entry, stop in zip(whole, self._extend(whole, logits), strict=True) if stop]
        step_ms = 1e3 * (self._clock() - started_s)
        for chunk in chunks:
            self._entries[chunk.sequence].session.draft_ms += step_ms
        return [(entry.peer, self._send(entry.session)) for entry in complete]

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
        entry = self._entries[rivals[0]]
        request_id = entry.session.ask.request_id
        log.warning("refusing %s: %s", request_id, error)
        self._close(rivals[0])
        return [(entry.peer, Fault(request_id, str(error)))]

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

    def _extend(self, entries: Sequence[_Entry], logits: Tensor) -> list[bool]:
        """Choose a token from each entry's row [vocab]; which drafts are complete with it."""
        if not entries:
            return []
        argmax = logits.argmax(-1).tolist()
        stops = []
        for i, entry in enumerate(entries):
            session, raw = entry.session, logits[i : i + 1]
            sampling, num_prompt_tokens = session.ask.sampling, session.num_prompt_tokens
            row = law.adjusted_logits(raw, sampling, session.tokens, num_prompt_tokens=num_prompt_tokens)
            if session.ask.rule is Rule.MATCH:
                token_id = argmax[i] if row is raw else int(row.argmax())
            else:
                token_id = self._draw(session, row)
            entropy = law.entropy_nats(raw).item() if entry.policy.needs_entropy else 0.0
            stop = entry.policy.stops(session.draft_length + 1, entropy)
            stops.append(session.push(token_id, stop=stop))
        return stops

    def _draw(self, session: Session[CountRows], row: Tensor) -> int:
        """A token from the draft law of `row` [1, vocab], by the noise that the request's rule wants."""
        ask, position, sampling = session.ask, len(session.tokens), self._draft_sampling(session.ask.sampling)
        if ask.rule is Rule.COUPLED:
            if sampling.is_greedy:
                return int(row.argmax())
            gumbel = noise.gumbel(ask.seed, Domain.COUPLED, [position], row.shape[-1], device=row.device)
            return int(law.sample_log_probs(law.target_log_probs(row, sampling), gumbel))
        kept = rows.truncate(law.target_probs(row, sampling), self._row_width, self._row_bits)
        session.rows.append(kept)
        uniform = noise.uniform(ask.seed, Domain.DRAFT, position, epoch=session.epoch)
        return rows.sample_row(kept.ids[0], kept.counts[0], uniform)

    def _draft_sampling(self, sampling: SamplingParams) -> SamplingParams:
        """The law to draft by. Exact whatever it is: its rows are sent as they are sampled, and judged by."""
        if self._draft_temperature is None or sampling.is_greedy:
            return sampling
        return replace(sampling, temperature=self._draft_temperature)

    def _send(self, session: Session[CountRows]) -> Draft:
        if not session.rows:
            return session.send(None)
        ids = torch.cat([kept.ids for kept in session.rows])
        counts = torch.cat([kept.counts for kept in session.rows])
        return session.send(rows.pack(ids, counts, self._row_bits))
