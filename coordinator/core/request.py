"""One request: its committed tokens, the asks outstanding for it, and what each answer leads to.

This is the main loop of the whole system, told as a state machine without I/O. `committed` only grows. The verifier
*owes* an answer while drafts are in flight or a decoding run is under way; while it owes nothing, the next move is
the drafter's, and `Pace` says how long to wait for it before the verifier decodes on by itself. So exactly one of two
deadlines is armed at any time: repeat an ask that was not answered, or stop waiting for a draft.

Time only ever decides who moves next. It never decides which tokens are believed: that is `Window`'s, by epoch and
content.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from coordinator.core.commands import Ask, Command, Emit, Fail, Finish
from coordinator.core.events import RequestSpec
from coordinator.core.limits import Limits
from coordinator.core.metrics import RequestMetrics
from coordinator.core.pace import Pace
from coordinator.core.window import Window
from paceline.errors import PacelineError, Unavailable
from paceline.types import (
    Close,
    Commit,
    Decode,
    Draft,
    FinishReason,
    Mode,
    OpenDraft,
    OpenVerify,
    Rule,
    Source,
    Tokens,
    Verdict,
    Verify,
)

# A verifier left to itself decodes runs that double up to this, so that a hung drafter costs next to nothing.
_LONGEST_RUN = 64


class Request:
    """See the top of the file. Every method returns the commands that follow; `done` says that it has ended."""

    def __init__(self, spec: RequestSpec, limits: Limits, now_s: float) -> None:
        self.spec = spec
        self.limits = limits
        self.committed = list(spec.token_ids)
        self.verifier: str | None = None
        self.drafter: str | None = None
        self.done = False
        self.rule = spec.rule or choose_rule(spec)
        self.mode = spec.mode or Mode.PEARL  # auto: later the controller's choice
        self.window_size = spec.window if self.mode is Mode.PEARL else 1
        self.num_moves = 0
        self.num_refusals = 0
        self.arrived_s = now_s
        self.deadline_s = now_s + limits.queue_timeout_s
        self.metrics = RequestMetrics(
            self.mode, self.rule, str(spec.policy), self.window_size, num_prompt_tokens=len(spec.token_ids)
        )
        self._window = Window()
        self._pace = Pace()  # of the drafter, once there is one
        self._preverify: dict[int, bool] = {}  # by the start of a draft in flight
        self._asked_s: dict[int, float] = {}  # likewise
        self._decode_until = 0  # the verifier owes tokens up to here
        self._answered = False  # whether this verifier has said anything yet
        self._run_length = 1  # of the next self-decode
        self._num_retries = 0
        self._redraft_s: float | None = None  # when the drafter was last told to start a new run

    @property
    def wants_drafter(self) -> bool:
        return self.mode is not Mode.OFF and not self.done and self.num_refusals <= self.limits.max_moves

    @property
    def end(self) -> int:
        """The absolute position at which the request is long enough."""
        return len(self.spec.token_ids) + self.spec.max_tokens

    # --- workers

    def attach_verifier(self, worker: str, now_s: float) -> Iterator[Command]:
        """Prefill there. The first token is plain target output; without a drafter, so are all."""
        if not self.num_moves:
            self.metrics.queue_ms = 1e3 * (now_s - self.arrived_s)
        self.verifier = worker
        self._answered = False
        num_decode = 1 if self.drafter else self.end - len(self.committed)
        self._decode_until = len(self.committed) + num_decode
        yield self._open_verify()
        for draft in self._window.drafts:
            yield self._verify(draft, now_s)
        yield from self._await(now_s)

    def attach_drafter(self, worker: str, pace: Pace) -> Iterator[Command]:
        """Prefill there and draft after what is committed; the verifier goes on meanwhile."""
        self.drafter = worker
        self._pace = pace
        yield self._open_draft(self._window.restart())

    def lose_verifier(self, now_s: float) -> Iterator[Command]:
        """The verifier is gone; what is committed and the drafts in flight go to the next one."""
        self.verifier = None
        self.num_moves += 1
        self.deadline_s = now_s + self.limits.queue_timeout_s
        if self.num_moves > self.limits.max_moves:
            yield from self.fail(Unavailable(f"{self.num_moves} verifiers failed this request; try it again"))

    def lose_drafter(self, reason: str, now_s: float) -> Iterator[Command]:
        """The drafter is gone; what it sent is still judged, then the verifier decodes on."""
        self.drafter = None
        self._redraft_s = None
        if self.verifier and not self._owes:
            yield from self._self_decode(reason, now_s)

    def refuse_drafter(self, now_s: float) -> Iterator[Command]:
        """The drafter will not take the request, or sent what no honest one sends; after a few, none is asked."""
        self.num_refusals += 1
        self._window.restart()
        if self.drafter:
            yield Ask(self.drafter, Close(self.spec.request_id))
        yield from self.lose_drafter("drafter refused", now_s)

    # --- answers

    def drafted(self, draft: Draft, now_s: float) -> Iterator[Command]:
        self.metrics.drafted(draft, now_s)
        if self._redraft_s is not None:
            self._pace.turned_around(now_s - self._redraft_s)
            self._redraft_s = None
        admitted = self._window.admit(draft, self.committed)
        if admitted is None:
            self.metrics.num_stale_drafts += 1
            return
        self._run_length = 1
        if self.verifier:
            yield self._verify(admitted, now_s)
            yield from self._await(now_s)

    def verified(self, verdict: Verdict, now_s: float) -> Iterator[Command]:
        """Commit what is new in the verdict, tell client and drafter, and see to the next move."""
        self._answered = True
        start = len(self.committed)
        known = start - verdict.start
        if known < 0 or known >= len(verdict.token_ids):
            return  # repeated, or one before it was lost: the retry brings the whole
        new, sources = self._cut(verdict.token_ids[known:], verdict.sources[known:])
        self._count(verdict, new, sources, now_s)
        self.committed += new
        yield Emit(self.spec.request_id, new, sources, verdict.logprobs[known : known + len(new)])
        reason = self._finish_reason()
        if reason:
            yield from self.finish(reason, now_s)
            return
        yield from self._settle(start, new, now_s)
        yield from self._await(now_s)

    def _settle(self, start: int, new: Tokens, now_s: float) -> Iterator[Command]:
        """Hold the new tokens against the drafts in flight, and tell the drafter."""
        epoch = self._window.epoch
        preverify = any(self._preverify.get(draft.start) for draft in self._window.drafts)
        if not self._window.settle(self.committed):
            self._decode_until = 0
            if preverify and not self.rule.needs_rows:
                self._decode_until = len(self.committed) + 1  # the verifier does so of its own accord
        self._preverify = {d.start: self._preverify.get(d.start, False) for d in self._window.drafts}
        self._asked_s = {d.start: self._asked_s.get(d.start, now_s) for d in self._window.drafts}
        if not self.drafter:
            return
        if self._window.epoch > epoch and not self._window.drafts:
            self._redraft_s = now_s
        yield Ask(self.drafter, Commit(self.spec.request_id, self._window.epoch, start, new))

    def _cut(self, tokens: Tokens, sources: tuple[Source, ...]) -> tuple[Tokens, tuple[Source, ...]]:
        """Up to max_tokens, and up to the first token that ends the output (which is kept)."""
        room = self.end - len(self.committed)
        for i, token in enumerate(tokens[:room]):
            if token in self.spec.stop_token_ids:
                room = i + 1
                break
        return tokens[:room], sources[:room]

    def _finish_reason(self) -> FinishReason | None:
        if self.committed[-1] in self.spec.stop_token_ids:
            return FinishReason.STOP
        return FinishReason.LENGTH if len(self.committed) >= self.end else None

    def _count(self, verdict: Verdict, new: Tokens, sources: tuple[Source, ...], now_s: float) -> None:
        if not self.metrics.sources:
            self.metrics.ttft_ms = 1e3 * (now_s - self.arrived_s)
        self.metrics.verified(verdict, now_s)
        self.metrics.sources.update(sources)
        self.metrics.settled(len(self.committed), sources, self._window.drafts)
        asked_s = self._asked_s.get(verdict.start)
        if asked_s is not None and verdict.num_drafts:
            round_trip_ms = 1e3 * (now_s - asked_s)
            self.metrics.wire_ms += max(0.0, round_trip_ms - verdict.verify_ms - verdict.queue_ms)
        num_accepted = sum(source is Source.ACCEPTED for source in sources)
        self._pace.verified(verdict.verify_ms / 1e3, num_accepted, verdict.num_tested)

    # --- time

    @property
    def _owes(self) -> bool:
        """Whether the verifier has something of this request left to answer."""
        return bool(self._window.drafts) or len(self.committed) < self._decode_until

    def _await(self, now_s: float) -> Iterator[Command]:
        """Arm the one deadline that fits: for the verifier's answer, or for the drafter's next draft."""
        if self._owes:
            self._num_retries = 0
            self.deadline_s = now_s + self.limits.retry_s
        elif self.drafter:
            self.deadline_s = now_s + self._pace.wait_s(self.limits.max_draft_wait_s)
        else:
            yield from self._self_decode("no drafter", now_s)

    def tick(self, now_s: float) -> Iterator[Command]:
        """The armed deadline has passed."""
        if self.verifier is None:
            wait_s = self.limits.queue_timeout_s
            yield from self.fail(Unavailable(f"no verifier was free within {wait_s:g} s; try again later"))
        elif self._owes:
            yield from self._retry(now_s)
        else:
            yield from self._self_decode("late draft", now_s)
            if self.drafter:  # perhaps a message was lost: resynchronise, keeping the run that is under way
                yield self._open_draft(self._window.epoch)

    def _retry(self, now_s: float) -> Iterator[Command]:
        """Ask again for exactly what is outstanding, under the same epoch, with twice the patience.

        A retry that moved the epoch on would never end where an honest answer takes longer than the patience.
        """
        assert self.verifier is not None
        self._num_retries += 1
        if self._num_retries > self.limits.max_retries:
            yield Ask(self.verifier, Close(self.spec.request_id))
            yield from self.lose_verifier(now_s)
            return
        self.deadline_s = now_s + self.limits.retry_s * 2**self._num_retries
        if not self._answered:
            yield self._open_verify()
        for draft in self._window.drafts:
            yield Ask(self.verifier, Verify(draft, self._preverify.get(draft.start, False)))
        if self._answered and not self._window.drafts:
            yield self._decode(self._decode_until - len(self.committed))

    def _self_decode(self, reason: str, now_s: float) -> Iterator[Command]:
        """Let the verifier go on alone: one token at first, longer runs while no usable draft comes."""
        num_tokens = self._run_length if self.drafter else self.end - len(self.committed)
        num_tokens = min(num_tokens, self.end - len(self.committed))
        self._run_length = min(2 * self._run_length, _LONGEST_RUN)
        if self.mode is not Mode.OFF:
            self.metrics.fallbacks[reason] += 1
        self._decode_until = len(self.committed) + num_tokens
        yield self._decode(num_tokens)
        yield from self._await(now_s)

    # --- asks

    def _open_draft(self, epoch: int) -> Ask:
        assert self.drafter is not None
        spec = self.spec
        ask = OpenDraft(
            request_id=spec.request_id,
            epoch=epoch,
            token_ids=tuple(self.committed),
            sampling=spec.sampling,
            rule=self.rule,
            seed=spec.seed if self.rule is Rule.COUPLED else spec.draft_seed,
            policy=spec.policy,
            window=self.window_size,
            end=self.end,
            stop_token_ids=spec.stop_token_ids,
            num_prompt_tokens=len(spec.token_ids),
        )
        return Ask(self.drafter, ask)

    def _open_verify(self) -> Ask:
        assert self.verifier is not None
        spec = self.spec
        num_decode = max(0, self._decode_until - len(self.committed))
        ask = OpenVerify(
            request_id=spec.request_id,
            token_ids=tuple(self.committed),
            sampling=spec.sampling,
            rule=self.rule,
            seed=spec.seed,
            num_decode=num_decode,
            num_prompt_tokens=len(spec.token_ids),
        )
        return Ask(self.verifier, ask)

    def _verify(self, draft: Draft, now_s: float) -> Ask:
        assert self.verifier is not None
        preverify = self.mode is Mode.PEARL and self._pace.preverify_pays()
        self._preverify[draft.start] = preverify
        self._asked_s[draft.start] = now_s
        self._decode_until = min(self._decode_until, len(self.committed))  # a draft ends a decoding run
        return Ask(self.verifier, Verify(draft, preverify))

    def _decode(self, num_tokens: int) -> Ask:
        assert self.verifier is not None
        return Ask(self.verifier, Decode(self.spec.request_id, self._window.epoch, len(self.committed), num_tokens))

    # --- ends

    def finish(self, reason: FinishReason, now_s: float) -> Iterator[Command]:
        self.metrics.e2e_ms = 1e3 * (now_s - self.arrived_s)
        yield from self._close()
        yield Finish(self.spec.request_id, reason, self.metrics)

    def fail(self, error: PacelineError) -> Iterator[Command]:
        yield from self._close()
        yield Fail(self.spec.request_id, error)

    def _close(self) -> Iterator[Command]:
        self.done = True
        self.deadline_s = math.inf
        for worker in filter(None, (self.verifier, self.drafter)):
            yield Ask(worker, Close(self.spec.request_id))


def choose_rule(spec: RequestSpec) -> Rule:
    """`auto`: exact, and the one that accepts most of those that suit the sampling parameters."""
    if spec.sampling.is_greedy:
        return Rule.MATCH
    return Rule.COUPLED if spec.sampling.seed is not None else Rule.BLOCK
