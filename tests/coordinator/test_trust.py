"""Whose rows are believed, and what follows for the rule of a request."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from coordinator.config import CoordinatorConfig
from coordinator.core.commands import Ask, Command, Fail
from coordinator.core.events import Arrived, WorkerDown, WorkerUp
from coordinator.core.pipeline import Pipeline
from coordinator.trust import is_trusted
from paceline.errors import InvalidInput
from paceline.types import Mode, OpenDraft, OpenVerify, Role, Rule, SamplingParams
from tests.coordinator.test_request import info, spec, verdict

SAMPLED, SEEDED, GREEDY = SamplingParams(), SamplingParams(seed=5), SamplingParams(temperature=0)
HERE, ELSEWHERE = "127.0.0.1:7001", "10.0.0.2:7001"


@pytest.mark.parametrize(
    ("peer", "address", "settings", "expected"),
    [
        ("ipv4:127.0.0.1:4321", HERE, {}, True),
        ("ipv6:%5B::1%5D:4321", "[::1]:7001", {}, True),
        ("ipv6:[::1]:4321", "localhost:7001", {}, True),
        ("ipv4:10.0.0.2:4321", ELSEWHERE, {}, False),
        ("ipv4:10.0.0.2:4321", HERE, {}, False),  # whoever registers an address of ours
        ("ipv4:127.0.0.1:4321", ELSEWHERE, {}, False),  # the stream would go elsewhere
        ("ipv4:127.0.0.1:4321", HERE, {"insecure": True}, False),  # perhaps a tunnel's end
        ("unix:/tmp/socket", HERE, {}, False),
        ("", HERE, {}, False),
        ("ipv4:10.0.0.2:4321", ELSEWHERE, {"insecure": True, "trust_drafters": True}, True),
    ],
)
def test_a_drafter_is_trusted_for_where_it_is_or_because_the_operator_says_so(
    peer: str, address: str, settings: dict[str, bool], expected: bool
) -> None:
    worker = info(Role.DRAFTER, address=address)
    call = SimpleNamespace(peer=lambda: peer)
    assert is_trusted(worker, call, CoordinatorConfig("folder", **settings)) is expected  # type: ignore[arg-type]


def pipeline(**drafters: bool) -> Pipeline:
    """A verifier, and drafters by name, trusted or not, with one place each."""
    it = Pipeline()
    it.handle(WorkerUp("v", info(Role.VERIFIER)), 0.0)
    for name, believed in drafters.items():
        it.handle(WorkerUp(name, info(Role.DRAFTER, 1), believed), 0.0)
    return it


def opened(commands: list[Command]) -> dict[str, Rule]:
    """The rule with which each worker was opened."""
    asks = [command for command in commands if isinstance(command, Ask)]
    return {ask.worker: ask.ask.rule for ask in asks if isinstance(ask.ask, OpenDraft | OpenVerify)}


@pytest.mark.parametrize(
    ("sampling", "drafters", "rule"),
    [
        (GREEDY, {"d": True}, Rule.MATCH),
        (GREEDY, {"d": False}, Rule.MATCH),
        (SEEDED, {"d": True}, Rule.COUPLED),
        (SEEDED, {"d": False}, Rule.COUPLED),
        (SAMPLED, {"d": True}, Rule.BLOCK),
        (SAMPLED, {"d": False}, Rule.MATCH),
        (SAMPLED, {"d": False, "e": True}, Rule.BLOCK),
        (SAMPLED, {}, Rule.BLOCK),
    ],
)
def test_auto_believes_rows_only_where_a_drafter_is_trusted(
    sampling: SamplingParams, drafters: dict[str, bool], rule: Rule
) -> None:
    rules = opened(pipeline(**drafters).handle(Arrived(spec(sampling=sampling)), 0.0))
    assert rules["v"] is rule
    assert set(rules.values()) == {rule}


@pytest.mark.parametrize("rule", [Rule.TOKEN, Rule.BLOCK])
def test_a_rule_that_must_believe_rows_is_refused_where_no_drafter_is_trusted(rule: Rule) -> None:
    (failed,) = pipeline(d=False).handle(Arrived(spec(sampling=SAMPLED, rule=rule)), 0.0)
    assert isinstance(failed, Fail)
    assert isinstance(failed.error, InvalidInput)
    assert failed.error.field == "rule"
    assert all(part in str(failed.error) for part in (f"rule={rule.value!r}", "trusted", "--trust-drafters"))


@pytest.mark.parametrize("rule", [Rule.TOKEN, Rule.BLOCK])
@pytest.mark.parametrize("settings", [{"sampling": GREEDY}, {"sampling": SAMPLED, "mode": Mode.OFF}], ids=str)
def test_it_is_not_refused_where_rows_cannot_change_the_output(rule: Rule, settings: Any) -> None:
    """At temperature 0 every rule keeps the likeliest token alone; in mode off nothing is drafted."""
    assert opened(pipeline(d=False).handle(Arrived(spec(rule=rule, **settings)), 0.0))["v"] is rule


def test_a_request_that_believes_rows_is_never_given_an_untrusted_drafter() -> None:
    """Not at its start, not when its own is lost, and not when another one comes."""
    it = pipeline(d=True, e=False)
    assert opened(it.handle(Arrived(spec(sampling=SAMPLED)), 0.0)) == {"d": Rule.BLOCK, "v": Rule.BLOCK}
    assert opened(it.handle(verdict(3, 7), 0.1)) == {}
    assert opened(it.handle(WorkerDown("d"), 0.2)) == {}, "e has a place, and is not trusted"
    assert opened(it.handle(WorkerUp("f", info(Role.DRAFTER)), 0.3)) == {}
    assert opened(it.handle(WorkerUp("g", info(Role.DRAFTER), is_trusted=True), 0.4)) == {"g": Rule.BLOCK}


def test_a_request_that_waits_for_a_trusted_drafter_holds_up_nobody() -> None:
    it = pipeline(d=True)
    it.handle(Arrived(spec("a", sampling=SAMPLED)), 0.0)
    it.handle(Arrived(spec("b", sampling=SAMPLED)), 0.1)
    it.handle(Arrived(spec("c")), 0.2)
    commands = it.handle(WorkerUp("e", info(Role.DRAFTER)), 0.3)
    assert [ask.ask.request_id for ask in commands if isinstance(ask, Ask)] == ["c"]


def test_a_rule_that_was_chosen_without_any_drafter_stands_when_an_untrusted_one_comes() -> None:
    it = pipeline()
    assert opened(it.handle(Arrived(spec(sampling=SAMPLED)), 0.0)) == {"v": Rule.BLOCK}
    assert opened(it.handle(WorkerUp("d", info(Role.DRAFTER)), 0.1)) == {}
