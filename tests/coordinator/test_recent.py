"""What is kept of the last requests: bounded, whole, and for their owners only."""

from __future__ import annotations

import io

import pytest

from coordinator import recent
from coordinator.core.commands import Ask, Command, Emit, Fail, Finish
from coordinator.core.events import Arrived, Drafted, RequestSpec, Tick, Verified
from coordinator.core.metrics import RequestMetrics
from coordinator.recent import RecentRequests
from paceline.errors import Unavailable, UnknownRequest
from paceline.trace import Closed, Opened, Step, read_stream
from paceline.types import Draft, FinishReason, Rows, SamplingParams, Source, Verdict, Verify


def arrived(request_id: str, client: str = "", num_tokens: int = 2) -> Arrived:
    return Arrived(RequestSpec(request_id, (1,) * num_tokens, 8, SamplingParams(), 1, 2, client=client))


def finish(request_id: str) -> Finish:
    return Finish(request_id, FinishReason.STOP, RequestMetrics("off", "match", "fixed:length=4", 1, 2))


def run(it: RecentRequests, request_id: str, client: str = "", num_steps: int = 1) -> None:
    it.observe(arrived(request_id, client), [], 1.0)
    for i in range(num_steps):
        verdict = Verdict(request_id, 0, 2 + i, (5,), (Source.SELF_DECODED,))
        it.observe(Verified("v", verdict), [Emit(request_id, (5,), (Source.SELF_DECODED,))], 2.0 + i)
    it.observe(Tick(), [finish(request_id)], 99.0)


def ids(it: RecentRequests, client: str = "") -> list[str]:
    return [one.spec.request_id for one in it.of(client)]


def test_the_last_requests_are_kept_and_the_oldest_go_first() -> None:
    it = RecentRequests(2)
    for name in "abc":
        run(it, name)
    assert sorted(ids(it)) == ["b", "c"]
    with pytest.raises(UnknownRequest):
        it.get("a", "")


def test_nothing_is_kept_where_nothing_is_to_be() -> None:
    it = RecentRequests(0)
    run(it, "a")
    assert ids(it) == []


def test_a_request_is_its_owners_alone() -> None:
    it = RecentRequests()
    run(it, "a", client="alice")
    it.observe(arrived("r", client="alice"), [], 3.0)  # still under way
    assert ids(it, "alice") == ["r", "a"]
    assert ids(it, "bob") == ids(it) == []
    assert it.get("a", "alice").ended == "stop"
    for name in "ar":
        for other in ("bob", ""):
            with pytest.raises(UnknownRequest):
                it.get(name, other)


def test_an_id_may_be_given_as_openais_api_told_it() -> None:
    it = RecentRequests()
    run(it, "a")
    assert it.get("chatcmpl-a", "") is it.get("cmpl-a", "") is it.get("a", "")


def test_an_id_that_comes_again_is_the_later_request() -> None:
    it = RecentRequests()
    run(it, "a", num_steps=5)
    run(it, "a", num_steps=1)
    assert len(it.get("a", "").steps) == 3
    assert len(ids(it)) == 1


def test_each_request_keeps_only_what_was_its_own() -> None:
    it = RecentRequests()
    for name in "ab":
        it.observe(arrived(name), [], 1.0)
    commands: list[Command] = [Fail("a", Unavailable("gone")), Emit("b", (7,), (Source.BONUS,)), finish("b")]
    it.observe(Tick(), commands, 2.0)
    assert [type(one).__name__ for one in it.get("a", "").steps[-1].commands] == ["Fail"]
    assert [type(one).__name__ for one in it.get("b", "").steps[-1].commands] == ["Emit", "Finish"]
    assert (it.get("a", "").ended, it.get("b", "").ended) == ("failed", "stop")


def test_draft_rows_are_not_kept() -> None:
    it = RecentRequests()
    it.observe(arrived("a"), [], 1.0)
    draft = Draft("a", 0, 2, (5,), rows=Rows.certain((5,)))
    it.observe(Drafted("d", draft), [Ask("v", Verify(draft, preverify=True))], 2.0)
    step = it.get("a", "").steps[-1]
    assert isinstance(step.event, Drafted)
    assert step.event.draft.rows is None
    (ask,) = step.commands
    assert isinstance(ask, Ask)
    assert isinstance(ask.ask, Verify)
    assert ask.ask.draft.rows is None
    assert ask.ask.preverify


def test_what_is_kept_has_a_bound_whatever_clients_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recent, "MAX_WEIGHT", 30)
    monkeypatch.setattr(recent, "MAX_WEIGHT_OF_ONE", 12)
    it = RecentRequests(100)
    run(it, "long", num_steps=50)
    assert it.get("long", "").is_cut
    assert len(it.get("long", "").steps) == 12
    for i in range(20):
        run(it, f"r{i}", num_steps=3)
    assert sum(one.weight for one in it.all()) <= 30
    assert len(it.get("r19", "").steps) == 5, "the newest is whole, since older ones have gone"
    it.observe(arrived("prompt", num_tokens=32 * 40), [], 200.0)
    assert it.get("prompt", "").steps == [], "a long prompt weighs as much as many steps"


def test_its_records_are_a_trace_file() -> None:
    it = RecentRequests()
    run(it, "a", num_steps=120)
    pieces = list(it.get("a", "").records())
    assert len(pieces) > 2, "so that others' messages pass in between"
    opened, *steps = read_stream(io.BytesIO(b"".join(pieces)), "x")
    assert isinstance(opened, Opened)
    assert opened.settings == {"request_id": "a"}
    assert len(steps) == 122
    assert all(isinstance(step, Step) for step in steps)


def test_a_trace_that_was_cut_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recent, "MAX_WEIGHT_OF_ONE", 3)
    it = RecentRequests()
    run(it, "a", num_steps=9)
    assert list(read_stream(io.BytesIO(b"".join(it.get("a", "").records())), "x"))[-1] == Closed("full")
