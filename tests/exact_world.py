"""A world in which every coin falls every way: the shipped core, engines, sessions and rules, in fractions.

One request, one drafter and one verifier over the toy laws of `World`, and a *schedule*: a string of letters, each one
thing that the network or time does. For a given schedule the whole system is run once for every combination of coins,
and the law of what the client reads comes out as fractions that must be the target's own.

Coins are kept by the full keys of `paceline.noise`. One that is asked for again lies in what is left of its interval,
so noise that is used twice, for another draft or after a failure, shows as it would in the real thing. Where a coin is
cut is known from the equations, as in `tests.verifier.test_enumeration`.

    D  the drafter takes its asks and drafts one token     d  the core hears the drafter's oldest message
    V  the verifier takes its asks and does one step       v  the core hears the verifier's oldest message
    T  the core's deadline passes                          P  the verifier's cache is taken from the request
    x  the drafter's oldest message is lost                X  the verifier's oldest message is lost
    c  the oldest ask of the drafter is lost               C  the oldest ask of the verifier is lost
    2  the drafter's newest message comes twice            q  the newest ask of the verifier comes twice
    r  the drafter's messages change their order           R  the verifier's asks change theirs
    k  the drafter dies and another one comes              K  the verifier dies and another one comes

What a letter finds no object for does nothing. After the schedule everything goes on as it should.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cache
from typing import Any

import pytest

import paceline.noise
import verifier.judging
import verifier.rules
from coordinator.core.commands import Ask, Emit, Fail, Finish
from coordinator.core.events import Arrived, Event, RequestSpec, Tick, WorkerDown, WorkerUp, event_of
from coordinator.core.limits import Limits
from coordinator.core.pace import Pace
from coordinator.core.pipeline import Pipeline
from drafter.engine import DrafterEngine
from paceline import rows
from paceline.length_policy import LengthPolicy
from paceline.noise import Domain
from paceline.rows import DraftRows
from paceline.types import Fault, Mode, Role, Rule, SamplingParams, Source, Tokens, WorkerInfo
from tests.verifier.test_block import block_cuts
from tests.verifier.test_engine import ToyRunner
from tests.verifier.test_enumeration import Cuts, Law, Row, World, as_logits, cuts_of, token_cuts
from verifier.engine import VerifierEngine

PROMPT = (0,)
SEED, DRAFT_SEED = 1, 2
MAX_ACTIONS = 300  # of a run: a livelock is a failing test


class Begun(World):
    """A world whose first token is certain, and takes no coin: by rules that need rows nobody drafts for it."""

    @cache  # noqa: B019
    def target(self, prefix: Tokens) -> Row:
        return super().target(prefix) if prefix else tuple(map(Fraction, (1, *[0] * (self.vocab_size - 1))))


BEGIN = "Vv"  # the first letters of a schedule there


@dataclass(frozen=True, slots=True)
class Setting:
    """What is asked of the system."""

    rule: Rule
    length: int = 2  # tokens of a draft
    window: int = 2
    max_tokens: int = 3
    preverify: bool = True
    branches: bool = False


@dataclass
class Chance:
    """The coins of one run: intervals that shrink each time they are asked for, by the choices of `script`."""

    script: Sequence[int]
    choices: list[int] = field(default_factory=list)
    num_choices: list[int] = field(default_factory=list)
    weight: Fraction = Fraction(1)
    left: dict[Hashable, tuple[Fraction, Fraction]] = field(default_factory=dict)

    def uniform(self, key: Hashable, cuts: Iterable[Fraction]) -> float:
        low, high = self.left.get(key, (Fraction(0), Fraction(1)))
        edges = [low, *sorted({cut for cut in cuts if low < cut < high}), high]
        at = len(self.choices)
        choice = 0
        if len(edges) > 2:
            choice = self.script[at] if at < len(self.script) else 0
            self.choices.append(choice)
            self.num_choices.append(len(edges) - 1)
        self.left[key] = edges[choice], edges[choice + 1]
        self.weight *= (edges[choice + 1] - edges[choice]) / (high - low)
        return float((edges[choice] + edges[choice + 1]) / 2)


class Received:
    """A world as the rule sees it: the draft rows are those that came, whatever prefix they were made for."""

    def __init__(self, world: World, log: Tokens, draft_ids: Tokens, draft_rows: DraftRows | None) -> None:
        self.target = world.target
        self._rows: dict[Tokens, Row] = {}
        if draft_rows is not None:
            total = rows.total(world.bits)
            counts = rows.dense(draft_rows.ids, draft_rows.probs * total, world.vocab_size).round().long().tolist()
            for at, row in enumerate(counts):
                self._rows[log + draft_ids[:at]] = tuple(Fraction(count, total) for count in row)

    def draft(self, prefix: Tokens) -> Row:
        return self._rows[prefix]

    def residual(self, prefix: Tokens) -> Row:
        view: Any = self
        return World.residual(view, prefix)


class Run:
    """The system, from a request's arrival on, with one way for every coin to fall."""

    def __init__(self, world: World, setting: Setting, chance: Chance) -> None:
        self.world, self.setting, self.chance = world, setting, chance
        self.output: list[int] = []
        self.sources: list[Source] = []
        self.faults: list[Fault] = []
        self.num_hits = self.num_misses = 0  # of branches
        self.done = False
        self.now_s = 0.0
        self.num_changes = 0  # of anything; a round without any waits for the deadline
        self.judging: Cuts | None = None
        self.engines: dict[str, Any] = {}  # the two workers, by d and v
        self.names: dict[str, str] = {}
        self.asks: dict[str, deque[Any]] = {}
        self.replies: dict[str, deque[Any]] = {}
        self.core = Pipeline(Limits(retry_s=1.0, max_retries=100, max_moves=100, queue_timeout_s=1e6))
        for worker in "vd":
            self._join(worker)
        policy = LengthPolicy.of("fixed", {"length": setting.length})
        mode = Mode.BRANCH if setting.branches else Mode.PEARL if setting.window > 1 else Mode.SEQUENTIAL
        spec = RequestSpec(
            *("r", PROMPT, setting.max_tokens, SamplingParams(), SEED, DRAFT_SEED),
            mode=mode,
            rule=setting.rule,
            policy=policy,
            window=setting.window,
        )
        self._feed(Arrived(spec))

    def _join(self, worker: str) -> None:
        """A new process, of the same name but for a prime."""
        self.names[worker] = self.names.get(worker, worker) + "'"
        self.asks[worker], self.replies[worker] = deque(), deque()
        role = Role.VERIFIER if worker == "v" else Role.DRAFTER
        size = self.world.vocab_size
        info = WorkerInfo(role, "h:1", 1, "m", "0" * 64, "0" * 64, size, 100, 8, (), "float32", "cpu")
        law = self.world.target if worker == "v" else self.world.full_draft
        runner: Any = ToyRunner(info, lambda prefix: as_logits(law(prefix[len(PROMPT) :])))
        if worker == "v":
            self.engines[worker] = VerifierEngine(runner, info, clock=lambda: self.now_s)
        else:
            more: Any = {"row_bits": self.world.bits, "draft_temperature": self.world.draft_temperature}
            self.engines[worker] = DrafterEngine(
                runner, info, row_width=self.world.width, clock=lambda: self.now_s, **more
            )
        self._feed(WorkerUp(self.names[worker], info, is_trusted=True))

    def _feed(self, event: Event) -> None:
        for command in self.core.handle(event, self.now_s):
            match command:
                case Ask(name, ask):
                    for worker, its_name in self.names.items():
                        if its_name == name:
                            self.asks[worker].append(ask)
                            self.num_changes += 1
                case Emit(_, token_ids, sources):
                    assert not self.done
                    self.output += token_ids
                    self.sources += sources
                case Finish(_, _, metrics):
                    self.done = True
                    self.num_hits, self.num_misses = metrics.num_branch_hits, metrics.num_branch_misses
                case Fail(_, error):
                    raise error

    # --- coins

    def uniform(self, seed: int, domain: Domain, position: int, *, epoch: int = 0, branch: int = 0) -> float:
        """In place of `paceline.noise.uniform`."""
        if domain is Domain.DRAFT:
            (entry,) = self.engines["d"]._entries.values()
            chains = [entry.session, *entry.session.branches.growing]
            (chain,) = (chain for chain in chains if chain.number == branch)
            assert position == len(chain.tokens)
            (counts,) = self.world.counts(tuple(chain.tokens[len(PROMPT) :])).counts.tolist()
            cuts = cuts_of(tuple(Fraction(count, sum(counts)) for count in counts))  # the likeliest token comes first
        else:
            assert self.judging is not None
            cuts = self.judging(domain, position - len(PROMPT))
        return self.chance.uniform((seed, domain, position, epoch, branch), cuts)

    @property
    def log(self) -> Tokens:
        """What the verifier holds as committed, less the prompt."""
        (entry,) = self.engines["v"]._entries.values()
        return tuple(entry.session.log[len(PROMPT) :])

    # --- letters

    def act(self, letter: str) -> None:
        if not self.done:
            _LETTERS[letter](self)

    def work(self, worker: str) -> None:
        while self.asks[worker]:
            self._answer(worker, self.engines[worker].handle(0, self.asks[worker].popleft()))
            self.num_changes += 1
        if self.engines[worker].has_work():
            self.num_changes += 1
            self._answer(worker, self.engines[worker].step())

    def _answer(self, worker: str, replies: Iterable[tuple[int, Any]]) -> None:
        self.replies[worker] += [reply for _, reply in replies]

    def hear(self, worker: str) -> None:
        if self.replies[worker]:
            self.num_changes += 1
            reply = self.replies[worker].popleft()
            if isinstance(reply, Fault):
                self.faults.append(reply)
            self._feed(event_of(self.names[worker], reply))

    def wait(self) -> None:
        deadline_s = self.core.next_deadline_s()
        if deadline_s < float("inf"):
            self.now_s = deadline_s
            self._feed(Tick())

    def replace(self, worker: str) -> None:
        self._feed(WorkerDown(self.names[worker]))
        self._join(worker)

    def preempt(self) -> None:
        for key in self.engines["v"]._entries:
            self.engines["v"]._preempt(key)

    def finish(self) -> None:
        """Whatever is left, as on a good day."""
        for _ in range(MAX_ACTIONS):
            before = self.num_changes
            for letter in "DDdVv":
                self.act(letter)
            if self.done:
                return
            if self.num_changes == before:
                self.act("T")
        raise AssertionError("the request never ended")


def _lose(queue: deque[Any]) -> None:
    if queue:
        queue.popleft()


def _repeat(queue: deque[Any]) -> None:
    if queue:
        queue.append(queue[-1])


_LETTERS: dict[str, Callable[[Run], None]] = {
    "D": lambda run: run.work("d"),
    "V": lambda run: run.work("v"),
    "d": lambda run: run.hear("d"),
    "v": lambda run: run.hear("v"),
    "T": Run.wait,
    "P": Run.preempt,
    "x": lambda run: _lose(run.replies["d"]),
    "X": lambda run: _lose(run.replies["v"]),
    "c": lambda run: _lose(run.asks["d"]),
    "C": lambda run: _lose(run.asks["v"]),
    "2": lambda run: _repeat(run.replies["d"]),
    "q": lambda run: _repeat(run.asks["v"]),
    "r": lambda run: run.replies["d"].reverse(),
    "R": lambda run: run.asks["v"].reverse(),
    "k": lambda run: run.replace("d"),
    "K": lambda run: run.replace("v"),
}


@dataclass
class Outcome:
    """The law of the output, and what happened on the way to it in any of the runs."""

    law: Law = field(default_factory=lambda: defaultdict(Fraction))
    sources: set[Source] = field(default_factory=set)
    num_runs: int = 0
    num_hits: int = 0  # of branches, in all runs
    num_misses: int = 0


def every_run(world: World, setting: Setting, schedule: str) -> Outcome:
    """Run the system with every combination of coins."""
    outcome, script = Outcome(), list[int]()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Pace, "preverify_pays", lambda _, **__: setting.preverify)
        while True:
            run = _run(world, setting, schedule, Chance(script), patch)
            outcome.law[tuple(run.output)] += run.chance.weight
            outcome.sources |= set(run.sources)
            outcome.num_runs += 1
            outcome.num_hits += run.num_hits
            outcome.num_misses += run.num_misses
            assert not run.faults, run.faults
            script, num_choices = run.chance.choices, run.chance.num_choices
            while script and script[-1] + 1 == num_choices[len(script) - 1]:
                script.pop()
            if not script:
                return outcome
            script[-1] += 1


def _run(world: World, setting: Setting, schedule: str, chance: Chance, patch: pytest.MonkeyPatch) -> Run:
    run: Run

    def judge(rule: Rule, target_logits: Any, draft_ids: Tokens, *rest: Any, **more: Any) -> Any:
        view: Any = Received(world, run.log, draft_ids, more["draft_rows"])
        run.judging = token_cuts(view, run.log, draft_ids)
        return JUDGE(rule, target_logits, draft_ids, *rest, **more)

    def judge_blocks(target_logits: Any, drafts: Sequence[Tokens], *rest: Any, **more: Any) -> Any:
        view: Any = Received(world, run.log, sum(drafts, ()), more["draft_rows"])
        run.judging = block_cuts(view, run.log, drafts)
        return JUDGE_BLOCKS(target_logits, drafts, *rest, **more)

    patch.setattr(verifier.judging, "judge", judge)
    patch.setattr(verifier.judging, "judge_blocks", judge_blocks)
    patch.setattr(paceline.noise, "uniform", lambda *key, **epoch: run.uniform(*key, **epoch))
    run = Run(world, setting, chance)
    for letter in schedule:
        run.act(letter)
    run.finish()
    return run


JUDGE, JUDGE_BLOCKS = verifier.rules.judge, verifier.rules.judge_blocks
