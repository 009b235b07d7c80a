"""OpenTelemetry: one trace a request, with the work of drafter and verifier in it.

Every span is made here, from the durations that the workers' replies carry, placed on the coordinator's clock by their
arrival, as on the web page. So no two clocks are compared, nothing is added to the wire or to a worker's step, and a
drafter that nobody trusts writes into nobody's trace. A span stands late by one way of the wire; its duration is the
worker's own. Drafter and verifier have providers of their own, so a viewer shows three services.

The rules: no prompt, no text and no token id is an attribute. Spans wait in the SDK's bounded queue and are exported by
its own thread; what does not fit is lost, never waited for. Where to, how many and which is the environment's, by
OpenTelemetry's standard names (OTEL_EXPORTER_OTLP_ENDPOINT, OTEL_TRACES_SAMPLER, …). Without an endpoint nothing of it
is imported.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from coordinator.core.commands import Ask, Command, Emit, Fail, Finish
from coordinator.core.events import Arrived, Branched, Drafted, Event, Verified
from coordinator.core.metrics import RequestMetrics
from paceline import __version__
from paceline.errors import InvalidInput
from paceline.types import Draft, OpenVerify

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import Span

    from coordinator.config import CoordinatorConfig

log = logging.getLogger(__name__)

ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
FIELDS = ("traceparent", "tracestate")  # W3C's, as HTTP headers and as gRPC metadata
MAX_SPANS = 1024  # of one request; of a longer one the rest is only counted
MAX_EXPECTED = 4096  # callers' contexts of requests that have not arrived yet
FLUSH_S = 2.0  # of a coordinator's end, which may take 8 s in all
_FIX = "needs pip install 'paceline[otel]'"
# What a request did, by the keys of its metrics.
_FIGURES = (
    *("mode", "rule", "length_policy", "num_drafts", "num_draft_tokens", "num_tested_tokens", "num_accepted_tokens"),
    *("num_wasted_tokens", "num_target_passes", "overlap_share", "draft_ms", "verify_ms", "wire_ms"),
)


def start(config: CoordinatorConfig, clock_s: float) -> Telemetry | None:
    """What `--otlp-traces-endpoint` or the environment asks for; None if neither does. Raises InvalidInput."""
    endpoint = config.otlp_traces_endpoint
    is_off = (
        os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true" or os.environ.get("OTEL_TRACES_EXPORTER") == "none"
    )
    if is_off or not (endpoint or any(os.environ.get(name) for name in ENDPOINTS)):
        return None
    try:
        exporter = _exporter(endpoint)
    except ImportError:
        if endpoint:
            raise InvalidInput("otlp_traces_endpoint", endpoint, _FIX) from None
        log.warning("OTEL_EXPORTER_OTLP_ENDPOINT is set, and no traces are sent: that %s", _FIX)
        return None
    return Telemetry(exporter, config.model_name, clock_s)


def _exporter(endpoint: str | None) -> SpanExporter:
    """By gRPC unless OpenTelemetry's variable says HTTP, each a package of its own. Raises ImportError."""
    protocol = os.environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or os.environ.get("OTEL_EXPORTER_OTLP_PROTOCOL")
    kind = "http" if protocol == "http/protobuf" else "grpc"
    module = importlib.import_module(f"opentelemetry.exporter.otlp.proto.{kind}.trace_exporter")
    exporter: SpanExporter = module.OTLPSpanExporter(endpoint)
    return exporter


@dataclass(slots=True)
class _Trace:
    """A request under way."""

    root: Span
    context: Any  # of the spans below it
    arrived_ns: int
    num_spans: int = 0
    is_placed: bool = False  # a verifier has it
    has_token: bool = False


class Telemetry:
    """See the top of the file. An observer of the coordinator."""

    def __init__(self, exporter: SpanExporter, model: str, clock_s: float) -> None:
        """`clock_s`: what the coordinator's clock says now."""
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        self._processor = BatchSpanProcessor(exporter)
        self._tracers = {}
        name = os.environ.get("OTEL_SERVICE_NAME", "paceline")
        for part in ("coordinator", "drafter", "verifier"):
            resource = Resource.create({"service.name": f"{name}-{part}", "service.version": __version__})
            provider = TracerProvider(resource=resource, shutdown_on_exit=False)
            provider.add_span_processor(self._processor)
            self._tracers[part] = provider.get_tracer("paceline", __version__)
        self._model = model
        self._unix_ns = time.time_ns() - int(1e9 * clock_s)  # of the coordinator's clock's zero
        self._callers: OrderedDict[str, Mapping[str, str]] = OrderedDict()
        self._running: dict[str, _Trace] = {}

    def expect(self, request_id: str, caller: Mapping[str, str]) -> None:
        """The request that arrives under this id belongs to the trace of `caller` (W3C's headers); empty: to none."""
        if caller:
            self._callers[request_id] = caller
            if len(self._callers) > MAX_EXPECTED:
                self._callers.popitem(last=False)

    async def close(self) -> None:
        """Export what waits, for FLUSH_S at most."""
        for trace in self._running.values():
            trace.root.end()
        # The SDK waits half a minute for a receiver that is gone. A daemon thread may, this process does not.
        ending = threading.Thread(target=self._processor.shutdown, name="telemetry", daemon=True)
        ending.start()
        await asyncio.to_thread(ending.join, FLUSH_S)

    def observe(self, event: Event, commands: Sequence[Command], now_s: float) -> None:
        now_ns = self._unix_ns + int(1e9 * now_s)
        match event:
            case Arrived():
                self._begin(event, now_ns)
            case Drafted(worker, draft):
                self._drafted("draft", worker, draft, now_ns)
            case Branched(worker, branch):
                self._drafted("branch", worker, branch.draft, now_ns)
            case Verified(worker, verdict) if verdict.verify_ms:
                counts = {
                    "paceline.num_tokens": len(verdict.token_ids),
                    "paceline.num_tested": verdict.num_tested,
                    "paceline.num_drafts": verdict.num_drafts,
                    "paceline.batch_tokens": verdict.batch_tokens,
                }
                told = {"paceline.worker": worker, "paceline.queue_ms": verdict.queue_ms} | counts
                self._work("verifier", "verify", verdict.request_id, verdict.verify_ms, now_ns, told)
        for command in commands:
            self._follow(command, now_ns)

    def _drafted(self, name: str, worker: str, draft: Draft, now_ns: int) -> None:
        if draft.draft_ms:
            told = {
                "paceline.worker": worker,
                "paceline.num_tokens": len(draft.token_ids),
                "paceline.epoch": draft.epoch,
            }
            self._work("drafter", name, draft.request_id, draft.draft_ms, now_ns, told)

    def _begin(self, event: Arrived, now_ns: int) -> None:
        from opentelemetry.trace import SpanKind, set_span_in_context
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        spec = event.spec
        caller = TraceContextTextMapPropagator().extract(self._callers.pop(spec.request_id, {}))
        root = self._tracers["coordinator"].start_span(
            "llm_request",
            caller,
            SpanKind.SERVER,
            {
                "gen_ai.system": "paceline",
                "gen_ai.request.model": self._model,
                "gen_ai.request.id": spec.request_id,
                "gen_ai.request.max_tokens": spec.max_tokens,
                "gen_ai.request.temperature": spec.sampling.temperature,
                "gen_ai.request.top_p": spec.sampling.top_p,
                "gen_ai.usage.prompt_tokens": len(spec.token_ids),
            },
            start_time=now_ns,
        )
        if root.is_recording():  # else the sampler has left it out
            self._running[spec.request_id] = _Trace(root, set_span_in_context(root), now_ns)

    def _work(self, part: str, name: str, request_id: str, ms: float, end_ns: int, attributes: dict[str, Any]) -> None:
        """A span of a worker's work that ended now, by its own word `ms` long."""
        trace = self._running.get(request_id)
        if trace is None:
            return
        trace.num_spans += 1
        if trace.num_spans <= MAX_SPANS:
            start_ns = max(trace.arrived_ns, end_ns - int(1e6 * ms))
            span = self._tracers[part].start_span(name, trace.context, attributes=attributes, start_time=start_ns)
            span.end(end_ns)

    def _follow(self, command: Command, now_ns: int) -> None:
        match command:
            case Ask(_, OpenVerify(request_id)) if (trace := self._running.get(request_id)) and not trace.is_placed:
                trace.is_placed = True
                queue = self._tracers["coordinator"].start_span("queue", trace.context, start_time=trace.arrived_ns)
                queue.end(now_ns)
            case Emit(request_id, token_ids) if (trace := self._running.get(request_id)) and not trace.has_token:
                trace.has_token = bool(token_ids)
                trace.root.add_event("first_token", timestamp=now_ns)
            case Finish(request_id, reason, metrics) if trace := self._running.pop(request_id, None):
                trace.root.set_attributes(_figures(metrics) | {"gen_ai.response.finish_reasons": [str(reason)]})
                self._end(trace, now_ns)
            case Fail(request_id, error) if trace := self._running.pop(request_id, None):
                from opentelemetry.trace import Status, StatusCode

                # The class alone: an error's text may quote what the client sent.
                trace.root.set_status(Status(StatusCode.ERROR, type(error).__name__))
                trace.root.set_attribute("error.type", type(error).__name__)
                self._end(trace, now_ns)

    @staticmethod
    def _end(trace: _Trace, now_ns: int) -> None:
        if trace.num_spans > MAX_SPANS:
            trace.root.set_attribute("paceline.num_spans_left_out", trace.num_spans - MAX_SPANS)
        trace.root.end(now_ns)


def _figures(metrics: RequestMetrics) -> dict[str, Any]:
    """vLLM's names for what it tells of a request too, then ours; seconds there, as with vLLM."""
    return {
        "gen_ai.usage.completion_tokens": metrics.num_generated_tokens,
        "gen_ai.latency.time_in_queue": metrics.queue_ms / 1e3,
        "gen_ai.latency.time_to_first_token": metrics.ttft_ms / 1e3,
        "gen_ai.latency.e2e": metrics.e2e_ms / 1e3,
        **{f"paceline.{name}": getattr(metrics, name) for name in _FIGURES},
        **{f"paceline.fallbacks.{reason.replace(' ', '_')}": count for reason, count in metrics.fallbacks.items()},
    }
