"""A small world in virtual time: the production core and the production sessions around toy models.

Everything random comes from one seed, which every failure prints. A world has an event budget, so that a livelock is
a failing test and not a hanging one. The network loses, delays, duplicates and reorders; workers die and come back.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import drafter.session
import verifier.session
from coordinator.core.commands import Ask, Command, Emit, Fail, Finish
from coordinator.core.events import Arrived, Drafted, Event, Passed, RequestSpec, Tick, Verified, WorkerDown, WorkerUp
from coordinator.core.limits import Limits
from coordinator.core.metrics import RequestMetrics
from coordinator.core.pipeline import Pipeline
from paceline.length_policy import LengthPolicy
from paceline.types import (
    Close,
    Commit,
    Decode,
    Draft,
    DrafterAsk,
    Mode,
    OpenDraft,
    OpenVerify,
    Pass,
    Role,
    Rule,
    SamplingParams,
    Source,
    Tokens,
    Verdict,
    VerifierAsk,
    Verify,
    WorkerInfo,
)

VOCABULARY = 50


def target_token(prefix: Sequence[int]) -> int:
    """The toy target: the greedy successor depends on the last three tokens and the length."""
    return hash((len(prefix), *prefix[-3:])) % VOCABULARY


def draft_token(prefix: Sequence[int], agreement: float) -> int:
    """The toy drafter: right with probability `agreement`, always the same way for the same prefix."""
    right = hash((*prefix[-4:], len(prefix), 7)) % 1000 < 1000 * agreement
    return target_token(prefix) if right else (target_token(prefix) + 1) % VOCABULARY


def has_guess(prefix: Sequence[int], share: float) -> bool:
    """Whether a drafter without a model finds something that goes on like `prefix`; for a share of all prefixes."""
    return hash((*prefix[-2:], len(prefix), 5)) % 1000 < 1000 * share


def greedy(prompt: Tokens, num_tokens: int) -> Tokens:
    tokens = list(prompt)
    for _ in range(num_tokens):
        tokens.append(target_token(tokens))
    return tuple(tokens[len(prompt) :])


@dataclass
class Network:
    """Probabilities per message, seconds per hop."""

    delay_s: float = 0.001
    jitter_s: float = 0.0
    loss: float = 0.0
    duplication: float = 0.0


class ToyVerifier:
    """One request after another in arrival order; a pass takes `pass_s`, asks that come meanwhile wait."""

    def __init__(self, world: World, name: str, pass_s: float) -> None:
        self.world, self.name, self.pass_s = world, name, pass_s
        self.sessions: dict[str, verifier.session.Session[bool]] = {}
        self.inbox: list[VerifierAsk] = []
        self.busy = self.dead = False
        self.num_passes = 0

    def receive(self, ask: VerifierAsk) -> None:
        self.inbox.append(ask)
        self._go()

    def _go(self) -> None:
        if self.busy or self.dead:
            return
        for ask in self.inbox:
            reply = self._handle(ask)
            if reply:
                self.world.send(self.name, reply)
        self.inbox.clear()
        works = [(session, work) for session in self.sessions.values() if (work := session.work())]
        if works:
            self.busy = True
            self.num_passes += 1
            self.world.at(self.pass_s, lambda: self._done(works))

    def _handle(self, ask: VerifierAsk) -> Verdict | None:
        now_s = self.world.now_s
        session = self.sessions.get(ask.request_id)
        match ask:
            case OpenVerify() if session:
                return session.reopen(ask, now_s)
            case OpenVerify():
                self.sessions[ask.request_id] = verifier.session.Session(ask, now_s)
            case Close():
                self.sessions.pop(ask.request_id, None)
            case Verify() if session:
                return session.verify(ask, now_s)
            case Decode() if session:
                return session.decode(ask, now_s)
        return None

    def _done(self, works: list[tuple[verifier.session.Session[bool], verifier.session.Work]]) -> None:
        self.busy = False
        if self.dead:
            return
        num_tokens = sum(len(work.token_ids) for _, work in works)
        for session, work in works:
            reply = self._apply(session, work)
            if reply:
                self.world.send(self.name, replace(reply, verify_ms=1e3 * self.pass_s, batch_tokens=num_tokens))
        self._go()

    def _apply(self, session: verifier.session.Session[bool], work: verifier.session.Work) -> Verdict | None:
        if work.need is verifier.session.Need.PREFILL:
            session.prefilled(len(work.token_ids), True)
            return None
        prefix = list(session.log)
        assert prefix[work.start :] == list(work.token_ids)[: len(prefix) - work.start]
        assert session.computed < len(prefix) or session.retained, "a row nobody computed was used"
        for n, token in enumerate(work.draft_ids):
            if token != target_token(prefix):
                return session.judged(work, n, target_token(prefix), Source.RECOVERED, None)
            prefix.append(token)
        if session.ask.rule.needs_rows and not work.take_bonus:
            return session.judged(work, len(work.draft_ids), None, Source.BONUS, True)
        source = Source.BONUS if work.drafts else Source.SELF_DECODED
        return session.judged(work, len(work.draft_ids), target_token(prefix), source, None)


class ToyDrafter:
    """Drafts one token for every request that wants one, each `token_s`, after a share `known` of all prefixes."""

    def __init__(self, world: World, name: str, token_s: float, agreement: float, known: float) -> None:
        self.world, self.name, self.token_s, self.agreement, self.known = world, name, token_s, agreement, known
        self.sessions: dict[str, drafter.session.Session[None]] = {}
        self.inbox: list[DrafterAsk] = []
        self.busy = self.dead = self.hung = False

    def receive(self, ask: DrafterAsk) -> None:
        self.inbox.append(ask)
        self._go()

    def _go(self) -> None:
        if self.busy or self.dead or self.hung:
            return
        for ask in self.inbox:
            for reply in self._handle(ask):
                self.world.send(self.name, reply)
        self.inbox.clear()
        wanting = [session for session in self.sessions.values() if session.wants_token()]
        if wanting:
            self.busy = True
            self.world.at(self.token_s, lambda: self._done(wanting))

    def _handle(self, ask: DrafterAsk) -> list[Draft | Pass]:
        session = self.sessions.get(ask.request_id)
        match ask:
            case OpenDraft() if session:
                return session.reopen(ask)
            case OpenDraft():
                self.sessions[ask.request_id] = drafter.session.Session(ask)
            case Close():
                self.sessions.pop(ask.request_id, None)
            case Commit() if session:
                session.commit(ask)
        return []

    def _done(self, wanting: list[drafter.session.Session[None]]) -> None:
        self.busy = False
        if self.dead:
            return
        for session in wanting:
            session.draft_ms += 1e3 * self.token_s
            stop = True
            if has_guess(session.tokens, self.known):
                token = draft_token(session.tokens, self.agreement)
                stop = session.push(token, stop=session.draft_length + 1 >= session.ask.policy["length"])
            if stop and not has_guess(session.tokens, self.known):
                session.exhaust()
            replies = [session.send(None)] if stop and session.draft_length else session.passes()
            for reply in replies:
                self.world.send(self.name, reply)
        self._go()


@dataclass
class Client:
    """What one client has been told."""

    spec: RequestSpec
    tokens: list[int] = field(default_factory=list)
    sources: list[Source] = field(default_factory=list)
    metrics: RequestMetrics | None = None
    error: Exception | None = None
    at_s: list[float] = field(default_factory=list)  # when each token came

    @property
    def done(self) -> bool:
        return self.metrics is not None or self.error is not None


class World:
    """See the top of the file."""

    def __init__(
        self, seed: int, *, network: Network | None = None, limits: Limits | None = None, budget: int = 200_000
    ) -> None:
        self.seed = seed
        self.random = random.Random(seed)
        self.network = network or Network()
        self.pipeline = Pipeline(limits or Limits())
        self.budget = budget
        self.now_s = 0.0
        self.num_events = 0
        self.clients: dict[str, Client] = {}
        self.workers: dict[str, ToyVerifier | ToyDrafter] = {}
        self.log: list[tuple[float, Event | Command]] = []
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()

    # --- building

    def verifier(self, name: str = "v0", *, pass_s: float = 0.016, places: int = 64) -> ToyVerifier:
        worker = ToyVerifier(self, name, pass_s)
        self._join(worker, name, Role.VERIFIER, places)
        return worker

    def drafter(
        self,
        name: str = "d0",
        *,
        token_s: float = 0.0013,
        agreement: float = 0.8,
        places: int = 64,
        known: float = 1.0,
    ) -> ToyDrafter:
        worker = ToyDrafter(self, name, token_s, agreement, known)
        self._join(worker, name, Role.DRAFTER, places)
        return worker

    def _join(self, worker: ToyVerifier | ToyDrafter, name: str, role: Role, places: int) -> None:
        self.workers[name] = worker
        info = WorkerInfo(role, name, 1, "toy", "", "", VOCABULARY, 4096, places, (), "float32", "cpu")
        self.feed(WorkerUp(name, info, is_trusted=True))

    def kill(self, name: str, *, seen_after_s: float = 0.0) -> None:
        """The worker stops at once; the coordinator learns of it after `seen_after_s`."""
        self.workers.pop(name).dead = True
        self.at(seen_after_s, lambda: self.feed(WorkerDown(name)))

    def request(
        self,
        request_id: str = "r0",
        *,
        prompt: Tokens = (1, 2, 3),
        max_tokens: int = 40,
        mode: Mode | None = Mode.PEARL,
        rule: Rule | None = None,
        length: int | None = 4,
        window: int = 2,
        stop_token_ids: Tokens = (),
    ) -> Client:
        spec = RequestSpec(
            request_id,
            prompt,
            max_tokens,
            SamplingParams(temperature=0),
            seed=1,
            draft_seed=2,
            stop_token_ids=stop_token_ids,
            mode=mode,
            rule=rule,
            policy=LengthPolicy.of("fixed", {"length": length}) if length else None,
            window=window,
        )
        client = self.clients[request_id] = Client(spec)
        self.feed(Arrived(spec))
        return client

    # --- running

    def at(self, delay_s: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._heap, (self.now_s + delay_s, next(self._order), action))

    def feed(self, event: Event) -> None:
        self.log.append((self.now_s, event))
        for command in self.pipeline.handle(event, self.now_s):
            self.log.append((self.now_s, command))
            self._carry_out(command)
        deadline_s = self.pipeline.next_deadline_s()
        if deadline_s < float("inf"):
            self.at(max(0.0, deadline_s - self.now_s), self._tick)

    def _tick(self) -> None:
        if self.pipeline.next_deadline_s() <= self.now_s:
            self.feed(Tick())

    def _carry_out(self, command: Command) -> None:
        match command:
            case Ask(worker, ask):
                self._hop(lambda: self._deliver(worker, ask))
            case Emit(request_id, token_ids, sources):
                client = self.clients[request_id]
                assert not client.done, f"seed {self.seed}: tokens after the end"
                client.tokens += token_ids
                client.sources += sources
                client.at_s += [self.now_s] * len(token_ids)
            case Finish(request_id, _, metrics):
                self.clients[request_id].metrics = metrics
            case Fail(request_id, error):
                self.clients[request_id].error = error

    def _deliver(self, name: str, ask: VerifierAsk | DrafterAsk) -> None:
        worker = self.workers.get(name)
        if worker:
            worker.receive(ask)  # type: ignore[arg-type]

    def send(self, name: str, reply: Draft | Pass | Verdict) -> None:
        event: Event
        match reply:
            case Draft():
                event = Drafted(name, reply)
            case Pass():
                event = Passed(name, reply)
            case Verdict():
                event = Verified(name, reply)
        self._hop(lambda: self.feed(event))

    def _hop(self, action: Callable[[], None]) -> None:
        network = self.network
        copies = 1 + (self.random.random() < network.duplication)
        for _ in range(copies):
            if self.random.random() >= network.loss:
                self.at(network.delay_s + self.random.random() * network.jitter_s, action)

    def run(self) -> World:
        """Until every request has ended; fails when the event budget is spent first."""
        while self._heap and not all(client.done for client in self.clients.values()):
            self.num_events += 1
            assert self.num_events <= self.budget, f"seed {self.seed}: event budget spent at {self.now_s:.3f} s"
            self.now_s, _, action = heapq.heappop(self._heap)
            action()
        for client in self.clients.values():
            assert client.done, f"seed {self.seed}: {client.spec.request_id} never ended"
        return self

    def check_lossless(self) -> None:
        """Every client has read exactly the target's own greedy output."""
        for name, client in self.clients.items():
            assert client.error is None, f"seed {self.seed}: {name}: {client.error}"
            expected = greedy(client.spec.token_ids, len(client.tokens))
            assert tuple(client.tokens) == expected, f"seed {self.seed}: {name} differs from greedy"
            assert len(client.sources) == len(client.tokens)
            if not set(expected) & set(client.spec.stop_token_ids):
                assert len(expected) == client.spec.max_tokens, f"seed {self.seed}: {name} is too short"
