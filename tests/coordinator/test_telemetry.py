"""Traces: what is in them and what never is, and that they reach a receiver."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Sequence
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from coordinator import telemetry
from coordinator.api import CoordinatorServer
from coordinator.config import CoordinatorConfig
from coordinator.core.commands import Ask, Emit, Fail, Finish
from coordinator.core.events import Arrived, Branched, Drafted, RequestSpec, Tick, Verified
from coordinator.core.metrics import RequestMetrics
from coordinator.telemetry import MAX_SPANS, Telemetry
from paceline.client import AsyncClient
from paceline.errors import InvalidInput, Unavailable
from paceline.types import Branch, Draft, FinishReason, OpenVerify, Rule, SamplingParams, Source, Verdict
from tests.coordinator.http.conftest import client
from tests.coordinator.toy import Toy, write_model

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
CALLER = {"traceparent": f"00-{TRACE}-{PARENT}-01"}


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*telemetry.ENDPOINTS, "OTEL_SDK_DISABLED", "OTEL_TRACES_SAMPLER", "OTEL_TRACES_EXPORTER"):
        monkeypatch.delenv(name, raising=False)


def spec(request_id: str = "a", prompt: tuple[int, ...] = (1, 2, 3)) -> RequestSpec:
    return RequestSpec(request_id, prompt, 8, SamplingParams(), seed=1, draft_seed=2)


def metrics() -> RequestMetrics:
    return RequestMetrics("pearl", "match", "fixed:length=8", 4, num_prompt_tokens=3, ttft_ms=100.0, e2e_ms=400.0)


async def spans_of(traces: Telemetry, exporter: InMemorySpanExporter) -> Sequence[ReadableSpan]:
    await traces.close()
    return exporter.get_finished_spans()


def seconds(span: ReadableSpan) -> float:
    assert span.start_time is not None
    assert span.end_time is not None
    return (span.end_time - span.start_time) / 1e9


def service(span: ReadableSpan) -> Any:
    return span.resource.attributes["service.name"]


async def test_a_request_is_one_trace_with_the_work_of_every_role_as_long_as_it_says() -> None:
    traces = Telemetry(exporter := InMemorySpanExporter(), "m", 0.0)
    traces.expect("a", CALLER)
    opened = Ask("v", OpenVerify("a", (1, 2, 3), SamplingParams(), Rule.MATCH, 1))
    traces.observe(Arrived(spec()), [], 10.0)
    traces.observe(Tick(), [opened], 10.5)
    traces.observe(Tick(), [opened], 10.6)  # a move is no second queue
    traces.observe(Drafted("d", Draft("a", 0, 3, (5, 6, 7), draft_ms=120.0)), [], 11.0)
    verdict = Verdict("a", 0, 3, (5, 6), (Source.ACCEPTED,) * 2, 2, 1, verify_ms=250.0, batch_tokens=4)
    traces.observe(Verified("v", verdict), [Emit("a", (5, 6), verdict.sources)], 11.5)
    traces.observe(Tick(), [Finish("a", FinishReason.LENGTH, metrics())], 12.0)
    spans = {span.name: span for span in await spans_of(traces, exporter)}
    assert set(spans) == {"llm_request", "queue", "draft", "verify"}
    root = spans["llm_request"]
    assert {span.context.trace_id for span in spans.values() if span.context} == {int(TRACE, 16)}
    assert root.parent is not None
    assert root.context is not None
    assert root.parent.span_id == int(PARENT, 16)
    assert {spans[name].parent.span_id for name in ("queue", "draft", "verify")} == {root.context.span_id}  # type: ignore[union-attr]
    lasted = {name: seconds(span) for name, span in spans.items()}
    assert lasted == pytest.approx({"llm_request": 2.0, "queue": 0.5, "draft": 0.12, "verify": 0.25})
    assert [service(spans[name]) for name in ("queue", "draft", "verify")] == [
        f"paceline-{part}" for part in ("coordinator", "drafter", "verifier")
    ]
    assert spans["verify"].attributes is not None
    assert (spans["verify"].attributes["paceline.num_tokens"], spans["verify"].attributes["paceline.worker"]) == (
        2,
        "v",
    )
    assert root.attributes is not None
    assert root.attributes["gen_ai.latency.time_to_first_token"] == 0.1
    assert [event.name for event in root.events] == ["first_token"]


async def test_a_branch_is_the_drafters_work_too() -> None:
    traces = Telemetry(exporter := InMemorySpanExporter(), "m", 0.0)
    traces.observe(Arrived(spec()), [], 10.0)
    traces.observe(Branched("d", Branch(7, Draft("a", 2, 3, (5, 6), draft_ms=40.0))), [], 10.5)
    (span,) = [one for one in await spans_of(traces, exporter) if one.name == "branch"]
    assert seconds(span) == pytest.approx(0.04)
    assert service(span) == "paceline-drafter"
    assert span.attributes == {"paceline.worker": "d", "paceline.num_tokens": 2, "paceline.epoch": 2}


async def test_a_long_request_has_a_bounded_number_of_spans_and_says_how_many_are_left_out() -> None:
    traces = Telemetry(exporter := InMemorySpanExporter(), "m", 0.0)
    traces.observe(Arrived(spec()), [], 0.0)
    for i in range(MAX_SPANS + 5):
        traces.observe(Drafted("d", Draft("a", 0, i, (5,), draft_ms=1.0)), [], float(i))
    traces.observe(Tick(), [Fail("a", Unavailable("the client's text"))], 1e4)
    spans = await spans_of(traces, exporter)
    assert len(spans) == MAX_SPANS + 1
    (root,) = (span for span in spans if span.name == "llm_request")
    assert root.attributes is not None
    assert root.attributes["paceline.num_spans_left_out"] == 5
    assert root.attributes["error.type"] == "Unavailable"
    assert not root.status.is_ok
    assert "client's text" not in root.to_json()


async def test_what_the_sampler_leaves_out_costs_no_spans(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "always_off")
    traces = Telemetry(exporter := InMemorySpanExporter(), "m", 0.0)
    traces.observe(Arrived(spec()), [], 0.0)
    assert not traces._running
    assert not await spans_of(traces, exporter)


async def test_over_http_the_trace_is_the_callers_and_nothing_of_the_prompt_or_the_text_is_in_it(
    tmp_path: Path,
) -> None:
    toy = Toy(write_model(tmp_path / "model"), text="a secret answer")
    toy.add_verifier()
    toy.telemetry = Telemetry(exporter := InMemorySpanExporter(), "m", toy.now_s())
    toy.observers.append(toy.telemetry)
    async with client(toy) as http:
        body = {"prompt": "a secret question", "max_tokens": 20, "stop": "wer", "logprobs": 1}
        assert (await http.post("/v1/completions", json=body, headers=CALLER)).status_code == 200
    spans = await spans_of(toy.telemetry, exporter)
    assert {f"{span.context.trace_id:032x}" for span in spans if span.context} == {TRACE}
    assert {span.name for span in spans} == {"llm_request", "queue", "verify"}
    told = json.dumps([json.loads(span.to_json()) for span in spans])
    assert "secret" not in told
    assert 'wer"' not in told


class Receiver(trace_service_pb2_grpc.TraceServiceServicer):
    """An OTLP receiver that keeps what it gets."""

    def __init__(self) -> None:
        self.requests: list[Any] = []

    def Export(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.requests.append(request)
        return trace_service_pb2.ExportTraceServiceResponse()


async def test_a_real_receiver_gets_the_trace_of_a_call_over_grpc(tmp_path: Path) -> None:
    receiver = Receiver()
    server = grpc.server(futures.ThreadPoolExecutor(1))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(receiver, server)  # type: ignore[no-untyped-call]
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        model = str(write_model(tmp_path / "model"))
        config = CoordinatorConfig(model, grpc_port=0, otlp_traces_endpoint=f"http://127.0.0.1:{port}")
        it = CoordinatorServer(config)
        await it.start()
        async with AsyncClient(f"127.0.0.1:{it.port}") as plain, asyncio.timeout(30):
            call = plain.generate([1, 2, 3], max_tokens=4, timeout_s=0.2, traceparent=CALLER["traceparent"])
            with pytest.raises(Unavailable):  # nobody is there to verify
                await anext(call)
            await it.stop()
    finally:
        await asyncio.to_thread(server.stop(0).wait)
    (spans,) = (
        scope.spans for request in receiver.requests for one in request.resource_spans for scope in one.scope_spans
    )
    assert [(span.name, span.trace_id.hex()) for span in spans] == [("llm_request", TRACE)]


async def test_a_receiver_that_does_not_answer_holds_up_no_request_and_not_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The SDK's own shutdown would wait for as long as the exporter does."""
    monkeypatch.setattr(telemetry, "FLUSH_S", 0.05)
    answered = threading.Event()

    class Stuck(SpanExporter):
        def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
            answered.wait()
            return SpanExportResult.SUCCESS

    traces = Telemetry(Stuck(), "m", 0.0)
    try:
        async with asyncio.timeout(20):
            for i in range(3000):  # more than the SDK keeps
                traces.observe(Arrived(spec(str(i))), [Fail(str(i), Unavailable("x"))], 0.0)
            await traces.close()
    finally:
        answered.set()


def test_without_an_endpoint_there_is_none_and_without_the_package_the_option_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert telemetry.start(CoordinatorConfig("x"), 0.0) is None

    def missing(_: str | None) -> Any:
        raise ImportError

    monkeypatch.setattr(telemetry, "_exporter", missing)
    with pytest.raises(InvalidInput, match=r"paceline\[otel\]"):
        telemetry.start(CoordinatorConfig("x", otlp_traces_endpoint="http://127.0.0.1:4317"), 0.0)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4317")
    assert telemetry.start(CoordinatorConfig("x"), 0.0) is None
    assert "paceline[otel]" in caplog.text
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    assert telemetry.start(CoordinatorConfig("x", otlp_traces_endpoint="http://127.0.0.1:4317"), 0.0) is None
