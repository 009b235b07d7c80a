"""The drafter's engine: many requests, one draft model, one thread.

A step forwards one token for every request that has room in its window (and a chunk of the prompt for those that are
catching up), in one ragged pass, then chooses each request's next token from its row. What is chosen from is what is
sent: under rejection sampling the row is truncated and quantised first, and the token drawn from exactly that.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from drafter.policies import Policy, make
from drafter.session import Session
from paceline import noise, rows
from paceline import sampling as law
from paceline.engine.runner import Chunk, Runner
from paceline.errors import InvalidInput, Overloaded
from paceline.noise import Domain
from paceline.rows import CountRows
from paceline.types import Close, Commit, Draft, DrafterAsk, DrafterReply, Fault, OpenDraft, Rule, WorkerInfo

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
    ) -> None:
        self.runner = runner
        self.info = info
        self._longest = min(runner.info.max_model_len, runner.room())  # tokens of a request, the pool being empty
        self._row_width = row_width
        self._max_num_batched_tokens = max_num_batched_tokens
        self._clock = clock
        self._entries: dict[str, _Entry] = {}  # by the sequence's name in the pool

    # --- asks

    def handle(self, peer: int, ask: DrafterAsk) -> Replies:
        """Take one ask; what comes back is what an open that was sent again asks for once more."""
        key = f"{peer}/{ask.request_id}"
        entry = self._entries.get(key)
        match ask:
            case OpenDraft() if entry:
                return [(peer, draft) for draft in entry.session.reopen(ask)]
            case OpenDraft():
                self._admit(ask)
                num_cached = self.runner.open(key, ask.token_ids)
                self._entries[key] = _Entry(peer, Session(ask, num_cached), make(ask.policy))
            case Commit() if entry:
                entry.session.commit(ask)
            case Close():
                self._close(key)
        return []

    def _admit(self, ask: OpenDraft) -> None:
        """Raises InvalidInput for a request that can never be drafted here, Overloaded if there is no place now."""
        if len(ask.token_ids) >= self._longest:
            fix = f"this drafter holds requests of at most {self._longest} tokens"
            raise InvalidInput("token_ids", f"{len(ask.token_ids)} tokens", fix)
        if len(self._entries) >= self.info.max_num_seqs:
            raise Overloaded("requests on this drafter", self.info.max_num_seqs, retry_after_s=1.0)

    def _close(self, key: str) -> None:
        if self._entries.pop(key, None):
            self.runner.close(key)

    def drop(self, peer: int) -> None:
        """That coordinator's stream has ended: free all its requests."""
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
        return any(entry.session.wants_token() for entry in self._entries.values())

    def step(self) -> Replies:
        """One forward pass, one token more for every request whose row it gave; the drafts this completed."""
        started_s = self._clock()
        chunks = self._chunks()
        logits = self.runner.forward(chunks)
        whole = [self._entries[chunk.sequence] for chunk in chunks if chunk.num_rows]
        for chunk in chunks:
            session = self._entries[chunk.sequence].session
            session.computed = chunk.start + len(chunk.token_ids)
        complete = [entry for entry, stop in zip(whole, self._extend(whole, logits), strict=True) if stop]
        step_ms = 1e3 * (self._clock() - started_s)
        for chunk in chunks:
            self._entries[chunk.sequence].session.draft_ms += step_ms
        return [(entry.peer, _send(entry.session)) for entry in complete]

    def _chunks(self) -> list[Chunk]:
        """What to forward: requests under way first, prompts in the room that they leave."""
        chunks: list[Chunk] = []
        room = self._max_num_batched_tokens
        wanting = [(key, entry.session) for key, entry in self._entries.items() if entry.session.wants_token()]
        for key, session in sorted(wanting, key=lambda pair: len(pair[1].tokens) - pair[1].computed):
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
            session, row = entry.session, logits[i : i + 1]
            token_id = argmax[i] if session.ask.rule is Rule.MATCH else self._draw(session, row)
            entropy = law.entropy_nats(row).item() if entry.policy.needs_entropy else 0.0
            stop = entry.policy.stops(session.draft_length + 1, entropy)
            stops.append(session.push(token_id, stop=stop))
        return stops

    def _draw(self, session: Session[CountRows], row: Tensor) -> int:
        """A token from the draft law of `row` [1, vocab], by the noise that the request's rule wants."""
        ask, position = session.ask, len(session.tokens)
        if ask.rule is Rule.COUPLED:
            if ask.sampling.is_greedy:
                return int(row.argmax())
            gumbel = noise.gumbel(ask.seed, Domain.COUPLED, [position], row.shape[-1], device=row.device)
            return int(law.sample_log_probs(law.target_log_probs(row, ask.sampling), gumbel))
        kept = rows.truncate(law.target_probs(row, ask.sampling), self._row_width)
        session.rows.append(kept)
        uniform = noise.uniform(ask.seed, Domain.DRAFT, position, epoch=session.epoch)
        return rows.sample_row(kept.ids[0], kept.counts[0], uniform)


def _send(session: Session[CountRows]) -> Draft:
    if not session.rows:
        return session.send(None)
    ids = torch.cat([kept.ids for kept in session.rows])
    counts = torch.cat([kept.counts for kept in session.rows])
    return session.send(rows.pack(ids, counts))
