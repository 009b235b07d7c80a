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

from coordinator.core.affinity import head_of
from coordinator.core.asks import open_draft, open_verify
from coordinator.core.commands import Ask, Command, Emit, Fail, Finish
from coordinator.core.ends import cut, finish_reason
from coordinator.core.events import RequestSpec
from coordinator.core.flight import Begun, Verifications
from coordinator.core.limits import Limits
from coordinator.core.metrics import RequestMetrics
from coordinator.core.pace import Pace
from coordinator.core.passes import PassTimes
from coordinator.core.placement import Wish
from coordinator.core.planner import Planner
from coordinator.core.rules import believes_rows
from coordinator.core.window import Window
from coordinator.core.worker import Worker
from paceline.errors import PacelineError, Unavailable
from paceline.types import (
    Branch,
    Close,
    Commit,
    Decode,
    Draft,
    FinishReason,
    Mode,
    Pass,
    Role,
    Rule,
    Source,
    Tokens,
    Verdict,
    Verify,
)

# Tokens that the verifier decodes unasked while no drafts are expected; asked for anew when half of them are there, so
# that it does not wait for the word to go on across a link sixteen passes long.
_RUN = 32


class Request:
    """See the top of the file. Every method returns the commands that follow; `done` says that it has ended."""

    def __init__(self, spec: RequestSpec, rule: Rule, limits: Limits, now_s: float) -> None:
        self.spec = spec
        self.limits = limits
        self.committed = [*spec.token_ids, *spec.resumed]
        self.verifier: str | None = None
        self.drafter: str | None = None
        self.done = False
        self.rule = rule  # fixed from here on: the verifier opens with it
        self.wish = Wish(Role.DRAFTER, spec.policy.name if spec.policy else None, believes_rows(rule, spec.sampling))
        self.head = head_of(spec.token_ids)
        self.num_moves = self.num_refusals = self._num_retries = 0
        self.arrived_s = now_s
        self.deadline_s = self._waits_until_s = now_s + limits.queue_timeout_s
        self._planner = how = Planner(spec, rule)
        self.metrics = RequestMetrics(
            how.mode, self.rule, str(how.policy), how.window, num_prompt_tokens=len(spec.token_ids)
        )
        self._window = Window()
        self._pace = Pace()  # of the drafter, once there is one
        self._passes = PassTimes()  # of the verifier, likewise
        self._host: Worker | None = None  # the verifier itself
        self._told = 0  # the drafter knows the committed tokens up to here
        self._sent = Verifications()
        self._decode_until = 0  # the verifier owes tokens up to here
        self._answered = False  # whether this verifier has said anything yet
        self._begun = Begun()

    @property
    def wants_drafter(self) -> bool:
        return self.spec.mode is not Mode.OFF and not self.done and self.num_refusals <= self.limits.max_moves

    @property
    def is_unheard(self) -> bool:
        """Whether its drafter is wanted, was late, and has not been heard of since."""
        return self.drafter is not None and self._pace.is_silent and not self._is_resting

    # --- workers

    def attach_verifier(self, worker: Worker, now_s: float) -> Iterator[Command]:
        """Prefill there. The first token is plain target output; so are all until a draft comes."""
        if not (self.num_moves or self._answered):
            self.metrics.queue_ms = 1e3 * (now_s - self.arrived_s)
        self.verifier, self._passes, self._host = worker.name, worker.passes, worker
        self._answered = False
        self._passes.opened(len(self.committed), worker.num_seqs)
        self._decode_until = len(self.committed) + 1
        if not self._expects_drafts:
            self._decode_until = self._run_end()
        yield self._open_verify()
        for draft in self._window.drafts:
            yield self._verify(draft, now_s)
        yield from self._await(now_s)

    def attach_drafter(self, worker: Worker) -> Iterator[Command]:
        """Prefill there and draft after what is committed; the verifier goes on meanwhile."""
        self.drafter, self._pace = worker.name, worker.pace
        self._planner.resume(self._pace)
        self._note_plan()
        yield self._open_draft(self._window.restart())

    def bounce(self) -> None:
        """The verifier had no place after all: the request waits on as if it had not been given one."""
        self.verifier, self.deadline_s = None, self._waits_until_s

    def lose_verifier(self, now_s: float) -> Iterator[Command]:
        """The verifier is gone; what is committed and the drafts in flight go to the next one."""
        self.verifier = None
        self.num_moves += 1
        self.deadline_s = self._waits_until_s = now_s + self.limits.queue_timeout_s
        if self.num_moves > self.limits.max_moves:
            yield from self.fail(Unavailable(f"{self.num_moves} verifiers failed this request; try it again"))

    def move_verifier(self, worker: Worker, now_s: float) -> Iterator[Command]:
        """The verifier is to be rid of the request, which goes on at `worker`; that is no failure."""
        assert self.verifier is not None
        yield Ask(self.verifier, Close(self.spec.request_id))
        yield from self.attach_verifier(worker, now_s)

    def lose_drafter(self, reason: str, now_s: float) -> Iterator[Command]:
        """The drafter is gone; what it sent is still judged, then the verifier decodes on."""
        self.drafter = None
        self._begun.clear()
        if self.verifier and not self._owes:
            yield from self._self_decode(reason, now_s)

    def refuse_drafter(self, now_s: float) -> Iterator[Command]:
        """The drafter will not take the request, or sent what no honest one sends; after a few, none is asked."""
        self.num_refusals += 1
        self._window.restart()
        yield from self.leave_drafter("drafter refused", now_s)

    def leave_drafter(self, reason: str, now_s: float) -> Iterator[Command]:
        """The drafter, if there is one, is to be rid of the request."""
        if self.drafter:
            yield Ask(self.drafter, Close(self.spec.request_id))
        yield from self.lose_drafter(reason, now_s)

    # --- answers

    def drafted(self, draft: Draft, now_s: float) -> Iterator[Command]:
        self.metrics.drafted(draft, now_s)
        self._pace.heard()
        admitted = self._window.admit(draft, self.committed)
        if (begun_s := self._begun.drafted(draft.epoch)) is not None:
            if self.metrics.num_received_drafts > 1:  # the first one took the prompt, too
                self._pace.turned_around(now_s - begun_s, draft, branches=self._planner.mode is Mode.BRANCH)
            self._began(by_branch=False)
        if not self.rule.needs_rows:
            self._pace.tested(self._window.num_late_right, self._window.num_late)
        self.metrics.num_stale_drafts += admitted is None
        if admitted and self.verifier:
            yield self._verify(admitted, now_s)
            yield from self._await(now_s)

    def branched(self, branch: Branch, now_s: float) -> Iterator[Command]:
        """A draft for another outcome than the chain's; one whose outcome has come meanwhile is judged at once."""
        self.metrics.branched(branch)
        self._pace.heard()
        if draft := self._window.admit_branch(branch, self.committed):
            self._begun.drafted(draft.epoch)  # that run is told to begin, and has begun: no turnaround to measure
            yield from self._promoted(draft, now_s)

    def _promoted(self, draft: Draft, now_s: float) -> Iterator[Command]:
        """A branch has become the first draft of a run."""
        self._began(by_branch=True)
        self.metrics.promoted(draft, now_s)
        if self.verifier:
            yield self._verify(draft, now_s)
            yield from self._await(now_s)

    def _began(self, *, by_branch: bool) -> None:
        """A new run has its first draft."""
        if self._planner.mode is Mode.BRANCH:
            self._pace.began(by_branch=by_branch)
            self.metrics.began(by_branch=by_branch)

    def passed(self, passed: Pass, now_s: float) -> Iterator[Command]:
        """The drafter has nothing to propose after what is committed: waiting for it would be in vain.

        One that answers fast is asked again after a single token, since a draft that it finds then is worth a pass.
        Otherwise the verifier decodes on meanwhile, as without an answer; a draft that comes ends the run.
        """
        self._pace.heard()
        self._pace.breaker.heard()
        if (begun_s := self._begun.answered(passed.epoch)) is not None:
            self._pace.turned_around(now_s - begun_s, None)
        if self.verifier and not self._owes and passed.start == len(self.committed):
            yield from self._self_decode("nothing to draft", now_s, 1 if self._pace.answers_fast else _RUN)

    def verified(self, verdict: Verdict, now_s: float) -> Iterator[Command]:
        """Commit what is new in the verdict, tell client and drafter, and see to the next move."""
        self._answered, self._waits_until_s = True, now_s + self.limits.queue_timeout_s
        start = len(self.committed)
        known = start - verdict.start
        if known < 0 or known >= len(verdict.token_ids):
            return  # repeated, or one before it was lost: the retry brings the whole
        new, sources = cut(self.spec, start, verdict.token_ids[known:], verdict.sources[known:])
        self._count(verdict, sources, now_s)
        self.committed += new
        told = slice(known, known + len(new))
        yield Emit(self.spec.request_id, new, sources, verdict.logprobs[told], verdict.top_logprobs[told])
        if reason := finish_reason(self.spec, self.committed):
            yield from self.finish(reason, now_s)
            return
        yield from self._settle(start, new, now_s)
        yield from self._await(now_s)

    def _settle(self, start: int, new: Tokens, now_s: float) -> Iterator[Command]:
        """Hold the new tokens against the drafts in flight, and tell the drafter."""
        epoch = self._window.epoch
        preverify = any(self._sent.preverifies(draft) for draft in self._window.drafts)
        if not self._window.settle(self.committed):
            self._decode_until = 0
            if preverify and not self.rule.needs_rows:
                self._decode_until = len(self.committed) + 1  # the verifier does so of its own accord
        self._sent.keep(self._window.drafts)
        if promoted := self._window.promote(self.committed):
            yield from self._promoted(promoted, now_s)
        if self.drafter:
            if self.is_unheard:
                self._pace.breaker.late(now_s)  # not waiting for it spares the wait, and changes nothing of its silence
            ends_run = self._window.epoch > epoch and not self._window.drafts
            if self._is_resting:
                self._pace.did_without(len(new))
            yield from self._tell_drafter(now_s, ends_run=ends_run)

    def _tell_drafter(self, now_s: float, *, ends_run: bool) -> Iterator[Command]:
        """What is committed, and how to draft from here on. A drafter that is to rest is spared the news."""
        assert self.drafter is not None
        assert self._host is not None
        plan = self._planner.replan(self._pace, self._passes, self._host.num_seqs, now_s, len(self.committed))
        self._note_plan()
        if self._is_resting and plan is None:
            return
        if ends_run:
            self._begun.tell(self._window.epoch, now_s)
        tokens = tuple(self.committed[self._told :])
        yield Ask(self.drafter, Commit(self.spec.request_id, self._window.epoch, self._told, tokens, plan))
        self._told = len(self.committed)

    def _note_plan(self) -> None:
        self.metrics.planned(self._planner.mode, str(self._planner.policy), self._planner.window)

    @property
    def _is_resting(self) -> bool:
        """Whether the drafter is there but not worth asking."""
        return self.drafter is not None and self._planner.rests

    @property
    def _expects_drafts(self) -> bool:
        """Whether to wait for a draft rather than decode on."""
        return self.drafter is not None and self._planner.waits and not self._pace.is_silent

    def _count(self, verdict: Verdict, sources: tuple[Source, ...], now_s: float) -> None:
        if not self.metrics.sources:
            self.metrics.ttft_ms = 1e3 * (now_s - self.arrived_s)
        self.metrics.verified(verdict, now_s)
        self.metrics.sources.update(sources)
        self.metrics.tokens_by_mode[self._planner.mode if self.drafter else Mode.OFF] += len(sources)
        self.metrics.settled(len(self.committed), sources, self._window.drafts)
        asked_s = self._sent.asked_s(verdict.start)
        if asked_s is not None and verdict.num_drafts:
            wire_ms = max(0.0, 1e3 * (now_s - asked_s) - verdict.verify_ms - verdict.queue_ms)
            self.metrics.wire_ms += wire_ms
            self._pace.round_trip(wire_ms / 1e3)
        if verdict.verify_ms and verdict.batch_tokens:
            self._passes.seen(verdict.batch_tokens, verdict.verify_ms / 1e3)
        num_accepted = sum(source is Source.ACCEPTED for source in sources)
        self._pace.verified(verdict.verify_ms / 1e3, num_accepted, verdict.num_tested)
        if verdict.num_drafts:
            self._pace.breaker.judged()

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
            if (
                not self._window.drafts
                and self._decode_until < self._run_end() - _RUN // 2
                and not self._expects_drafts
            ):
                yield self._decode_on()
        elif self._expects_drafts:
            self.deadline_s = now_s + self._pace.wait_s(self._planner.policy.max_length, self.limits.max_draft_wait_s)
        else:
            reason = "no drafter" if self.drafter is None else "resting" if self._is_resting else "silent drafter"
            yield from self._self_decode(reason, now_s)

    def tick(self, now_s: float) -> Iterator[Command]:
        """The armed deadline has passed."""
        if self.verifier is None:
            wait_s = self.limits.queue_timeout_s
            yield from self.fail(Unavailable(f"no verifier was free within {wait_s:g} s; try again later"))
        elif self._owes:
            yield from self._retry(now_s)
        else:
            self._pace.is_silent = True
            yield from self._self_decode("late draft", now_s)
            if self.drafter:
                self._pace.breaker.late(now_s)
                # perhaps a message was lost: resynchronise, keeping the run that is under way
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
            yield Ask(self.verifier, Verify(draft, self._sent.preverifies(draft)))
        if self._answered and not self._window.drafts:
            yield self._decode(self._decode_until - len(self.committed))

    def _self_decode(self, reason: str, now_s: float, num_tokens: int = _RUN) -> Iterator[Command]:
        """Let the verifier go on alone until a draft ends the run: a drafter that hangs costs one wait, no more."""
        if self.spec.mode is not Mode.OFF:
            self.metrics.fallbacks[reason] += 1
        yield self._decode_on(num_tokens)
        yield from self._await(now_s)

    def _run_end(self, num_tokens: int = _RUN) -> int:
        """Up to where the verifier may decode without being asked again."""
        return min(self.spec.end, len(self.committed) + num_tokens)

    def _decode_on(self, num_tokens: int = _RUN) -> Ask:
        self._decode_until = self._run_end(num_tokens)
        return self._decode(self._decode_until - len(self.committed))

    # --- asks

    def _open_draft(self, epoch: int) -> Ask:
        assert self.drafter is not None
        self._told = len(self.committed)
        return Ask(self.drafter, open_draft(self.spec, self.rule, self._planner.plan, epoch, self.committed))

    def _open_verify(self) -> Ask:
        assert self.verifier is not None
        num_decode = max(0, self._decode_until - len(self.committed))
        return Ask(self.verifier, open_verify(self.spec, self.rule, self.committed, num_decode))

    def _verify(self, draft: Draft, now_s: float) -> Ask:
        assert self.verifier is not None
        mode = self._planner.mode
        preverify = mode.streams and self._pace.preverify_pays(by_branch=mode is Mode.BRANCH)
        self._sent.asked(draft, now_s, preverify=preverify, is_alone=len(self._window.drafts) == 1)
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
