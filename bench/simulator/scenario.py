"""What is simulated, as one value, and how it is run: workers, network, load, and what becomes of them."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

from bench.simulator.law import VOCABULARY, Agreement, Iid, Recorded, RecordedRequest
from bench.simulator.network import Network
from bench.simulator.outcome import Outcome
from bench.simulator.world import Client, World
from coordinator.core.events import RequestSpec
from coordinator.core.limits import Limits
from paceline.errors import Overloaded, Unavailable
from paceline.length_policy import LengthPolicy
from paceline.types import Mode, Rule, SamplingParams, StepCost, Tokens
from verifier.session import MAX_CHAIN_TOKENS

# As the demo pair takes on two cores with the target expanded to 90 M parameters (docs/benchmarks.md).
DEMO_VERIFY = StepCost(28.0, 1.1, 0.0, 0.0)
DEMO_DRAFT = StepCost(1.3, 0.0, 0.0, 0.0)
BUSY_LIMITS = Limits(max_waiting=1_000_000, queue_timeout_s=1e9)


@dataclass(frozen=True, slots=True)
class Pool:
    """Workers of one kind."""

    num_workers: int
    cost: StepCost
    places: int = 64  # requests that one takes at a time
    network: Network = field(default_factory=Network)  # between them and the coordinator
    mean_life_s: float = 0.0  # a worker dies after about this long (exponential); 0 = never
    restart_s: float = 5.0  # and another takes its place so much later
    seen_after_s: float = 0.0  # the coordinator learns of a death so much later
    acceptance: float | None = None  # of drafters: their own; None = the scenario's


@dataclass(frozen=True, slots=True)
class Load:
    """Requests and how they come: closed if `rate_per_s` is 0, else Poisson in bursts of `burst`."""

    num_requests: int = 32
    concurrency: int = 1  # closed: so many clients, each asks again when it has been answered
    rate_per_s: float = 0.0  # open: requests a second, whatever becomes of them
    burst: int = 1  # open: so many at once, the bursts so much rarer
    prompt_tokens: int = 64
    max_tokens: int = 96
    recorded: tuple[RecordedRequest, ...] = ()  # instead of the two above, in turn

    @property
    def is_one_by_one(self) -> bool:
        return not self.rate_per_s and self.concurrency == 1

    def sizes(self, index: int) -> tuple[int, int]:
        """Tokens of the prompt, and of the output at most."""
        if not self.recorded:
            return self.prompt_tokens, self.max_tokens
        request = self.recorded[index % len(self.recorded)]
        return request.num_prompt_tokens, request.num_generated_tokens


@dataclass(frozen=True, slots=True)
class Scenario:
    """A world to be run. The same value gives the same outcome, byte for byte."""

    seed: int = 0
    mode: Mode | None = Mode.PEARL  # None = auto
    rule: Rule | None = None
    length: int = 6  # tokens of a draft
    fixes_length: bool = False  # in mode auto too, where the controller chooses otherwise
    window: int | None = 4  # None = what is measured decides
    acceptance: float = 0.8  # chance that a drafted token is the target's, where nothing was recorded
    verifiers: Pool = field(default_factory=lambda: Pool(1, DEMO_VERIFY))
    drafters: Pool = field(default_factory=lambda: Pool(1, DEMO_DRAFT))
    other_drafters: tuple[Pool, ...] = ()  # of other kinds, beside those
    load: Load = field(default_factory=Load)
    coordinator_s: float = 0.0  # what the coordinator computes for an event
    limits: Limits = BUSY_LIMITS
    max_events: int = 0  # 0 = as many as a healthy world of this size needs many times over

    @property
    def policy(self) -> LengthPolicy | None:
        """When a draft ends; None = the controller's choice."""
        if self.mode is None and not self.fixes_length:
            return None
        return LengthPolicy.of("fixed", {"length": self.length})

    @property
    def num_drafters(self) -> int:
        """Of all kinds."""
        return sum(pool.num_workers for pool in (self.drafters, *self.other_drafters))

    @property
    def budget(self) -> int:
        if self.max_events:
            return self.max_events
        # A token takes about four events in `off` and fewer in the other modes, except where drafts are mostly wrong.
        longest = max((self.load.sizes(i)[1] for i in range(len(self.load.recorded) or 1)), default=1)
        return 1_000_000 + 200 * self.load.num_requests * longest


Advance = Callable[[Client], None]


class Simulation:
    """A scenario that runs. `advance` is called with each client that has been answered to the end."""

    def __init__(self, scenario: Scenario, advance: Advance | None = None) -> None:
        self.scenario = scenario
        self.outcome = Outcome()
        self._advance = advance
        self._recorded: dict[str, RecordedRequest] = {}
        self._chance = random.Random(f"{scenario.seed} load")  # apart from the world's: the same load in every mode
        self._deaths = random.Random(f"{scenario.seed} deaths")  # likewise the same deaths
        self._num_asked = 0
        self._names = {"v": 0, "d": 0}
        self.world = World(
            scenario.seed, limits=scenario.limits, budget=scenario.budget, coordinator_s=scenario.coordinator_s
        )
        self.world.on_end = self._ended

    def run(self) -> Outcome:
        """Run it to its end. Raises Broken if the world breaks a promise."""
        scenario, world = self.scenario, self.world
        drafters = [("d", pool) for pool in (scenario.drafters, *scenario.other_drafters)]
        for kind, pool in (("v", scenario.verifiers), *drafters):
            for _ in range(pool.num_workers):
                self._join(kind, pool)
        if scenario.load.rate_per_s:
            self._arrive()
        else:
            for _ in range(scenario.load.concurrency):
                self._ask()
        world.run(lambda: self.outcome.num_ended == scenario.load.num_requests)
        self.outcome.seconds = world.now_s
        self.outcome.num_events = world.num_events
        for worker in world.workers.values():
            self.outcome.busy_s[worker.name[0]] += worker.busy_s
        world.check_nothing_leaked()
        return self.outcome

    # --- workers

    def _join(self, kind: str, pool: Pool) -> None:
        name = f"{kind}{self._names[kind]}"
        self._names[kind] += 1
        if kind == "v":
            self.world.add_verifier(name, pool.cost, places=pool.places, network=pool.network)
        else:
            agreement = self._agreement(pool.acceptance)
            self.world.add_drafter(name, pool.cost, agreement, places=pool.places, network=pool.network)
        if pool.mean_life_s:
            self.world.at(self._deaths.expovariate(1 / pool.mean_life_s), self._die, name, kind, pool)

    def _die(self, name: str, kind: str, pool: Pool) -> None:
        self.outcome.busy_s[kind] += self.world.workers[name].busy_s
        self.outcome.num_deaths += 1
        self.world.kill(name, seen_after_s=pool.seen_after_s)
        self.world.at(pool.restart_s, self._join, kind, pool)

    def _agreement(self, acceptance: float | None = None) -> Agreement:
        chance = Iid(self.scenario.acceptance if acceptance is None else acceptance)
        return Recorded(chance, self._recorded) if self.scenario.load.recorded else chance

    # --- clients

    def _arrive(self) -> None:
        """The next burst of an open load, and when the one after it comes."""
        load = self.scenario.load
        for _ in range(load.burst):
            self._ask()
        if self._num_asked < load.num_requests:
            self.world.at(self._chance.expovariate(load.rate_per_s / load.burst), self._arrive)

    def _ask(self) -> None:
        scenario, index = self.scenario, self._num_asked
        if index == scenario.load.num_requests:
            return
        self._num_asked += 1
        num_prompt_tokens, max_tokens = scenario.load.sizes(index)
        spec = RequestSpec(
            request_id=f"r{index}",
            token_ids=self._prompt(num_prompt_tokens),
            max_tokens=max_tokens,
            sampling=SamplingParams(temperature=0),
            seed=index,
            draft_seed=index,
            mode=scenario.mode,
            rule=scenario.rule,
            policy=scenario.policy,
            window=scenario.window,
        )
        if recorded := scenario.load.recorded:
            self._recorded[spec.request_id] = recorded[index % len(recorded)]
        self.world.submit(spec)

    def _prompt(self, num_tokens: int) -> Tokens:
        return tuple(self._chance.randrange(VOCABULARY) for _ in range(num_tokens))

    def _ended(self, client: Client) -> None:
        """Check the client's output, count it, and forget it: there may be very many."""
        if not isinstance(client.error, Overloaded | Unavailable):
            self.world.check_client(client)
        self.outcome.count(client, self.world.now_s)
        if self.scenario.load.is_one_by_one:
            self.outcome.oracle_s += oracle_s(client, self.scenario.verifiers.cost, self._agreement())
        del self.world.clients[client.spec.request_id]
        self._recorded.pop(client.spec.request_id, None)
        if self._advance:
            self._advance(client)
        if not self.scenario.load.rate_per_s:
            self.world.at(0.0, self._ask)


def run(scenario: Scenario, advance: Advance | None = None) -> Outcome:
    return Simulation(scenario, advance).run()


def modes(scenario: Scenario, among: tuple[Mode | None, ...]) -> Iterator[Scenario]:
    """The same world in each mode: the same seed, so the same requests and the same luck."""
    for mode in among:
        yield replace(scenario, mode=mode)


def oracle_s(client: Client, cost: StepCost, agreement: Agreement) -> float:
    """Seconds for the client's output with a free drafter next door that stops before each rejection.

    No mode can be faster with these verifiers and this acceptance: every pass yields all that it can.
    """
    name, num_prompt_tokens = client.spec.request_id, len(client.spec.token_ids)
    tokens = [*client.spec.token_ids, *client.tokens]
    at, total_ms = num_prompt_tokens + 1, cost.ms(num_prompt_tokens, 1, 0)
    while at < len(tokens):
        num_right = 0
        while at + num_right < len(tokens) - 1 and num_right < MAX_CHAIN_TOKENS:
            if not agreement.agrees(name, tokens[: at + num_right]):
                break
            num_right += 1
        total_ms += cost.ms(num_right + 1, 1, at)
        at += num_right + 1
    return total_ms / 1e3
