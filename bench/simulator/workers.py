"""Workers in virtual time: the production sessions and the production batcher around toy models.

Like the engines, a worker handles asks between its passes only, puts all that is ready into one pass, and answers when
the pass ends. How long a pass takes is a `StepCost`: the numbers that real workers measure of themselves. Deliberately
absent: the KV pool's blocks (room is counted in requests) and whatever else shares the worker's processor.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Generic, Protocol, TypeVar

import drafter.session
import verifier.session
from bench.simulator.law import REACH, Agreement, draft_token, has_guess, others, successor
from drafter.branches import Offshoot
from drafter.chain import Choice
from drafter.room import CATCH_UP, Room
from paceline.types import (
    Branch,
    Close,
    Commit,
    Decode,
    Draft,
    DrafterAsk,
    OpenDraft,
    OpenVerify,
    Pass,
    Rule,
    Source,
    StepCost,
    Verdict,
    VerifierAsk,
    Verify,
)
from verifier.batcher import Budget, Ready, plan
from verifier.session import Need, Work

_DOUBT = 0.2  # of every row: the toy drafters do not know where they are wrong

Ask = TypeVar("Ask")
Session = verifier.session.Session[bool]
DraftSession = drafter.session.Session[None]


class Shell(Protocol):
    """What a worker needs of its world."""

    @property
    def now_s(self) -> float: ...

    def at(self, delay_s: float, action: Callable[..., object], *arguments: Any) -> None: ...

    def send(self, worker: str, reply: Draft | Branch | Pass | Verdict) -> None: ...


@dataclass(slots=True)
class Run:
    """Passes of the same shape, one after the other; `done` is told at the end of the last."""

    start_s: float
    pass_s: float
    num_passes: int
    done: Callable[[Run], None]

    @property
    def end_s(self) -> float:
        return self.start_s + self.num_passes * self.pass_s


class Worker(Generic[Ask]):
    """What both kinds share: an inbox, and one pass at a time."""

    def __init__(self, shell: Shell, name: str, cost: StepCost) -> None:
        self.shell, self.name, self.cost = shell, name, cost
        self.inbox: list[Ask] = []
        self.is_dead = self.hung = False
        self.num_passes = 0
        self.busy_s = 0.0
        self._run: Run | None = None  # what is computed now

    def receive(self, ask: Ask) -> None:
        self.inbox.append(ask)
        if self._run:
            self._cut(self._run)
        else:
            self._go()

    def _go(self) -> None:
        if self.is_dead or self.hung:
            return
        for ask in self.inbox:
            for reply in self._handle(ask):
                self.shell.send(self.name, reply)
        self.inbox.clear()
        self._begin()

    def _forward(self, shapes: Sequence[tuple[int, int]], done: Callable[[Run], None], num_passes: int = 1) -> None:
        """Passes over `shapes`, the (tokens, cached tokens) of each request; `done` follows at their end."""
        num_seqs = len(shapes)
        num_tokens, context = sum(tokens for tokens, _ in shapes), sum(cached for _, cached in shapes) / num_seqs
        pass_s = 1e-3 * self.cost.ms(num_tokens, num_seqs, context)
        self._run = Run(self.shell.now_s, pass_s, num_passes if pass_s else 1, done)
        self.shell.at(self._run.num_passes * pass_s, self._end, self._run, self._run.num_passes)

    def _cut(self, run: Run) -> None:
        """Asks are taken between passes: end the run with the pass that is under way."""
        if run.num_passes == 1:
            return
        num_passes = 1 + int((self.shell.now_s - run.start_s) / run.pass_s)
        if num_passes < run.num_passes:
            run.num_passes = num_passes
            self.shell.at(max(0.0, run.end_s - self.shell.now_s), self._end, run, num_passes)

    def _end(self, run: Run, num_passes: int) -> None:
        if run is not self._run or num_passes != run.num_passes or self.is_dead:
            return
        self._run = None
        self.num_passes += num_passes
        self.busy_s += num_passes * run.pass_s
        run.done(run)
        self._go()

    def _handle(self, ask: Ask) -> Sequence[Draft | Branch | Pass | Verdict]:
        raise NotImplementedError

    def _begin(self) -> None:
        """Start a pass if there is anything to do."""
        raise NotImplementedError


class Verifier(Worker[VerifierAsk]):
    """Sessions of `verifier.session`, passes by `verifier.batcher.plan`."""

    def __init__(self, shell: Shell, name: str, cost: StepCost, budget: Budget | None = None) -> None:
        super().__init__(shell, name, cost)
        self.budget = budget or Budget()
        self.sessions: dict[str, Session] = {}
        self._active: dict[str, None] = {}  # those that may have work; a set that remembers its order

    def _handle(self, ask: VerifierAsk) -> Sequence[Verdict]:
        now_s = self.shell.now_s
        session = self.sessions.get(ask.request_id)
        self._active[ask.request_id] = None
        verdict: Verdict | None = None
        match ask:
            case OpenVerify() if session:
                verdict = session.reopen(ask, now_s)
            case OpenVerify():
                self.sessions[ask.request_id] = verifier.session.Session(ask, now_s)
            case Verify() if session:
                verdict = session.verify(ask, now_s)
            case Decode() if session:
                verdict = session.decode(ask, now_s)
            case Close():
                self.sessions.pop(ask.request_id, None)
                del self._active[ask.request_id]
            case _:  # it was closed while the ask was on its way
                del self._active[ask.request_id]
        return (verdict,) if verdict else ()

    def _begin(self) -> None:
        works = {name: work for name in list(self._active) if (work := self._wanted(name))}
        if not works:
            return
        shares = plan([_ready(self.sessions[name], work) for name, work in works.items()], self.budget)
        shapes = [(share, works[name].start) for name, share in shares.items()]
        self._forward(shapes, partial(self._forwarded, works, shares))

    def _wanted(self, name: str) -> Work | None:
        """What the session wants forwarded, once all is done for which a retained row suffices (as in the engine)."""
        session = self.sessions[name]
        while work := session.work():
            if session.retained is None:
                return work
            if work.need is Need.JUDGE:
                right = successor(len(session.log), session.log[-REACH:]) == work.draft_ids[0]
                if right or session.ask.rule is Rule.BLOCK:
                    return work
            verdict = judge(session, work)
            self.shell.send(self.name, replace(verdict, queue_ms=1e3 * (self.shell.now_s - session.since_s)))
        del self._active[name]
        return None

    def _forwarded(self, works: dict[str, Work], shares: dict[str, int], run: Run) -> None:
        num_tokens = sum(shares.values())
        for name, share in shares.items():
            session, work = self.sessions[name], works[name]
            if share < len(work.token_ids):
                session.prefilled(share, None)
            elif work.need is Need.PREFILL:
                session.prefilled(share, True)
            else:
                queue_ms = max(0.0, 1e3 * (run.start_s - session.since_s))
                verdict = replace(
                    judge(session, work), verify_ms=1e3 * run.pass_s, queue_ms=queue_ms, batch_tokens=num_tokens
                )
                session.since_s = self.shell.now_s
                self.shell.send(self.name, verdict)


def _ready(session: Session, work: Work) -> Ready:
    num_drafted = len(work.draft_ids)
    return Ready(session.ask.request_id, len(work.token_ids) - num_drafted, num_drafted, session.since_s)


def judge(session: Session, work: Work) -> Verdict:
    """What every rule decides where both laws are certain of their token: keep drafted ones while they are right."""
    log, draft_ids = session.log, work.draft_ids
    assert log[work.start :] == list(work.token_ids[: len(log) - work.start]), "another log was forwarded"
    assert work.start < len(log) or session.retained, "a row nobody computed was used"
    position, tail = len(log), log[-REACH:]
    for num_accepted, token in enumerate(draft_ids):
        right = successor(position + num_accepted, tail)
        if token != right:
            return session.judged(work, num_accepted, right, Source.RECOVERED, None)
        tail = [*tail[-REACH + 1 :], token]
    if session.ask.rule.needs_rows and not work.take_bonus:
        return session.judged(work, len(draft_ids), None, Source.BONUS, True)
    source = Source.BONUS if work.drafts else Source.SELF_DECODED
    return session.judged(work, len(draft_ids), successor(position + len(draft_ids), tail), source, None)


class Drafter(Worker[DrafterAsk]):
    """Sessions of `drafter.session`: a token a pass for every request that wants one, prompts in the room left."""

    def __init__(
        self,
        shell: Shell,
        name: str,
        cost: StepCost,
        agreement: Agreement,
        *,
        max_num_batched_tokens: int = 512,
        known: float = 1.0,
    ) -> None:
        """`known`: the share of prefixes after which it has anything to propose."""
        super().__init__(shell, name, cost)
        self.agreement, self.known = agreement, known
        self.sessions: dict[str, DraftSession] = {}
        self._max_num_batched_tokens = max_num_batched_tokens
        self._active: dict[str, None] = {}

    def _handle(self, ask: DrafterAsk) -> Sequence[Draft | Pass]:
        name = ask.request_id
        session = self.sessions.get(name)
        match ask:
            case OpenDraft():
                self._active[name] = None
                if session:
                    return session.reopen(ask)
                self.sessions[name] = drafter.session.Session(ask)
            case Commit() if session:
                self._active[name] = None
                session.commit(ask)
            case Close():
                self.sessions.pop(name, None)
                self._active.pop(name, None)
        return ()

    def _begin(self) -> None:
        for name in [name for name in self._active if not self.sessions[name].wants_token()]:
            del self._active[name]
        going, shapes, room = [], [], self._max_num_batched_tokens
        for name in sorted(self._active, key=lambda name: _num_pending(self.sessions[name])):
            session = self.sessions[name]
            num_tokens = min(room, _num_pending(session))
            if not num_tokens:
                break
            shapes.append((num_tokens, session.computed))
            going.append(session)
            room -= num_tokens
        branches = self._branches(shapes)
        if going or branches:
            shares = [tokens for tokens, _ in shapes]
            shapes += [(_num_pending(branch), branch.computed) for _, branch in branches]
            num_passes = 1 if branches else self._num_alike(going, shares)
            self._forward(shapes, partial(self._forwarded, going, shares, branches), num_passes)

    def _branches(self, others: Sequence[tuple[int, int]]) -> list[tuple[DraftSession, Offshoot[None]]]:
        """The branches that take part in a pass, with whose they are: those under way, then new ones."""
        room = Room(self.cost, others)
        wanting = [session for session in self.sessions.values() if session.ask.branches]
        taken: list[tuple[DraftSession, Offshoot[None]]] = []
        for session in wanting:
            for branch in session.branches.growing:
                if room.takes(_num_pending(branch), branch.computed):
                    room.add(_num_pending(branch), branch.computed)
                    taken.append((session, branch))
        while wanting:
            for session in list(wanting):
                outcome = session.next_outcome() if room.takes(CATCH_UP, session.computed) else None
                if outcome is None:
                    wanting.remove(session)
                    continue
                branch = session.begin_branch(outcome)
                branch.computed = max(0, len(branch.tokens) - CATCH_UP)
                room.add(_num_pending(branch), branch.computed)
                taken.append((session, branch))
        return taken

    def _num_alike(self, going: Sequence[DraftSession], shares: Sequence[int]) -> int:
        """How many passes, this one included, differ in nothing, and end no draft before the last of them.

        They are simulated as one event, which an ask that comes meanwhile cuts short.
        """
        if len(going) < len(self._active) or max(shares) > 1 or any(s.ask.stop_token_ids for s in going):
            return 1
        if self.known < 1:
            return 1
        # At least one: a plan that shortens drafts may find one that is longer already.
        return max(1, min(min(_length(s) - s.draft_length, s.ask.end - len(s.tokens)) for s in going))

    def _forwarded(
        self,
        going: Sequence[DraftSession],
        shares: Sequence[int],
        branches: Sequence[tuple[DraftSession, Offshoot[None]]],
        run: Run,
    ) -> None:
        pass_ms = 1e3 * run.pass_s
        for session, num_tokens in zip(going, shares, strict=True):
            length = _length(session)
            for _ in range(run.num_passes):
                session.draft_ms += pass_ms
                session.computed += num_tokens
                if session.computed < len(session.tokens):
                    continue  # a part of a prompt
                stop = True
                if has_guess(session.tokens, self.known):
                    stop = self._push(session, length)
                if stop:
                    self._send(session)
        for session, branch in branches:
            branch.computed = len(branch.tokens)
            branch.draft_ms += pass_ms / (len(going) + len(branches))
            if self._push(branch, _length(session)):
                self.shell.send(self.name, branch.send(None))

    def _push(self, chain: DraftSession | Offshoot[None], length: int) -> bool:
        """The next token; whether the draft is complete with it."""
        name, tokens = chain.ask.request_id, chain.tokens
        choice = Choice(_DOUBT, others(self.agreement, name, tokens)) if chain.ask.branches else None
        stop = chain.draft_length + 1 >= length
        return chain.push(draft_token(self.agreement, name, tokens), stop=stop, choice=choice)

    def _send(self, session: DraftSession) -> None:
        """The draft that is complete, or that there is none."""
        if not has_guess(session.tokens, self.known):
            session.exhaust()
        for reply in [session.send(None)] if session.draft_length else session.passes():
            self.shell.send(self.name, reply)


def _length(session: DraftSession) -> int:
    """Tokens of a draft: the toy drafters have no rows, so only the policy `fixed` means anything to them."""
    return int(session.ask.policy["length"])


def _num_pending(chain: DraftSession | Offshoot[None]) -> int:
    return len(chain.tokens) - chain.computed
