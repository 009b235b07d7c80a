"""Where output ends, through the shipped core, engines and rules, wherever the last token comes from.

The target writes one fixed text with near certainty, so that sampling changes nothing; the drafter writes the same but
for its mistakes. So how the last token comes to be, kept in a draft, recovered, bonus or self-decoded, is chosen by
hand.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from coordinator.core.commands import Ask, Emit, Finish
from coordinator.core.events import Arrived, Drafted, Event, RequestSpec, Tick, Verified, WorkerUp
from coordinator.core.pipeline import Pipeline
from drafter.engine import DrafterEngine
from paceline.length_policy import LengthPolicy
from paceline.types import Close, Draft, FinishReason, Mode, Role, Rule, SamplingParams, Source, Tokens
from tests.coordinator.test_request import info
from tests.verifier.test_engine import ToyRunner
from verifier.engine import VerifierEngine

PROMPT = (40, 41)
TEXT = tuple(range(10, 34))  # what the target writes; no token twice
STOP = TEXT[7]
SOURCES = (Source.ACCEPTED, Source.RECOVERED, Source.BONUS, Source.SELF_DECODED)


def writes(text: Tokens, mistakes: Iterable[int] = ()) -> Any:
    """A model's rows: near certain of `text`, next of token 1; at `mistakes` near certain of 2."""

    def row_after(prefix: Tokens) -> Tensor:
        at = len(prefix) - len(PROMPT)
        row = torch.zeros(50)
        row[1] = 60.0
        row[2 if at in mistakes else text[at] if at < len(text) else 3] = 120.0
        return row

    return row_after


@dataclass
class Served:
    """A pair and a core, pumped by hand until the request ends."""

    target: Any
    drafter: Any
    output: list[int] = field(default_factory=list)
    sources: list[Source] = field(default_factory=list)
    reason: FinishReason | None = None
    closed: list[str] = field(default_factory=list)

    def run(self, spec: RequestSpec, *, num_late: int = 0) -> Served:
        """`num_late`: deadlines that pass before the first draft is heard."""
        self.core, self.now_s = Pipeline(), 0.0
        self.engines: dict[str, Any] = {}
        for name, role, kind, law in (
            ("v", Role.VERIFIER, VerifierEngine, self.target),
            ("d", Role.DRAFTER, DrafterEngine, self.drafter),
        ):
            worker: Any = info(role)
            runner: Any = ToyRunner(worker, law)
            self.engines[name] = kind(runner, worker, clock=lambda: self.now_s)
            self._feed(WorkerUp(name, worker, is_trusted=True))
        self._feed(Arrived(spec))
        for _ in range(num_late):
            self._decode()
            if self.reason:
                return self
            self._wait()
        if num_late:
            self._decode()
        for _ in range(100):
            if self.reason:
                return self
            if not (self._pump("d") | self._pump("v")):
                self._wait()
        raise AssertionError("the request never ended")

    def _decode(self) -> None:
        while self.reason is None and self._pump("v"):
            pass

    def _wait(self) -> None:
        self.now_s = self.core.next_deadline_s()
        self._feed(Tick())

    def _feed(self, event: Event) -> None:
        for command in self.core.handle(event, self.now_s):
            match command:
                case Ask(name, ask):
                    if isinstance(ask, Close):
                        self.closed.append(name)
                    self.engines[name].handle(0, ask)
                case Emit(_, token_ids, sources):
                    self.output += token_ids
                    self.sources += sources
                case Finish(_, reason):
                    self.reason = reason

    def _pump(self, name: str) -> bool:
        """One step of a worker, and the core hears of it; whether there was anything to do."""
        if not self.engines[name].has_work():
            return False
        for _, reply in self.engines[name].step():
            self._feed(Drafted(name, reply) if isinstance(reply, Draft) else Verified(name, reply))
        return True


def request(rule: Rule, *, length: int, window: int, max_tokens: int = 20, **sampling: Any) -> RequestSpec:
    given = SamplingParams(seed=3, **sampling)
    return RequestSpec(
        *("r", PROMPT, max_tokens, given, 3, 4),
        stop_token_ids=given.stop_token_ids,
        mode=Mode.PEARL if window > 1 else Mode.SEQUENTIAL,
        rule=rule,
        policy=LengthPolicy.of("fixed", {"length": length}),
        window=window,
    )


# How the token at place 7 comes to be: drafts' length, window, the drafter's mistakes, deadlines that pass at first.
WAYS: dict[Source, tuple[int, int, tuple[int, ...], int]] = {
    Source.ACCEPTED: (3, 2, (), 0),  # the first of these drafts begins after the first token: 1-3, 4-6, 7-9
    Source.RECOVERED: (3, 2, (7,), 0),
    Source.BONUS: (6, 1, (), 0),
    Source.SELF_DECODED: (3, 1, (), 3),  # decoding runs of 1, 2 and 4 after the first token
}


def last_token(rule: Rule, source: Source, **more: Any) -> Served:
    length, window, mistakes, num_late = WAYS[source]
    served = Served(writes(TEXT), writes(TEXT, mistakes))
    return served.run(request(rule, length=length, window=window, **more), num_late=num_late)


@pytest.mark.parametrize("rule", list(Rule))
@pytest.mark.parametrize("source", SOURCES)
def test_output_ends_with_a_stop_token_wherever_it_comes_from(rule: Rule, source: Source) -> None:
    served = last_token(rule, source, stop_token_ids=(STOP,))
    assert tuple(served.output) == TEXT[:8]
    assert served.reason is FinishReason.STOP
    assert served.sources[-1] is source
    assert sorted(served.closed) == ["d", "v"]


@pytest.mark.parametrize("rule", list(Rule))
@pytest.mark.parametrize("source", SOURCES)
def test_output_ends_at_max_tokens_wherever_the_last_one_comes_from(rule: Rule, source: Source) -> None:
    served = last_token(rule, source, max_tokens=8)
    assert tuple(served.output) == TEXT[:8]
    assert served.reason is FinishReason.LENGTH
    assert sorted(served.closed) == ["d", "v"]


@pytest.mark.parametrize("rule", list(Rule))
@pytest.mark.parametrize(("length", "window"), [(1, 1), (3, 1), (3, 2), (10, 2), (40, 1)])
def test_no_more_than_max_tokens_come_of_drafts_of_any_length(rule: Rule, length: int, window: int) -> None:
    for max_tokens in (1, 2, 5, 6, 7):
        served = Served(writes(TEXT), writes(TEXT)).run(
            request(rule, length=length, window=window, max_tokens=max_tokens)
        )
        assert tuple(served.output) == TEXT[:max_tokens]


@pytest.mark.parametrize("rule", list(Rule))
@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("min_tokens", [7, 8])
def test_no_stop_token_before_min_tokens_wherever_it_would_come_from(
    rule: Rule, source: Source, min_tokens: int
) -> None:
    """The target wants to stop at place 7: allowed once 7 tokens stand before it, not if 8 must."""
    served = last_token(rule, source, stop_token_ids=(STOP,), min_tokens=min_tokens, max_tokens=12)
    if min_tokens == 7:
        assert tuple(served.output) == TEXT[:8]
    else:
        assert tuple(served.output) == (*TEXT[:7], 1, *TEXT[8:12]), "its next choice stands there, and it goes on"
        assert served.reason is FinishReason.LENGTH


@pytest.mark.parametrize("rule", list(Rule))
def test_a_drafted_stop_token_that_is_rejected_ends_nothing(rule: Rule) -> None:
    early = (*TEXT[:5], STOP, *TEXT[6:])
    served = Served(writes(TEXT), writes(early)).run(request(rule, length=3, window=2, stop_token_ids=(STOP,)))
    assert tuple(served.output) == TEXT[:8]
    assert Source.RECOVERED in served.sources
