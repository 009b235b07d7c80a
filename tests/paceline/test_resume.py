"""Clients that go on at another coordinator, against coordinators that only pretend."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import pytest

from paceline import resume, rpc
from paceline.addresses import addresses_of
from paceline.client import AsyncClient, Client
from paceline.errors import InvalidInput, Overloaded, PacelineError, Unavailable
from paceline.resume import MAX_BUSY_S, MAX_RETRIES, Progress
from paceline.wire import coordinator_pb2 as pb
from paceline.wire import coordinator_pb2_grpc

OUTPUT = tuple(range(100, 110))


class Loses:
    """Sends `num_tokens` of the output from where the client has it, then fails with `error`, if there is one.

    After `num_losses` calls it fails no more.
    """

    def __init__(self, num_tokens: int = 100, error: PacelineError | None = None, num_losses: int = 100) -> None:
        self.num_tokens, self.error, self.num_losses = num_tokens, error, num_losses
        self.requests: list[Any] = []
        self.metadata: list[Any] = []
        self.address = ""
        self._server: rpc.Server | None = None

    async def Generate(self, request: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802
        copy = pb.GenerateRequest()
        copy.CopyFrom(request)
        self.requests.append(copy)
        self.metadata.append(dict(context.invocation_metadata()))
        async with rpc.answering(context):
            start = len(request.resume_token_ids)
            fails = self.error is not None and len(self.requests) <= self.num_losses
            for i, token_id in enumerate(OUTPUT[start : start + self.num_tokens] if fails else OUTPUT[start:]):
                yield pb.GenerateReply(
                    text=chr(token_id),
                    token_ids=[token_id],
                    sources=["SOURCE_ACCEPTED"],
                    text_lengths=[1],
                    request_id="" if i else "id",
                )
            if fails and self.error:
                raise self.error
            yield pb.GenerateReply(finish_reason="length", metrics=pb.RequestMetrics(num_generated_tokens=5))

    async def GetModelInfo(self, _: Any, context: Any) -> Any:  # noqa: N802
        async with rpc.answering(context):
            if self.error:
                raise self.error
            return pb.ModelInfo(model="tiny")

    def __getattr__(self, name: str) -> Any:
        return self.GetModelInfo

    async def start(self) -> None:
        add = partial(coordinator_pb2_grpc.add_CoordinatorServicer_to_server, self)
        self._server, port = await rpc.start_server([("paceline.wire.Coordinator", add)], "127.0.0.1", 0)
        self.address = f"127.0.0.1:{port}"

    async def stop(self) -> None:
        if self._server:
            await self._server.stop()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resume, "PAUSE_S", 0.001)


async def started(*coordinators: Loses) -> list[str]:
    for coordinator in coordinators:
        await coordinator.start()
    return [coordinator.address for coordinator in coordinators]


GONE = Unavailable("gone")


@pytest.mark.parametrize("is_blocking", [True, False])
async def test_the_next_coordinator_goes_on_where_the_last_one_was_lost(is_blocking: bool) -> None:
    coordinators = (Loses(3, GONE), Loses(4, GONE), Loses())
    addresses = await started(*coordinators)

    def blocking() -> list[Any]:
        with Client(addresses, api_key="k" * 20) as client:
            return list(client.generate("hi", max_tokens=10, seed=7, stop=["end"]))

    if is_blocking:
        chunks = await asyncio.to_thread(blocking)
    else:
        async with AsyncClient(",".join(addresses), api_key="k" * 20) as client:
            chunks = [chunk async for chunk in client.generate("hi", max_tokens=10, seed=7, stop=["end"])]
    assert tuple(token for chunk in chunks for token in chunk.token_ids) == OUTPUT
    assert "".join(chunk.text for chunk in chunks) == "".join(map(chr, OUTPUT))
    assert [chunk.request_id for chunk in chunks if chunk.request_id] == ["id"]
    assert chunks[-1].finish_reason == "length"
    asked = [coordinator.requests[0] for coordinator in coordinators]
    assert [tuple(request.resume_token_ids) for request in asked] == [(), OUTPUT[:3], OUTPUT[:7]]
    assert all((request.prompt, request.max_tokens, request.sampling.seed) == ("hi", 10, 7) for request in asked)
    assert {one.metadata[0]["authorization"] for one in coordinators} == {"Bearer " + "k" * 20}
    for coordinator in coordinators:
        await coordinator.stop()


async def test_attempts_without_a_token_are_bounded() -> None:
    coordinators = (Loses(0, GONE), Loses(0, GONE))
    async with AsyncClient(await started(*coordinators)) as client:
        with pytest.raises(Unavailable, match="gone"):
            await client.complete("hi")
    assert [len(coordinator.requests) for coordinator in coordinators] == [1 + MAX_RETRIES] * 2
    for coordinator in coordinators:
        await coordinator.stop()


async def test_what_another_coordinator_would_answer_too_is_not_asked_again() -> None:
    coordinators = (Loses(0, InvalidInput("prompt", "hi", "no")), Loses())
    async with AsyncClient(await started(*coordinators)) as client:
        with pytest.raises(InvalidInput):
            await client.complete("hi")
    assert coordinators[1].requests == []
    for coordinator in coordinators:
        await coordinator.stop()


async def test_one_address_alone_is_asked_once_if_nothing_has_come() -> None:
    lost = Loses(0, GONE)
    async with AsyncClient(await started(lost)) as client:
        with pytest.raises(Unavailable):
            await client.complete("hi")
    assert len(lost.requests) == 1
    await lost.stop()


@pytest.mark.parametrize("is_blocking", [True, False])
async def test_one_address_alone_goes_on_once_something_has_come(is_blocking: bool) -> None:
    lost = Loses(3, GONE, num_losses=2)
    (address,) = await started(lost)

    def blocking() -> list[Any]:
        with Client(address) as client:
            return list(client.generate("hi"))

    async def read() -> list[Any]:
        async with AsyncClient(address) as client:
            return [chunk async for chunk in client.generate("hi")]

    chunks = await asyncio.to_thread(blocking) if is_blocking else await read()
    assert [len(request.resume_token_ids) for request in lost.requests] == [0, 3, 6]
    assert tuple(token for chunk in chunks for token in chunk.token_ids) == OUTPUT
    await lost.stop()


async def test_with_no_retries_a_failure_is_told_as_it_comes() -> None:
    for error in (GONE, Overloaded("queue", 1, 0.001)):
        lost = Loses(3, error)
        async with AsyncClient(await started(lost), max_retries=0) as client:
            with pytest.raises(type(error)):
                await client.complete("hi")
        assert len(lost.requests) == 1
        await lost.stop()
    with pytest.raises(InvalidInput, match="max_retries"):
        Client("a:1", max_retries=-1)


async def test_a_server_that_is_full_is_asked_again_a_few_times() -> None:
    full = Loses(0, Overloaded("queue", 1, 0.001))
    async with AsyncClient(await started(full)) as client:
        with pytest.raises(Overloaded):
            await client.complete("hi")
        assert len(full.requests) == 1 + MAX_RETRIES
    await full.stop()


def test_a_server_that_is_full_is_asked_again_when_it_says_and_another_one_at_once() -> None:
    alone = Progress(pb.GenerateRequest(), None, 1)
    assert alone.failed(Overloaded("queue", 1, 2.5)) == 2.5
    both = Progress(pb.GenerateRequest(), None, 2)
    assert [both.failed(Overloaded("queue", 1, 2.5)) for _ in range(2)] == [0.0, 2.5]
    with pytest.raises(Overloaded):
        Progress(pb.GenerateRequest(), None, 1).failed(Overloaded("queue", 1, MAX_BUSY_S + 1))
    with pytest.raises(Overloaded):
        Progress(pb.GenerateRequest(), 2.0, 1).failed(Overloaded("queue", 1, 2.5))


async def test_the_coordinator_that_answered_is_the_next_ones_first() -> None:
    coordinators = (Loses(0, GONE), Loses())
    async with AsyncClient(await started(*coordinators)) as client:
        assert (await client.model_info()).model == "tiny"
        await client.complete("hi")
        await client.complete("hi")
    assert coordinators[0].requests == []
    for coordinator in coordinators:
        await coordinator.stop()


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def test_the_callers_deadline_is_one_for_all_attempts() -> None:
    clock = Clock()
    progress = Progress(pb.GenerateRequest(), 10.0, 2, clock=clock)
    clock.now_s = 4.0
    assert progress.failed(GONE) == 0.0
    assert progress.left_s == 6.0
    clock.now_s = 10.0
    with pytest.raises(Unavailable):
        progress.failed(GONE)


@pytest.mark.parametrize("given", ["", "a:1,", [], ["a:1", ""]])
def test_addresses_are_checked(given: Any) -> None:
    with pytest.raises(InvalidInput, match="address"):
        addresses_of(given)
