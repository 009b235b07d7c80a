"""One request: its committed tokens, the asks outstanding for it, and what each answer leads to.

This is the main loop of the whole system, told as a state machine without I/O. `committed` only grows. The verifier
*owes* an answer while drafts are in flight or a decoding run is under way; while it owes nothing, the next move is
the drafter's, and `Pace` says how long to wait for it before the verifier decodes on by itself. So exactly one of two
deadlines is armed at any time: repeat an ask that was not answered, or stop waiting for a draft. Where a redraft takes
passes and the rule allows it, the verifier decodes meanwhile: then it always owes something, and a drafter that falls
silent is noticed when its tokens come.

Time only ever decides who moves next. It never decides which tokens are believed: that is `Window`'s, by epoch and
content. Where it could, because a rule needs rows and the verifier goes its own way, no draft is judged (`_is_apart`).

What each worker owes or knows has a file of its own: `debt.py` for the verifier, `briefing.py` for the drafter.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from coordinator.core.affinity import head_of
from coordinator.core.briefing import Briefing
from coordinator.core.commands import Ask, Command, Emit, Fail, Finish
from coordinator.core.debt import RUN, SHORT_RUN, Debt
from coordinator.core.ends import cut, finish_reason
from coordinator.core.events import RequestSpec
from coordinator.core.limits import Limits
from coordinator.core.placement import Wish
from coordinator.core.rules import believes_rows
from coordinator.core.tally import Tally
from coordinator.core.window import Window
from coordinator.core.worker import Worker
from paceline.errors import PacelineError, Unavailable
from paceline.types import Branch, Close, Draft, FinishReason, Mode, Pass, Role, Rule, Tokens, Verdict

# Committed tokens after which one refusal is forgiven: an output of a few thousand must not go on without drafts for
# ever because of what happened at its beginning.
_FORGIVEN_AFTER = 256


class Request:
    """See the top of the file. Every method returns the commands that follow; `done` says that it has ended."""

    def __init__(self, spec: RequestSpec, rule: Rule, limits: Limits, now_s: float) -> None:
        self.spec = spec
        self.limits = limits
        self.committed = [*spec.token_ids, *spec.resumed]
        self.drafter: str | None = None
        self.done = False
        self.rule = rule  # fixed from here on: the verifier opens with it
        self.wish = Wish(Role.DRAFTER, spec.policy.name if spec.policy else None, believes_rows(rule, spec.sampling))
        self.head = head_of(spec.token_ids)
        self.num_moves = 0  # verifiers lost since the last token
        self.num_refusals = 0  # of drafters, as far as they are not forgiven
        self._refused_at = 0  # position of the last one, or of the last forgiveness
        self._was_lost = False  # by any verifier
        self.deadline_s = self._waits_until_s = now_s + limits.queue_timeout_s
        self._window = Window()
        self._debt = Debt(spec, rule, limits, self.committed, self._window)
        self._briefing = Briefing(spec, rule, self.committed)
        self._tally = Tally(self._briefing.planner, rule, len(spec.token_ids), now_s)
        self.metrics = self._tally.metrics
        self._verifier: Worker | None = None
        self._went_apart = False  # by a rule that needs rows, the verifier has decoded without waiting for the drafter

    @property
    def verifier(self) -> str | None:
        """Its name."""
        return self._verifier.name if self._verifier else None

    @property
    def wants_drafter(self) -> bool:
        return self.spec.mode is not Mode.OFF and not self.done and self.num_refusals <= self.limits.max_moves

    @property
    def is_unheard(self) -> bool:
        """Whether its drafter is wanted, was late, and has not been heard of since."""
        return self.drafter is not None and self._briefing.pace.is_silent and not self._briefing.rests

    # --- workers

    def attach_verifier(self, worker: Worker, now_s: float) -> Iterator[Command]:
        """Prefill there. The first token is plain target output; so are all until a draft comes."""
        if not (self._was_lost or self._debt.has_answered):
            self._tally.taken(now_s)
        self._verifier = worker
        worker.passes.opened(len(self.committed), worker.num_seqs)
        if not self._expects_drafts:
            self._went_apart = self.rule.needs_rows
        yield Ask(worker.name, self._debt.open(1 if self._expects_drafts else self._run_length))
        for draft in self._window.drafts:
            yield self._verify(draft, now_s)
        yield from self._await(now_s)

    def attach_drafter(self, worker: Worker) -> Iterator[Command]:
        """Prefill there and draft after what is committed; the verifier goes on meanwhile."""
        self.drafter = worker.name
        self._briefing.attach(worker.pace)
        self._tally.planned(self._briefing.planner)
        if self.verifier:
            self._went_apart = self.rule.needs_rows
        yield Ask(worker.name, self._briefing.open(self._window.restart()))

    def bounce(self) -> None:
        """The verifier had no place after all: the request waits on as if it had not been given one."""
        self._verifier, self.deadline_s = None, self._waits_until_s

    def lose_verifier(self, now_s: float) -> Iterator[Command]:
        """The verifier is gone; what is committed and the drafts in flight go to the next one."""
        self._verifier, self._was_lost = None, True
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
        self._briefing.detach()
        if self.verifier and not self._debt.owes:
            yield from self._self_decode(reason, now_s)

    def refuse_drafter(self, now_s: float) -> Iterator[Command]:
        """The drafter will not take the request, or sent what no honest one sends; after a few, none is asked."""
        self.num_refusals += 1
        self._refused_at = len(self.committed)
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
        self._briefing.heard(now_s)
        # The first one of a request took the prompt, too.
        begins = self._briefing.drafted(draft, now_s, is_measured=self.metrics.num_received_drafts > 1)
        if self._is_apart and not draft.is_certain:
            self.metrics.num_stale_drafts += 1
            return
        admitted = self._window.admit(draft, self.committed)
        if begins:
            self._tally.began(self._briefing.planner, self._briefing.pace, by_branch=False)
        if not self.rule.needs_rows:
            self._briefing.pace.tested(self._window.num_late_right, self._window.num_late)
        self.metrics.num_stale_drafts += admitted is None
        if admitted and self.verifier:
            yield self._verify(admitted, now_s)
            yield from self._await(now_s)

    def branched(self, branch: Branch, now_s: float) -> Iterator[Command]:
        """A draft for another outcome than the chain's; one whose outcome has come meanwhile is judged at once."""
        self.metrics.branched(branch)
        self._briefing.heard(now_s)
        if self._is_apart:
            return
        if draft := self._window.admit_branch(branch, self.committed):
            self._briefing.promoted(draft)
            yield from self._promoted(draft, now_s)

    def _promoted(self, draft: Draft, now_s: float) -> Iterator[Command]:
        """A branch has become the first draft of a run."""
        self._tally.began(self._briefing.planner, self._briefing.pace, by_branch=True)
        self.metrics.promoted(draft, now_s)
        if self.verifier:
            yield self._verify(draft, now_s)
            yield from self._await(now_s)

    def passed(self, passed: Pass, now_s: float) -> Iterator[Command]:
        """The drafter has nothing to propose after what is committed: waiting for it would be in vain.

        One that answers fast is asked again after a single token, since a draft that it finds then is worth a pass.
        Otherwise the verifier decodes on meanwhile, as without an answer; a draft that comes ends the run.
        """
        self._briefing.heard(now_s)
        self._briefing.passed(passed, now_s)
        if self.verifier and not self._debt.owes and passed.start == len(self.committed):
            yield from self._decode("nothing to draft", now_s, 1 if self._briefing.pace.answers_fast else RUN)

    def verified(self, verdict: Verdict, now_s: float) -> Iterator[Command]:
        """Commit what is new in the verdict, tell client and drafter, and see to the next move."""
        self._debt.has_answered, self._waits_until_s = True, now_s + self.limits.queue_timeout_s
        start = len(self.committed)
        known = start - verdict.start
        if known < 0 and self.verifier and (ask := self._debt.bridge()):
            yield Ask(self.verifier, ask)
        if known < 0 or known >= len(verdict.token_ids):
            return  # one before it was lost or overtaken, or it is repeated
        new, sources = cut(self.spec, start, verdict.token_ids[known:], verdict.sources[known:])
        mode = self._briefing.planner.mode if self.drafter else Mode.OFF
        self._tally.verified(verdict, start, sources, self._window.drafts, mode, now_s)
        asked_s = self._debt.asked_s(verdict.start)
        if self._verifier:
            self._tally.measured(verdict, sources, asked_s, self._briefing.pace, self._verifier.passes, now_s)
        self.committed += new
        told = slice(known, known + len(new))
        yield Emit(self.spec.request_id, new, sources, verdict.logprobs[told], verdict.top_logprobs[told])
        if reason := finish_reason(self.spec, self.committed):
            yield from self.finish(reason, now_s)
            return
        self._forgive()
        yield from self._settle(new, now_s)
        yield from self._await(now_s)

    def _forgive(self) -> None:
        """Tokens have come: what failed before them is no sign that the request cannot be served."""
        self.num_moves = 0
        if self.num_refusals and len(self.committed) >= self._refused_at + _FORGIVEN_AFTER:
            self.num_refusals -= 1
            self._refused_at = len(self.committed)

    def _settle(self, new: Tokens, now_s: float) -> Iterator[Command]:
        """Hold the new tokens against the drafts in flight, and tell the drafter."""
        epoch = self._window.epoch
        agrees = self._debt.settle()
        if promoted := self._window.promote(self.committed):
            yield from self._promoted(promoted, now_s)
        elif not agrees and self._decodes_after_miss and self.verifier:
            yield Ask(self.verifier, self._debt.decode(1))
        if self.drafter:
            if self.is_unheard:
                # Not waiting for it spares the wait, and changes nothing of its silence.
                self._briefing.pace.breaker.late(now_s)
            if self._briefing.rests:
                self._briefing.pace.did_without(len(new))
            yield from self._tell_drafter(now_s, ends_run=self._window.epoch > epoch and not self._window.drafts)

    def _tell_drafter(self, now_s: float, *, ends_run: bool) -> Iterator[Command]:
        """What is committed, and how to draft from here on."""
        assert self.drafter is not None
        assert self._verifier is not None
        passes, num_seqs = self._verifier.passes, self._verifier.num_seqs
        ask = self._briefing.commit(self._window.epoch, passes, num_seqs, now_s, ends_run=ends_run)
        self._tally.planned(self._briefing.planner)
        if ask:
            yield Ask(self.drafter, ask)

    # --- who moves next

    @property
    def _expects_drafts(self) -> bool:
        """Whether a draft is worth waiting for."""
        return self.drafter is not None and self._briefing.expects

    @property
    def _decodes_meanwhile(self) -> bool:
        """Whether the verifier decodes while a draft is awaited that is worth waiting for."""
        return self._expects_drafts and self._briefing.may_decode_meanwhile(is_redraft=self._window.awaits_run)

    @property
    def _decodes_after_miss(self) -> bool:
        """Whether the recovered token is forwarded at once where no branch was there for it.

        The verifier is not asked to do so of its own accord, since nobody knows beforehand whether one will be.
        """
        return self._expects_drafts and self._briefing.decodes_after_miss

    def _await(self, now_s: float) -> Iterator[Command]:
        """Arm the one deadline that fits: for the verifier's answer, or for the drafter's next draft."""
        if self._decodes_meanwhile and self._debt.owes and self._briefing.has_fallen_silent(now_s):
            yield from self._miss_draft(now_s)
        if self._debt.owes:
            self._debt.answered()
            self.deadline_s = now_s + self._debt.patience_s()
            goes_on = not self._expects_drafts or self._decodes_meanwhile
            if self.verifier and goes_on and self._debt.runs_out(self._run_length):
                yield Ask(self.verifier, self._debt.decode(self._run_length))
        elif self._decodes_meanwhile:
            self._briefing.went_on_without(now_s)
            yield from self._self_decode("far drafter", now_s)
        elif self._expects_drafts:
            if self._went_apart:
                yield from self._begin_anew()
            self.deadline_s = now_s + self._briefing.wait_s(self.limits.max_draft_wait_s)
        else:
            resting = "resting" if self._briefing.rests else "silent drafter"
            yield from self._self_decode(resting if self.drafter else "no drafter", now_s)

    def tick(self, now_s: float) -> Iterator[Command]:
        """The armed deadline has passed."""
        if self.verifier is None:
            wait_s = self.limits.queue_timeout_s
            yield from self.fail(Unavailable(f"no verifier was free within {wait_s:g} s; try again later"))
        elif self._debt.owes:
            yield from self._retry(now_s)
        else:
            self._briefing.pace.is_silent = True
            yield from self._self_decode("late draft", now_s)
            yield from self._miss_draft(now_s)

    def _miss_draft(self, now_s: float) -> Iterator[Command]:
        """The drafter is late. Perhaps a message was lost: resynchronise, keeping the run that is under way."""
        if self.drafter:
            self._briefing.missed(now_s)
            yield Ask(self.drafter, self._briefing.open(self._window.epoch))

    def _retry(self, now_s: float) -> Iterator[Command]:
        """Ask again for what is outstanding; a verifier that has been asked often enough counts as lost."""
        assert self.verifier is not None
        asks = self._debt.retry()
        if not asks:
            yield Ask(self.verifier, Close(self.spec.request_id))
            yield from self.lose_verifier(now_s)
            return
        self.deadline_s = now_s + self._debt.patience_s()
        for ask in asks:
            yield Ask(self.verifier, ask)

    @property
    def _is_apart(self) -> bool:
        """Whether a draft that comes now would compete with tokens that the verifier decodes by itself.

        When it comes may tell what is in it, so by rules that need rows it is not judged (docs/exactness.md). A
        trial's may be: how long a single token takes does not.
        """
        return self._went_apart and not self._briefing.planner.is_trying

    @property
    def _run_length(self) -> int:
        """Tokens of a decoding run."""
        return SHORT_RUN if self.rule.needs_rows and self.drafter else RUN

    def _begin_anew(self) -> Iterator[Command]:
        """Nothing that was drafted while the verifier went its own way is judged, be it on its way or half done."""
        assert self.drafter is not None
        self._went_apart = False
        yield Ask(self.drafter, Close(self.spec.request_id))
        yield Ask(self.drafter, self._briefing.open(self._window.restart()))

    def _self_decode(self, reason: str, now_s: float) -> Iterator[Command]:
        """Let the verifier go on alone: a drafter that hangs costs one wait, no more."""
        self._went_apart = self.rule.needs_rows
        yield from self._decode(reason, now_s, self._run_length)

    def _decode(self, reason: str, now_s: float, num_tokens: int) -> Iterator[Command]:
        """A draft ends the run."""
        assert self.verifier is not None
        if self.spec.mode is not Mode.OFF:
            self.metrics.fallbacks[reason] += 1
        yield Ask(self.verifier, self._debt.decode(num_tokens))
        yield from self._await(now_s)

    def _verify(self, draft: Draft, now_s: float) -> Ask:
        assert self.verifier is not None
        return Ask(self.verifier, self._debt.verify(draft, now_s, preverify=self._briefing.preverifies))

    # --- ends

    def finish(self, reason: FinishReason, now_s: float) -> Iterator[Command]:
        self._tally.ended(now_s)
        if self.drafter and self._verifier:
            self._briefing.ended(self._verifier.passes, self._verifier.num_seqs)
        yield from self._close()
        yield Finish(self.spec.request_id, reason, self.metrics)

    def fail(self, error: PacelineError) -> Iterator[Command]:
        yield from self._close()
        yield Fail(self.spec.request_id, error)

    def _close(self) -> Iterator[Command]:
        self.done = True
        self.deadline_s = math.inf
        self._briefing.detach()
        for worker in filter(None, (self.verifier, self.drafter)):
            yield Ask(worker, Close(self.spec.request_id))
