"""A world in virtual time: the production core and the production sessions around toy models.

The third shell of `coordinator/core`. Everything random comes from one seed, which every failure names; the same seed
gives the same world, event by event. Workers die and come back, the network does what `Network` says, and whatever
happens every client must read the target's own greedy output.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Self

from bench.simulator.clock import BudgetSpent, Clock
from bench.simulator.law import VOCABULARY, Agreement, Iid, greedy
from bench.simulator.network import Network, Path
from bench.simulator.workers import Drafter, Verifier
from coordinator.core.commands import Ask, Command, Emit, Fail, Finish
from coordinator.core.events import Arrived, Event, RequestSpec, Tick, WorkerDown, WorkerRenewed, WorkerUp, event_of
from coordinator.core.limits import Limits
from coordinator.core.metrics import RequestMetrics
from coordinator.core.pipeline import Pipeline
from paceline.errors import Overloaded, PacelineError
from paceline.types import Branch, Draft, DrafterAsk, Pass, Role, Source, StepCost, Verdict, VerifierAsk, WorkerInfo

RENEWAL_S = 10 / 3  # between two heartbeats of a worker: a third of the usual lease
MAX_MODEL_LEN = 1 << 20  # the toy models have no context; a bound, so that it is seen if one were needed


class Broken(PacelineError):
    """A world that did not keep what the system promises: a bug, with the seed that shows it."""


@dataclass(slots=True)
class Client:
    """What one client has been told."""

    spec: RequestSpec
    arrived_s: float = 0.0
    tokens: list[int] = field(default_factory=list)
    sources: list[Source] = field(default_factory=list)
    metrics: RequestMetrics | None = None
    error: Exception | None = None
    at_s: list[float] = field(default_factory=list)  # when each token came

    @property
    def is_done(self) -> bool:
        return self.metrics is not None or self.error is not None


@dataclass(slots=True)
class _Link:
    """A worker and the way to it and back."""

    worker: Verifier | Drafter
    there: Path
    back: Path
    info: WorkerInfo


class World:
    """See the top of the file."""

    def __init__(
        self,
        seed: int,
        *,
        network: Network | None = None,
        limits: Limits | None = None,
        budget: int = 200_000,
        coordinator_s: float = 0.0,
        is_logged: bool = False,
    ) -> None:
        """`coordinator_s`: what the coordinator computes for an event; events wait for one another. `is_logged`: keep
        every event and command in `log`."""
        self.seed = seed
        self.random = random.Random(seed)
        self.network = network or Network()
        self.pipeline = Pipeline(limits or Limits())
        self.clients: dict[str, Client] = {}
        self.num_open = 0  # clients that have not been answered to the end
        self.on_end: Callable[[Client], None] | None = None
        self.log: list[tuple[float, Event | Command]] = []
        self._clock = Clock(budget)
        self._links: dict[str, _Link] = {}
        self._coordinator_s = coordinator_s
        self._free_s = 0.0  # when the coordinator has handled what has come
        self._tick_s = math.inf  # the earliest tick that is planned
        self._is_logged = is_logged

    # --- what a worker needs of it

    @property
    def now_s(self) -> float:
        return self._clock.now_s

    def at(self, delay_s: float, action: Callable[..., object], *arguments: Any) -> None:
        self._clock.at(delay_s, action, *arguments)

    def send(self, worker: str, reply: Draft | Branch | Pass | Verdict) -> None:
        """Send a reply to the coordinator; it arrives even if the worker dies meanwhile."""
        event = event_of(worker, reply)
        link = self._links.get(worker)
        if link:
            for arrival_s in link.back.arrivals_s(self.now_s):
                self._clock.at_time(arrival_s, self._arrive, event)

    # --- building

    @property
    def num_events(self) -> int:
        return self._clock.num_events

    @property
    def workers(self) -> dict[str, Verifier | Drafter]:
        return {name: link.worker for name, link in self._links.items()}

    def add_verifier(self, name: str, cost: StepCost, *, places: int = 64, network: Network | None = None) -> Verifier:
        worker = Verifier(self, name, cost)
        self._join(worker, Role.VERIFIER, places, network)
        return worker

    def add_drafter(
        self,
        name: str,
        cost: StepCost,
        agreement: Agreement,
        *,
        places: int = 64,
        network: Network | None = None,
        known: float = 1.0,
    ) -> Drafter:
        """`known`: of how many prefixes it knows how they go on; 1 for a drafter with a model."""
        worker = Drafter(self, name, cost, agreement, known=known)
        # Drafters that agree with the target equally often hold the same weights.
        self._join(
            worker, Role.DRAFTER, places, network, f"toy {agreement.rate}" if isinstance(agreement, Iid) else "toy"
        )
        return worker

    def _join(
        self, worker: Verifier | Drafter, role: Role, places: int, network: Network | None, model_hash: str = "toy"
    ) -> None:
        network = network or self.network
        info = WorkerInfo(
            role,
            worker.name,
            1,
            "toy",
            model_hash,
            "",
            VOCABULARY,
            MAX_MODEL_LEN,
            places,
            (),
            "float32",
            "cpu",
            worker.cost,
        )
        there, back = Path(network, self.random), Path(network, self.random)
        link = self._links[worker.name] = _Link(worker, there, back, info)
        self.feed(WorkerUp(worker.name, info, is_trusted=True, rtt_s=2 * network.delay_s))
        self.at(RENEWAL_S, self._renew, link)

    def _renew(self, link: _Link) -> None:
        """A heartbeat of a worker; whatever befalls its messages, the coordinator has heard of it."""
        worker = link.worker
        if self._links.get(worker.name) is link:
            if not worker.hung:
                self.feed(WorkerRenewed(worker.name, replace(link.info, num_requests=len(worker.sessions))))
            self.at(RENEWAL_S, self._renew, link)

    def kill(self, name: str, *, seen_after_s: float = 0.0) -> None:
        """The worker stops at once; the coordinator learns of it after `seen_after_s`."""
        self._links.pop(name).worker.is_dead = True
        self.at(seen_after_s, self.feed, WorkerDown(name))

    def submit(self, spec: RequestSpec) -> Client:
        """A client asks now."""
        client = self.clients[spec.request_id] = Client(spec, self.now_s)
        self.num_open += 1
        self._arrive(Arrived(spec))
        return client

    # --- running

    def _arrive(self, event: Event) -> None:
        """An event has reached the coordinator, which may have others to handle first."""
        if not self._coordinator_s:
            self.feed(event)
            return
        self._free_s = max(self._free_s, self.now_s) + self._coordinator_s
        self._clock.at_time(self._free_s, self.feed, event)

    def feed(self, event: Event) -> None:
        """Let the core handle an event, and do what it says."""
        if self._is_logged:
            self.log.append((self.now_s, event))
        for command in self.pipeline.handle(event, self.now_s):
            if self._is_logged:
                self.log.append((self.now_s, command))
            self._carry_out(command)
        self._plan_tick()

    def _plan_tick(self) -> None:
        deadline_s = self.pipeline.next_deadline_s()
        if deadline_s < self._tick_s:
            self._tick_s = deadline_s
            self._clock.at_time(max(self.now_s, deadline_s), self._tick, deadline_s)

    def _tick(self, planned_s: float) -> None:
        if planned_s != self._tick_s:
            return  # an earlier one was planned since, and has seen to the next
        self._tick_s = math.inf
        if self.pipeline.next_deadline_s() <= self.now_s:
            self.feed(Tick())
        else:
            self._plan_tick()

    def _carry_out(self, command: Command) -> None:
        match command:
            case Ask(name, ask):
                link = self._links.get(name)
                if link:
                    for arrival_s in link.there.arrivals_s(self.now_s):
                        self._clock.at_time(arrival_s, self._deliver, name, ask)
            case Emit(request_id, token_ids, sources):
                client = self.clients[request_id]
                if client.is_done:
                    raise Broken(f"seed {self.seed}: {request_id} got tokens after its end")
                client.tokens += token_ids
                client.sources += sources
                client.at_s += [self.now_s] * len(token_ids)
            case Finish(request_id, _, metrics):
                self._end(request_id, metrics, None)
            case Fail(request_id, error):
                self._end(request_id, None, error)

    def _end(self, request_id: str, metrics: RequestMetrics | None, error: Exception | None) -> None:
        client = self.clients[request_id]
        if client.is_done:
            raise Broken(f"seed {self.seed}: {request_id} ended twice")
        client.metrics, client.error = metrics, error
        self.num_open -= 1
        if self.on_end:
            self.on_end(client)

    def _deliver(self, name: str, ask: VerifierAsk | DrafterAsk) -> None:
        link = self._links.get(name)
        if link:
            link.worker.receive(ask)  # type: ignore[arg-type]

    def run(self, is_over: Callable[[], bool] | None = None) -> Self:
        """Until every client has been answered, or `is_over()`. Raises Broken, also when the budget is spent first."""
        is_over = is_over or (lambda: not self.num_open)
        try:
            while not is_over() and self._clock.advance():
                pass
        except BudgetSpent as error:
            raise Broken(f"seed {self.seed}: {error}; {self.num_open} requests are open") from None
        if not is_over():
            raise Broken(f"seed {self.seed}: {self.num_open} requests never ended")
        return self

    # --- what must hold

    def check_lossless(self) -> None:
        """Every client has read exactly the target's own output. Raises Broken."""
        for client in self.clients.values():
            self.check_client(client)

    def check_client(self, client: Client) -> None:
        """This one has read exactly the target's own output, all of it. Raises Broken."""
        spec = client.spec
        if client.error:
            raise Broken(f"seed {self.seed}: {spec.request_id}: {client.error}")
        expected = greedy(spec.token_ids, len(client.tokens))
        if tuple(client.tokens) != expected or len(client.sources) != len(client.tokens):
            raise Broken(f"seed {self.seed}: {spec.request_id} differs from the target's own output")
        if not set(expected) & set(spec.stop_token_ids) and len(expected) != spec.max_tokens:
            raise Broken(f"seed {self.seed}: {spec.request_id} has {len(expected)} of {spec.max_tokens} tokens")

    def check_nothing_leaked(self) -> None:
        """No request is left, with the coordinator or with a worker. To be called when all have ended. Raises Broken.

        Lets the messages arrive that are still on their way. Where they may be lost, doubled or overtaken, a worker may
        be left with a session: then only its stream's end frees it.
        """
        last_s = self.now_s + 60.0  # what is on its way arrives within a minute; later is churn, which never ends
        while self.now_s < last_s and self._holders():
            if not self._clock.advance():
                break
        pipeline = self.pipeline
        left = pipeline.num_running + pipeline.num_waiting + sum(len(worker.requests) for worker in pipeline.pools)
        if left:
            raise Broken(f"seed {self.seed}: the core still holds {left} requests or places")
        if holders := self._holders():
            raise Broken(f"seed {self.seed}: {', '.join(holders)} still hold requests")

    def _holders(self) -> list[str]:
        """Workers that hold a request although they have been told to forget it."""
        links = (link for link in self._links.values() if link.there.is_faithful and not link.worker.hung)
        return [link.worker.name for link in links if link.worker.sessions]


def is_refusal(client: Client) -> bool:
    """Whether the client was told at once to come back later, which is lawful under load."""
    return isinstance(client.error, Overloaded)
