"""The clients, against a coordinator that only pretends."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import msgpack
import pytest

import paceline
from coordinator.core.events import Tick
from paceline import fetched, rpc, trace
from paceline.client import AsyncClient, Chunk, Client, Completion
from paceline.errors import InvalidInput, Overloaded, PacelineError, PeerFault, Unavailable, UnknownRequest
from paceline.length_policy import LengthPolicy
from paceline.types import FinishReason, Mode, Role, Rule, Source
from paceline.wire import common_pb2, coordinator_pb2, coordinator_pb2_grpc
from tests.paceline.test_codec import worker_info

METRICS = coordinator_pb2.RequestMetrics(mode="pearl", num_drafts=2, fallbacks={"deadline": 1}, e2e_ms=1.5)


def reply(**fields: Any) -> Any:
    return coordinator_pb2.GenerateReply(**fields)


class Pretends:
    """Generates two chunks, and fails by prompt."""

    def __init__(self) -> None:
        self.requests: list[Any] = []
        self.cancelled = asyncio.Event()

    async def Generate(self, request: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802
        self.requests.append(request)
        async with rpc.answering(context):
            if request.prompt == "full":
                raise Overloaded("the queue", 8, 2)
            if request.prompt == "wrong":
                raise InvalidInput("prompt", "wrong", "ask for something else")
            if request.prompt == "nonsense":
                yield reply(sources=[77])
            yield reply(text="né", token_ids=[5, 6], sources=[1, 2], text_lengths=[1, 1], request_id="r-1")
            if request.prompt == "cut":
                return
            if request.prompt == "hang":
                try:
                    await asyncio.Event().wait()
                except asyncio.CancelledError:
                    self.cancelled.set()
                    raise
            yield reply(text="!", token_ids=[1], sources=[4], text_lengths=[1], finish_reason="stop", metrics=METRICS)

    async def Abort(self, request: Any, context: Any) -> Any:  # noqa: N802
        async with rpc.answering(context):
            if request.request_id != "r-1":
                raise UnknownRequest(request.request_id)
            return coordinator_pb2.AbortReply()

    async def GetModelInfo(self, _: Any, context: Any) -> Any:  # noqa: N802
        return coordinator_pb2.ModelInfo(model="tiny", vocab_size=9, max_model_len=8, eos_token_ids=[1])

    async def ListTraces(self, _: Any, context: Any) -> Any:  # noqa: N802
        summary = coordinator_pb2.TraceSummary(request_id="r-1", unix_s=1e9, num_prompt_tokens=3)
        return coordinator_pb2.TraceList(traces=[summary])

    async def GetTrace(self, request: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802
        async with rpc.answering(context):
            if request.request_id == "none":
                raise UnknownRequest(request.request_id)
            opened, step = [trace.opened(1e9, 5.0, {}), trace.step(Tick(), [], 6.0)]
            traces: dict[str, list[Any]] = {"r-1": [opened, step], "junk": [[1]], "much": [opened, b"x" * 2000]}
            pieces = traces[request.request_id]
            for piece in pieces:
                yield coordinator_pb2.TraceChunk(records=msgpack.packb(piece))

    async def GetServerInfo(self, _: Any, context: Any) -> Any:  # noqa: N802
        from paceline.codec import worker_info_to_wire

        worker = worker_info_to_wire(worker_info())
        return coordinator_pb2.ServerInfo(version="0.1.0", workers=[worker], num_requests_running=3)

    async def Register(self, _: Any, context: Any) -> Any:  # noqa: N802
        return coordinator_pb2.RegisterReply()


@pytest.fixture
async def served() -> AsyncIterator[tuple[Pretends, str]]:
    servicer = Pretends()
    add = partial(coordinator_pb2_grpc.add_CoordinatorServicer_to_server, servicer)
    server, port = await rpc.start_server([("paceline.wire.Coordinator", add)], "127.0.0.1", 0)
    yield servicer, f"127.0.0.1:{port}"
    await server.stop()


EXPECTED = Completion(
    text="né!",
    token_ids=(5, 6, 1),
    sources=(Source.ACCEPTED, Source.RECOVERED, Source.SELF_DECODED),
    finish_reason=FinishReason.STOP,
    metrics={},
    request_id="r-1",
)


async def test_chunks_come_as_they_were_sent(served: Any) -> None:
    async with AsyncClient(served[1]) as client:
        chunks = [chunk async for chunk in client.generate("hi")]
    sources = (Source.ACCEPTED, Source.RECOVERED)
    assert chunks[0] == Chunk("né", (5, 6), sources, (1, 1), None, None, "r-1")
    assert chunks[1].finish_reason is FinishReason.STOP
    assert chunks[1].metrics is not None
    assert chunks[1].metrics["num_drafts"] == 2
    assert chunks[1].metrics["fallbacks"] == {"deadline": 1}


async def test_both_clients_complete_alike(served: Any) -> None:
    def blocking() -> Completion:
        with Client(served[1]) as client:
            return client.complete([1, 2, 3])

    async with AsyncClient(served[1]) as client:
        for done in (await client.complete((1, 2, 3)), await asyncio.to_thread(blocking)):
            assert done.metrics["mode"] == "pearl"
            done.metrics.clear()
            assert done == EXPECTED
    assert [list(request.prompt_token_ids) for request in served[0].requests] == [[1, 2, 3]] * 2


async def test_every_option_reaches_the_coordinator(served: Any) -> None:
    async with AsyncClient(served[1]) as client:
        await client.complete(
            "hi",
            max_tokens=7,
            temperature=0.5,
            top_p=0.25,
            top_k=40,
            seed=0,
            min_p=0.125,
            repetition_penalty=1.5,
            presence_penalty=0.5,
            frequency_penalty=-0.5,
            logit_bias={5: -100, 3: 1.5},
            min_tokens=2,
            stop_token_ids=[8, 9],
            logprobs=True,
            top_logprobs=3,
            stop="END",
            ignore_eos=True,
            mode="pearl",
            rule=Rule.TOKEN,
            length_policy="svip:max_length=9",
            max_draft_length=6,
            window=3,
            request_id="mine",
            timeout_s=5,
        )
        await client.complete("hi", mode="auto", length_policy=LengthPolicy())
    given, plain = served[0].requests
    policy = common_pb2.LengthPolicy(name="svip", parameters={"threshold_nats": 0.6, "max_length": 9})
    assert given == coordinator_pb2.GenerateRequest(
        prompt="hi",
        max_tokens=7,
        sampling=common_pb2.SamplingParams(
            temperature=0.5,
            top_p=0.25,
            top_k=40,
            seed=0,
            min_p=0.125,
            repetition_penalty=1.5,
            presence_penalty=0.5,
            frequency_penalty=-0.5,
            logit_bias={5: -100, 3: 1.5},
            min_tokens=2,
            stop_token_ids=[8, 9],
            logprobs=True,
            top_logprobs=3,
        ),
        stop=["END"],
        ignore_eos=True,
        mode=common_pb2.MODE_PEARL,
        rule=common_pb2.RULE_TOKEN,
        length_policy=policy,
        max_draft_length=6,
        window=3,
        request_id="mine",
    )
    assert (plain.mode, plain.rule, plain.window, plain.max_tokens) == (0, 0, 0, 128)
    assert plain.sampling == common_pb2.SamplingParams(top_p=1, repetition_penalty=1)


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"mode": "fast"}, "mode"),
        ({"rule": "maybe"}, "rule"),
        ({"top_p": 0.0}, "top_p"),
        ({"length_policy": "guess"}, "length_policy"),
        ({"max_tokens": -1}, "request"),
        ({"stop": [3]}, "request"),
    ],
)
async def test_what_can_be_told_wrong_at_home_is(served: Any, options: Any, field: str) -> None:
    async with AsyncClient(served[1]) as client:
        with pytest.raises(InvalidInput, match=field):
            await client.complete("hi", **options)
    assert served[0].requests == []


@pytest.mark.parametrize(
    ("prompt", "kind", "text"),
    [
        ("full", Overloaded, "the queue: full at 8; try again in 2 s"),
        ("wrong", InvalidInput, "prompt='wrong': ask for something else"),
        ("nonsense", PeerFault, "sources=77"),
        ("cut", PeerFault, "without a finish reason"),
    ],
)
async def test_errors_come_with_the_servers_text(
    served: Any, prompt: str, kind: type[PacelineError], text: str
) -> None:
    def blocking() -> None:
        with Client(served[1]) as client:
            client.complete(prompt)

    async with AsyncClient(served[1]) as client:
        with pytest.raises(PacelineError) as caught:
            await client.complete(prompt)
    with pytest.raises(PacelineError) as caught_too:
        await asyncio.to_thread(blocking)
    for error in (caught.value, caught_too.value):
        assert type(error) is kind
        assert text in str(error)


async def test_leaving_early_ends_the_request_at_the_server(served: Any) -> None:
    async with AsyncClient(served[1]) as client:
        chunks = client.generate("hang")
        async for _ in chunks:
            break
        await chunks.aclose()  # type: ignore[attr-defined]
        await asyncio.wait_for(served[0].cancelled.wait(), 5)


async def test_a_deadline_that_passes_is_unavailable(served: Any) -> None:
    async with AsyncClient(served[1]) as client:
        with pytest.raises(Unavailable):
            await client.complete("hang", timeout_s=0.1)


async def test_nobody_there_is_unavailable(served: Any) -> None:
    async with AsyncClient("127.0.0.1:1") as client:
        with pytest.raises(Unavailable):
            await client.complete("hi", timeout_s=5)


async def test_the_other_calls(served: Any) -> None:
    def blocking() -> tuple[Any, Any]:
        with Client(served[1]) as client:
            client.abort("r-1")
            return client.model_info(), client.server_info()

    async with AsyncClient(served[1]) as client:
        await client.abort("r-1")
        with pytest.raises(UnknownRequest, match="r-2"):
            await client.abort("r-2")
        model, server = await client.model_info(), await client.server_info()
    assert (model.model, model.eos_token_ids) == ("tiny", (1,))
    assert server.workers[0].role is Role.DRAFTER
    assert server.num_requests_running == 3
    assert await asyncio.to_thread(blocking) == (model, server)


def test_modes_are_strings_too() -> None:
    assert Mode("pearl") is Mode.PEARL


def test_the_clients_are_the_packages_own_and_imported_only_when_asked_for() -> None:
    assert (paceline.Client, paceline.AsyncClient) == (Client, AsyncClient)
    with pytest.raises(AttributeError, match="Cleint"):
        _ = paceline.Cleint
    program = "import sys, paceline; print('grpc' in sys.modules); paceline.Client; print('grpc' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == ["False", "True"]


async def test_a_trace_comes_in_pieces_and_is_read_as_one(served: Any) -> None:
    async with AsyncClient(served[1]) as client:
        (summary,) = await client.traces()
        assert (summary.request_id, summary.num_prompt_tokens, summary.finish_reason) == ("r-1", 3, "")
        opened, step = await client.trace("r-1")
    assert isinstance(opened, trace.Opened)
    assert isinstance(step, trace.Step)
    assert (step.at_s, step.event) == (6.0, {"is": "Tick"})


async def test_a_trace_that_is_none_is_the_peers_fault_and_one_without_end_is_not_taken(
    served: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetched, "MAX_BYTES", 1000)
    async with AsyncClient(served[1]) as client:
        with pytest.raises(UnknownRequest, match="none"):
            await client.trace("none")
        with pytest.raises(PeerFault, match="malformed"):
            await client.trace("junk")
        with pytest.raises(PeerFault, match="more than 1000 bytes"):
            await client.trace("much")


async def test_the_blocking_client_has_traces_too(served: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def ask() -> None:
        with Client(served[1]) as client:
            assert [one.request_id for one in client.traces()] == ["r-1"]
            opened, step = client.trace("r-1")
            assert isinstance(opened, trace.Opened)
            assert isinstance(step, trace.Step)
            with pytest.raises(UnknownRequest, match="none"):
                client.trace("none")
            monkeypatch.setattr(fetched, "MAX_BYTES", 1000)
            with pytest.raises(PeerFault, match="more than 1000 bytes"):
                client.trace("much")

    await asyncio.to_thread(ask)
