"""Dataclasses to plain values and back, by the types that are written down."""

from __future__ import annotations

from typing import Any

import pytest

from coordinator.core.commands import Ask, Command, Emit, Finish
from coordinator.core.events import Arrived, Drafted, Ended, Event, RequestSpec, Verified, WorkerDraining, WorkerUp
from coordinator.core.metrics import RequestMetrics
from paceline.errors import InvalidInput, Overloaded, PacelineError, Unavailable
from paceline.length_policy import LengthPolicy
from paceline.plain import from_plain, to_plain
from paceline.types import (
    Close,
    Commit,
    Draft,
    FinishReason,
    Mode,
    Role,
    Rows,
    Rule,
    SamplingParams,
    Source,
    StepCost,
    Verdict,
    WorkerInfo,
)

SPEC = RequestSpec(
    "r",
    (1, 2),
    9,
    SamplingParams(temperature=0.5, logit_bias=((3, 1.5),), seed=2**62),
    seed=1,
    draft_seed=2,
    mode=Mode.PEARL,
    policy=LengthPolicy.parse("svip:threshold_nats=1"),
)
DRAFT = Draft("r", 1, 2, (3, 4), True, Rows(1, b"\x01\0\0\0" * 2, b"\xff\xff" * 2), 1.5)
INFO = WorkerInfo(Role.DRAFTER, "h:1", 2**64 - 1, "m", "a", "b", 9, 8, 7, (), "float32", "cpu", StepCost(1, 2.0, 0, 0))
EVENTS: tuple[Event, ...] = (
    Arrived(SPEC),
    Drafted("d", DRAFT),
    Verified("v", Verdict("r", 1, 2, (3, 4), (Source.ACCEPTED, Source.BONUS), verify_ms=1.0)),
    WorkerUp("d", INFO),
    WorkerDraining("d"),
    Ended("r", FinishReason.CANCELLED),
)


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: type(event).__name__)
def test_an_event_comes_back_as_it_was(event: Event) -> None:
    assert from_plain(Event, to_plain(event)) == event  # type: ignore[arg-type]


@pytest.mark.parametrize("error", [Unavailable("going away"), Overloaded("requests", 3, 1.0)])
def test_an_error_comes_back_with_its_class_and_its_text(error: PacelineError) -> None:
    plain = to_plain(Ended("r", FinishReason.CANCELLED, error))
    back: Any = from_plain(Event, plain)  # type: ignore[arg-type]
    assert type(back.error) is type(error)
    assert to_plain(back) == plain
    plain["error"]["is"] = "SystemExit"
    with pytest.raises(InvalidInput):
        from_plain(Event, plain)  # type: ignore[arg-type]


def test_a_type_that_is_left_out_comes_back_as_none() -> None:
    plain = to_plain(Drafted("d", DRAFT), without=(Rows,))
    back: Any = from_plain(Drafted, plain)
    assert back.draft.rows is None
    assert back.draft.token_ids == (3, 4)


def test_commands_are_maps_with_their_class_and_errors_their_text() -> None:
    plain = {"is": "Ask", "worker": "d", "ask": {"is": "Close", "request_id": "r"}}
    assert to_plain(Ask("d", Close("r"))) == plain
    assert to_plain(Unavailable("gone")) == {"is": "Unavailable", "message": "gone"}
    assert to_plain(Emit("r", (1,), (Source.BONUS,)))["sources"] == ["bonus"]


def test_what_is_private_stays_out() -> None:
    metrics = RequestMetrics("pearl", "match", "fixed", 4, num_prompt_tokens=3)
    metrics.sources[Source.BONUS] += 2
    command: Command = Finish("r", FinishReason.STOP, metrics)
    plain = to_plain(command)["metrics"]
    assert plain["sources"] == {"bonus": 2}
    assert not [name for name in plain if name.startswith("_")]


def test_a_class_that_is_not_among_those_written_down_is_refused() -> None:
    """A file may name any class; none but the members of the union is ever built."""
    for name in ("Popen", "Fail", "RequestSpec"):
        with pytest.raises(InvalidInput, match="none of Arrived"):
            from_plain(Event, {"is": name})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "wrong",
    [
        {"is": "Commit", "request_id": 7, "epoch": 1, "start": 2, "token_ids": []},
        {"is": "Commit", "request_id": "r", "epoch": True, "start": 2, "token_ids": []},
        {"is": "Commit", "request_id": "r", "epoch": 1, "start": 2, "token_ids": ["3"]},
        {"is": "Commit", "request_id": "r", "epoch": 1, "start": 2, "token_ids": [], "more": 1},
        {"is": "Commit", "request_id": "r"},
        {"is": "Close", "request_id": "r"},
        [],
        None,
    ],
)
def test_fields_of_a_wrong_type_missing_or_unknown_are_refused(wrong: Any) -> None:
    with pytest.raises(InvalidInput, match="is not what it should be"):
        from_plain(Commit, wrong)


def test_enums_are_read_by_value_and_refused_by_value() -> None:
    assert from_plain(Rule, "block") is Rule.BLOCK
    with pytest.raises(InvalidInput):
        from_plain(Rule, "lossy")


def test_what_has_no_plain_form_is_our_bug() -> None:
    with pytest.raises(TypeError, match="object has no plain form"):
        to_plain(object())
