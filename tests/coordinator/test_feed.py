"""The one door to the core: who is served first, and when the core is told that time has passed."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from coordinator.config import CoordinatorConfig
from coordinator.core.commands import Command, Emit, Fail
from coordinator.core.events import Event, RequestSpec, Tick, Verified, WorkerUp
from coordinator.core.limits import Limits
from coordinator.core.pipeline import Pipeline
from coordinator.registry import Link
from coordinator.server import AFTER_BUG_S, Coordinator
from paceline.errors import Internal
from paceline.types import Close, Decode, Mode, OpenVerify, Role, SamplingParams, Source, Verdict, WorkerInfo
from tests.tiny import write_tokenizer

WITHIN_S = 10.0
FIRST = Verified("v", Verdict("r", 0, 3, (7,), (Source.SELF_DECODED,)))


class Due(Pipeline):
    """Notes of every tick whether there was a reason for it."""

    def __init__(self, limits: Limits) -> None:
        super().__init__(limits)
        self.due: list[bool] = []

    def handle(self, event: Event, now_s: float) -> list[Command]:
        if isinstance(event, Tick):
            self.due.append(self.next_deadline_s() <= now_s)
        return super().handle(event, now_s)


def coordinator(folder: Path, roles: Sequence[Role], **limits: float) -> tuple[Coordinator, Due]:
    """With workers `v` and `d`, whose asks stay in their links."""
    write_tokenizer(folder)
    (folder / "config.json").write_text('{"max_position_embeddings": 99}')
    it = Coordinator(CoordinatorConfig(str(folder)))
    it.pipeline = pipeline = Due(Limits(**limits))  # type: ignore[arg-type]
    for role in roles:
        info = WorkerInfo(role, "", 1, "toy", "", "", 50, 4096, 4, (), "float32", "cpu")
        it.links[role[0]] = Link(role[0], info, asyncio.Queue())
    return it, pipeline


def up(it: Coordinator) -> None:
    for link in it.links.values():
        it.feed(WorkerUp(link.name, link.info, True))


def spec(mode: Mode) -> RequestSpec:
    return RequestSpec("r", (1, 2, 3), 20, SamplingParams(temperature=0), 1, 2, mode=mode)


async def test_a_drafter_that_waits_is_told_before_the_client(tmp_path: Path) -> None:
    it, _ = coordinator(tmp_path, (Role.VERIFIER, Role.DRAFTER))
    up(it)
    with it.generation(spec(Mode.SEQUENTIAL)) as queue:
        asks = it.links["d"].asks
        asks.get_nowait()  # the prompt
        order: list[str] = []

        async def wait(name: str, on: asyncio.Queue[object]) -> None:
            await on.get()
            order.append(name)

        async with asyncio.timeout(WITHIN_S), asyncio.TaskGroup() as tasks:
            tasks.create_task(wait("client", queue))  # type: ignore[arg-type]
            tasks.create_task(wait("drafter", asks))
            await asyncio.sleep(0)
            it.feed(FIRST)
        assert order == ["drafter", "client"]
    await it.close()


async def test_a_deadline_that_is_put_off_is_no_reason_for_a_tick(tmp_path: Path) -> None:
    it, pipeline = coordinator(tmp_path, (Role.VERIFIER,), queue_timeout_s=0.05, retry_s=0.2)
    with it.generation(spec(Mode.OFF)):
        up(it)  # before the queue's time is over, and the verifier says nothing
        asks = it.links["v"].asks
        async with asyncio.timeout(WITHIN_S):
            sent = [await asks.get(), await asks.get()]
        assert [type(ask) for ask in sent] == [OpenVerify, OpenVerify]
        assert pipeline.due == [True]
    await it.close()


async def test_a_deadline_before_the_one_that_is_waited_for_is_kept(tmp_path: Path) -> None:
    it, _ = coordinator(tmp_path, (Role.VERIFIER, Role.DRAFTER), retry_s=1e4, max_draft_wait_s=0.05)
    up(it)
    with it.generation(spec(Mode.SEQUENTIAL)):
        asks = it.links["v"].asks
        asks.get_nowait()
        it.feed(FIRST)  # now it is the drafter's turn, and it says nothing
        async with asyncio.timeout(WITHIN_S):
            assert isinstance(await asks.get(), Decode)
    await it.close()


async def test_a_bug_in_the_core_costs_one_request_which_is_told_and_no_token_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    it, pipeline = coordinator(tmp_path, (Role.VERIFIER, Role.DRAFTER))
    up(it)
    other = replace(spec(Mode.SEQUENTIAL), request_id="other")
    with it.generation(spec(Mode.SEQUENTIAL)) as queue, it.generation(other) as others:
        with monkeypatch.context() as patch:
            patch.setattr(pipeline.pools, "judged", broken)
            it.feed(FIRST)
        emitted, end = queue.get_nowait(), queue.get_nowait()
        assert isinstance(emitted, Emit)
        assert emitted.token_ids == (7,), "what was committed before the failure is not lost"
        assert isinstance(end, Fail)
        assert isinstance(end.error, Internal)
        assert "ZeroDivisionError" in caplog.text
        assert "division" not in str(end.error)
        asks = [it.links["v"].asks.get_nowait() for _ in range(it.links["v"].asks.qsize())]
        assert Close("r") in asks, "the verifier frees what it has"
        it.feed(Verified("v", Verdict("other", 0, 3, (8,), (Source.SELF_DECODED,))))
        assert isinstance(others.get_nowait(), Emit), "all others go on"
    assert pipeline.num_running == pipeline.num_waiting == 0
    await it.close()


async def test_an_ask_that_cannot_be_written_costs_its_request_and_the_link_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The link used to end, the request moved, and ended the next verifier's."""
    it, _ = coordinator(tmp_path, (Role.VERIFIER,))
    up(it)
    written: asyncio.Queue[Any] = asyncio.Queue()

    class Call:
        async def write(self, wire: Any) -> None:
            written.put_nowait(wire)

    bad = replace(spec(Mode.OFF), request_id="\ud800")  # no string of protobuf can hold it
    writing = asyncio.create_task(it._write(it.links["v"], Call()))
    async with asyncio.timeout(WITHIN_S):
        with it.generation(bad) as queue, it.generation(spec(Mode.OFF)):
            assert (await written.get()).open.request_id == "r"
            end = queue.get_nowait()
            assert isinstance(end, Fail)
            assert isinstance(end.error, Internal)
    assert not writing.done()
    assert "UnicodeEncodeError" in caplog.text
    writing.cancel()
    await it.close()


async def test_a_request_that_the_core_fails_on_as_it_comes_is_told_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    it, _ = coordinator(tmp_path, (Role.VERIFIER,))
    monkeypatch.setattr("coordinator.core.pipeline.Request", broken)
    with it.generation(spec(Mode.OFF)) as queue:
        end = queue.get_nowait()
        assert isinstance(end, Fail)
        assert isinstance(end.error, Internal)
    await it.close()


async def test_a_deadline_that_the_core_fails_on_leaves_time_for_everything_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    it, pipeline = coordinator(tmp_path, (Role.VERIFIER,), queue_timeout_s=0.01)
    monkeypatch.setattr(pipeline.pools, "leaving", broken)
    with it.generation(spec(Mode.OFF)) as queue, contextlib.suppress(asyncio.QueueEmpty):
        assert isinstance(queue.get_nowait(), Fail)
    monkeypatch.setattr(pipeline, "next_deadline_s", lambda: 0.0)
    it.feed(Tick())
    before = len(pipeline.due)
    await asyncio.sleep(3.5 * AFTER_BUG_S)
    assert 1 <= len(pipeline.due) - before <= 4
    await it.close()


def broken(*_: object) -> None:
    raise ZeroDivisionError("division by zero")  # as any exception that nobody expects
