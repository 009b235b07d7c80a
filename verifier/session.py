"""One request at the verifier: its log of committed tokens, and what to forward next. No tensors, no clock.

The log is the truth of the request and only grows; a verdict is a piece of it, so any ask may be repeated. The KV
cache holds `log[:computed]`; what is committed but not in it is `pending`: the prompt at first, later at most the one
token the target chose itself, and the whole log again after a preemption. Under rejection sampling an open draft that
was kept whole leaves nothing pending but a *retained row*: the target's distribution for the next position, which will
judge the next draft's first token.

What is done next, in this order:
1. judge the drafts that have arrived, as one chain;
2. decode, while tokens are owed (`decode_until`);
3. forward pending tokens: a prompt, or under rejection sampling the recovered token of a pre-verify.

Deliberately absent: EOS, stop strings, max_tokens. The coordinator cuts its copy of the log and closes the request.
"""

from __future__ import annotations

import enum
from collections import deque
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

from paceline.types import Decode, Draft, OpenVerify, Rule, Source, Tokens, TopLogprobs, Verdict, Verify

Row = TypeVar("Row")

# Drafts that have queued up are judged as one chain; more than this would make one request the whole batch.
MAX_CHAIN_TOKENS = 64
# Drafts that have overtaken the one before them wait for it; more than these are asked for again.
_MAX_EARLY = 8


class Need(enum.Enum):
    """What a step does for a request."""

    JUDGE = "judge"
    DECODE = "decode"
    PREFILL = "prefill"  # forward pending tokens, nothing to choose


@dataclass(frozen=True, slots=True)
class Work:
    """What a session wants of the next forward pass: tokens at `start`, …, of which the last `num_rows` want rows."""

    need: Need
    start: int
    token_ids: Tokens  # pending tokens, then the chain of drafts
    num_rows: int
    drafts: tuple[Draft, ...] = ()
    preverify: bool = False

    @property
    def draft_ids(self) -> Tokens:
        return tuple(token for draft in self.drafts for token in draft.token_ids)

    @property
    def take_bonus(self) -> bool:
        return not (self.drafts and self.drafts[-1].is_open)


@dataclass(frozen=True, slots=True)
class Logprobs:
    """Of committed tokens: one a token where they were asked for, else none; likewise the likeliest beside each."""

    own: tuple[float, ...] = ()
    top: tuple[TopLogprobs, ...] = ()


NOTHING_TOLD = Logprobs()


@dataclass(slots=True)
class _Waiting:
    ask: Verify
    arrived_s: float
    num_decodes: int  # asks to decode that came before it


class Session(Generic[Row]):
    """See the top of the file. `Row` is whatever the engine keeps as a retained row."""

    def __init__(self, ask: OpenVerify, now_s: float) -> None:
        self.ask = ask
        self.log = list(ask.token_ids)
        self.sources: list[Source] = []  # of log[len(ask.token_ids):]
        self.logprobs: list[float] = []  # likewise where they were asked for, else empty
        self.top_logprobs: list[TopLogprobs] = []  # likewise
        self.computed = 0  # invariant: <= len(log); the pool may hold more, the next chunk's start cuts it
        self.retained: Row | None = None  # invariant: None unless computed == len(log)
        self.decode_until = len(self.log) + ask.num_decode  # absolute position
        self.since_s = now_s  # when the oldest unanswered ask arrived
        self.num_prompt_tokens = ask.num_prompt_tokens or len(ask.token_ids)
        self._epoch = 0  # of the last ask; verdicts of a decoding run carry it
        self._floor = 0  # drafts of an earlier epoch are stale
        self._queue: deque[_Waiting] = deque()
        self._early: dict[int, _Waiting] = {}  # by start: drafts that have overtaken the one before them
        self._num_decodes = 0  # asks to decode, so far
        self._retain = False  # a pre-verify under rejection sampling is due

    @property
    def is_running(self) -> bool:
        """Whether its prompt is in the cache, so that only drafts and tokens to decode lie before it."""
        return len(self.log) - self.computed <= 1

    # --- asks

    def reopen(self, ask: OpenVerify, now_s: float) -> Verdict | None:
        """An open that was sent again: extend the run and say what the log holds beyond its prefix."""
        self.decode_until = max(self.decode_until, len(ask.token_ids) + ask.num_decode)
        self.since_s = now_s
        return self._read(0, len(ask.token_ids))

    def decode(self, ask: Decode, now_s: float) -> Verdict | None:
        self._epoch = max(self._epoch, ask.epoch)
        end = ask.start + ask.num_tokens
        if end > len(self.log):  # else it only asks for what is there
            self._num_decodes += 1
            self.decode_until = max(self.decode_until, end)
        self.since_s = now_s
        return self._read(ask.epoch, ask.start)

    def verify(self, ask: Verify, now_s: float) -> Verdict | None:
        """Queue a draft. One that cannot be judged is answered with the log, or kept for later if it is beyond it."""
        draft = ask.draft
        if draft.epoch < self._floor or draft.end <= len(self.log):
            return self._read(draft.epoch, draft.start)
        if draft.epoch > self._floor:
            self._floor = draft.epoch
            self._queue = deque(w for w in self._queue if w.ask.draft.epoch >= draft.epoch)
        tail = self._tail
        if draft.start > tail:
            self._overtook(ask, now_s)
            return None
        if self._queue and draft.start < tail:
            return None  # it was sent again
        if not self._queue:
            self.since_s = now_s
        self._queue.append(_Waiting(ask, now_s, self._num_decodes))
        self._epoch = max(self._epoch, draft.epoch)
        while early := self._early.pop(self._tail, None):
            if early.ask.draft.epoch == draft.epoch:
                self._queue.append(early)
        return None

    @property
    def _tail(self) -> int:
        """Where a draft must begin to be judged behind those that wait."""
        return self._queue[-1].ask.draft.end if self._queue else len(self.log)

    def _overtook(self, ask: Verify, now_s: float) -> None:
        """A draft before it is on its way, or was lost: then the coordinator repeats what is missing."""
        self._early = {at: w for at, w in self._early.items() if w.ask.draft.epoch >= self._floor}
        if len(self._early) < _MAX_EARLY:
            self._early[ask.draft.start] = _Waiting(ask, now_s, self._num_decodes)

    def _read(self, epoch: int, start: int) -> Verdict | None:
        base = len(self.ask.token_ids)
        if not base <= start < len(self.log):
            return None
        tokens, sources = tuple(self.log[start:]), tuple(self.sources[start - base :])
        own, top = tuple(self.logprobs[start - base :]), tuple(self.top_logprobs[start - base :])
        return Verdict(self.ask.request_id, epoch, start, tokens, sources, logprobs=own, top_logprobs=top)

    # --- work

    def work(self) -> Work | None:
        """What to forward next, or `None` if the next move is the coordinator's."""
        pending = tuple(self.log[self.computed :])
        chain = [] if self._owes_first else self._chain()
        if chain:
            drafts = tuple(waiting.ask.draft for waiting in chain)
            token_ids = pending + tuple(token for draft in drafts for token in draft.token_ids)
            num_rows = len(token_ids) - max(0, len(pending) - 1)
            preverify = any(waiting.ask.preverify for waiting in chain)
            return Work(Need.JUDGE, self.computed, token_ids, num_rows, drafts, preverify)
        if len(self.log) < self.decode_until:
            return Work(Need.DECODE, self.computed, pending, 1 if pending else 0)
        if len(pending) > 1 or (pending and self._retain):
            return Work(Need.PREFILL, self.computed, pending, 1)
        return None

    @property
    def _owes_first(self) -> bool:
        """Whether the first token is still to be decoded, whatever waits to be judged.

        A draft that comes before the prompt is read comes early because it is short, which may tell what is in it. So
        by rules that need rows it is never the draft's turn here; what follows the token is judged where it agrees.
        """
        is_asked = len(self.log) == len(self.ask.token_ids) < self.decode_until
        return self.ask.rule.needs_rows and is_asked

    def _chain(self) -> list[_Waiting]:
        """The drafts that can be judged now, cut to what the log does not hold yet; drops those that disagree."""
        while self._queue and self._queue[0].ask.draft.end <= len(self.log):
            if self._contradicts(self._queue[0].ask.draft):
                break
            self._queue.popleft()
        if not self._queue:
            return []
        head = self._queue[0].ask
        if self._contradicts(head.draft):
            self._reject(head.draft.epoch, preverify=head.preverify)
            return []
        known = len(self.log) - head.draft.start
        if known > 0:
            self._queue[0] = replace(self._queue[0], ask=Verify(head.draft.drop(known), head.preverify))
        chain: list[_Waiting] = []
        num_tokens = 0
        for waiting in self._queue:
            num_tokens += len(waiting.ask.draft.token_ids)
            if chain and num_tokens > MAX_CHAIN_TOKENS:
                break
            chain.append(waiting)
            if self.ask.rule is Rule.BLOCK and not waiting.ask.draft.is_open:
                break  # a bonus comes after it, which whatever follows must agree with
        return chain

    def prefilled(self, num_tokens: int, row: Row | None) -> None:
        """`num_tokens` pending tokens are in the cache; `row` predicts the next position if all are."""
        self.computed += num_tokens
        self.retained = row if self.computed == len(self.log) else None
        self._retain = self._retain and self.retained is None

    def adopted(self, num_tokens: int) -> None:
        """The first `num_tokens` of the log are in the cache, because another request had them there."""
        self.computed = num_tokens

    def preempted(self) -> None:
        """The cache is gone. The log stays, and all of it is pending; a retained row is computed anew with it."""
        self.computed = 0
        self.retained = None

    def judged(
        self,
        work: Work,
        num_accepted: int,
        token_id: int | None,
        source: Source,
        retained: Row | None,
        told: Logprobs = NOTHING_TOLD,
    ) -> Verdict:
        """Commit what the rule decided about `work`; the caller adds its timings to the verdict.

        `token_id` is the target's own token after the accepted ones, `None` if an open draft was kept whole; then
        `retained` predicts the next position. Also ends a decode: no draft, no accepted token, one `token_id`.
        """
        draft_ids, start = work.draft_ids, len(self.log)
        self.log += draft_ids[:num_accepted]
        self.sources += [Source.ACCEPTED] * num_accepted
        self.logprobs += told.own
        self.top_logprobs += told.top
        self.computed = len(self.log)
        if token_id is not None:
            self.log.append(token_id)
            self.sources.append(source)
        self.retained = retained if token_id is None else None
        rejected = num_accepted < len(draft_ids)
        epoch = work.drafts[0].epoch if work.drafts else self._epoch
        last = [self._queue.popleft() for _ in work.drafts][-1:]
        if any(waiting.num_decodes == self._num_decodes for waiting in last):
            # A draft ends a decoding run, but for one that was asked for behind it.
            self.decode_until = min(self.decode_until, len(self.log))
        if rejected:
            self._reject(epoch, preverify=work.preverify)
        new = tuple(self.log[start:])
        sources = tuple(self.sources[start - len(self.ask.token_ids) :])
        tested = num_accepted + rejected
        verdict = Verdict(self.ask.request_id, epoch, start, new, sources, tested, len(work.drafts))
        return replace(verdict, logprobs=told.own, top_logprobs=told.top)

    def _reject(self, epoch: int, *, preverify: bool) -> None:
        """A rejection ends the epoch. Pre-verify: do at once what needs no draft."""
        self._floor = epoch + 1
        self._queue.clear()
        if not preverify:
            return
        if self.ask.rule.needs_rows:
            self._retain = True
        else:
            self.decode_until = max(self.decode_until, len(self.log) + 1)

    def _contradicts(self, draft: Draft) -> bool:
        known = tuple(self.log[draft.start : draft.end])
        return draft.token_ids[: len(known)] != known
