"""Prometheus metrics: vLLM's names for what vLLM has too, so that its dashboards and tools work here, and our own.

An observer of the coordinator counts. What a request has done is counted while it runs, but only when somebody reads:
then, and at its end, by how much its own metrics have grown since. So no event costs anything for it. What is a state
rather than an event (who is here, who waits) is read when the metrics are (`coordinator/metrics_state.py`). Nothing
that a client chooses freely becomes a label. docs/metrics.md has every name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics, generate_latest

from coordinator.core.commands import Command, Emit, Fail, Finish
from coordinator.core.events import Arrived, Drafted, Event, Verified, WorkerDown
from coordinator.core.metrics import RequestMetrics
from coordinator.metrics_state import MODEL, State
from coordinator.server import Coordinator
from paceline.types import FinishReason, Verdict

# vLLM's, so that panels over both add up; finer at the low end where tokens come several at a time.
_TTFT_S = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160, 640)
_TOKEN_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 10, 40)
_REQUEST_S = (0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920)
_STEP_S = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)
_TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000)
_LENGTHS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 24, 32, 48, 64)
_CHOICES = (1, 2, 5, 10, 20)
_SHARES = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1)

_Counted = dict[tuple[str, object], int]  # what has been counted of a request's metrics, by name and label


@dataclass(slots=True)
class _Running:
    """What is remembered of a request between its events."""

    arrived_s: float
    num_prompt_tokens: int
    metrics: RequestMetrics | None
    call: str  # the first of the outputs of its prompt
    num_siblings: int  # of them, this one included
    last_token_s: float | None = None
    counted: _Counted = field(default_factory=dict)


@dataclass(slots=True)
class _Call:
    """The outputs of one prompt."""

    num_running: int = 0
    longest: int = 0  # tokens of those that have ended


class MetricsExport:
    """See the top of the file. An observer of the coordinator."""

    def __init__(self, coordinator: Coordinator) -> None:
        # Else every counter is there twice, once as the time at which it began.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        self._model = coordinator.config.model_name
        self._pipeline = coordinator.pipeline
        self._running: dict[str, _Running] = {}
        self._calls: dict[str, _Call] = {}  # by their first output
        self._last_pass: dict[str, tuple[float, int]] = {}  # by verifier: its milliseconds and tokens
        self._make_vllms()
        self._make_ours()
        self._make_counted()
        self.registry.register(State(coordinator, self._model))

    def render(self) -> bytes:
        """Everything in Prometheus' text format."""
        self.count_running()
        return generate_latest(self.registry)

    def _make_vllms(self) -> None:
        self._ttft = self._histogram("vllm:time_to_first_token_seconds", "Arrival to first token.", _TTFT_S)
        self._itl = self._histogram("vllm:inter_token_latency_seconds", "Between two tokens.", _TOKEN_S)
        self._itl_old = self._histogram("vllm:time_per_output_token_seconds", "The same, by its older name.", _TOKEN_S)
        self._tpot = self._histogram(
            "vllm:request_time_per_output_token_seconds", "A request's mean time a token after the first.", _TOKEN_S
        )
        self._e2e = self._histogram("vllm:e2e_request_latency_seconds", "Arrival to last token.", _REQUEST_S)
        self._queue = self._histogram("vllm:request_queue_time_seconds", "Waiting for a verifier.", _REQUEST_S)
        self._prefill = self._histogram("vllm:request_prefill_time_seconds", "A verifier to first token.", _REQUEST_S)
        self._decode = self._histogram("vllm:request_decode_time_seconds", "First token to last.", _REQUEST_S)
        self._inference = self._histogram(
            "vllm:request_inference_time_seconds", "A verifier to last token.", _REQUEST_S
        )
        self._num_prompt = self._histogram("vllm:request_prompt_tokens", "Tokens of a prompt.", _TOKENS)
        self._num_output = self._histogram("vllm:request_generation_tokens", "Tokens of an output.", _TOKENS)
        self._prompt = self._counter("vllm:prompt_tokens", "Tokens of prompts that have been read.")
        self._generated = self._counter("vllm:generation_tokens", "Tokens committed.")
        self._success = self._counter("vllm:request_success", "Requests that ended well.", "finished_reason")
        self._n = self._histogram("vllm:request_params_n", "Outputs asked for of a prompt.", _CHOICES)
        self._longest = self._histogram(
            "vllm:request_max_num_generation_tokens", "Tokens of the longest of a prompt's outputs.", _TOKENS
        )
        self._iteration = self._histogram("vllm:iteration_tokens_total", "Tokens in a verifier's pass.", _TOKENS)
        self._max_tokens = self._histogram("vllm:request_params_max_tokens", "Tokens asked for at most.", _TOKENS)

    def _make_ours(self) -> None:
        self._draft_s = self._histogram("paceline_draft_seconds", "Computing one draft.", _STEP_S)
        self._verify_s = self._histogram(
            "paceline_verify_seconds", "A verifier's pass, for each request in it.", _STEP_S
        )
        self._pass_tokens = self._histogram(
            "paceline_pass_tokens", "Tokens in a verifier's pass, for each request in it.", _TOKENS
        )
        self._verify_queue_s = self._histogram("paceline_verify_queue_seconds", "Waiting for that pass.", _STEP_S)
        self._wire_s = self._histogram("paceline_wire_seconds", "A request's mean wire time a verification.", _STEP_S)
        self._length = self._histogram("paceline_draft_length_tokens", "Length of the drafts received.", _LENGTHS)
        self._overlap = self._histogram(
            "paceline_overlap_share", "A request's share of drafting during which a verification ran.", _SHARES
        )
        self._wasted = self._counter("paceline_wasted_tokens", "Tokens drafted and never accepted.")
        self._branch_wasted = self._counter("paceline_wasted_branch_tokens", "Those of outcomes that did not come.")
        self._chosen = self._counter(
            "paceline_requests",
            "Requests that ended well, by what was chosen for them.",
            "mode",
            "rule",
            "length_policy",
        )
        self._responses = self._counter("paceline_http_responses", "HTTP responses begun.", "path", "status")
        self._failures = self._counter("paceline_request_failures", "Requests that ended badly.", "error")
        self._coordinator_s = self._histogram(
            "paceline_coordinator_seconds", "The coordinator's own work on a request.", _STEP_S
        )

    def _make_counted(self) -> None:
        """What is read from the requests' own metrics, by the name that it has there."""
        self._plain = {
            "num_drafts": self._counter("vllm:spec_decode_num_drafts", "Drafts judged."),
            "num_judged_tokens": self._counter("vllm:spec_decode_num_draft_tokens", "Tokens of the drafts judged."),
            "num_accepted_tokens": self._counter("vllm:spec_decode_num_accepted_tokens", "Drafted tokens accepted."),
            "num_tested_tokens": self._counter("paceline_tested_tokens", "Drafted tokens that a rule looked at."),
            "num_draft_tokens": self._counter("paceline_drafted_tokens", "Tokens of the drafts received."),
            "num_stale_drafts": self._counter("paceline_stale_drafts", "Drafts of a run that had ended."),
            "num_branches": self._counter("paceline_branches", "Drafts for other outcomes than the chain's."),
            "num_branch_tokens": self._counter("paceline_branch_tokens", "Tokens drafted in them."),
        }
        self._labelled = {
            "accepted_at": self._counter(
                "vllm:spec_decode_num_accepted_tokens_per_pos",
                "Drafted tokens accepted, by place in their draft.",
                "position",
            ),
            "sources": self._counter("paceline_committed_tokens", "Tokens committed.", "source"),
            "branch_runs": self._counter("paceline_branch_runs", "Runs in mode branch by how they began.", "outcome"),
            "fallbacks": self._counter("paceline_fallbacks", "Self-decodes, by reason.", "reason"),
            "tokens_by_mode": self._counter("paceline_tokens_by_mode", "Tokens committed, by mode in force.", "mode"),
        }

    def _histogram(self, name: str, what: str, buckets: Sequence[float]) -> Histogram:
        return Histogram(name, what, [MODEL], buckets=buckets, registry=self.registry).labels(self._model)

    def _counter(self, name: str, what: str, *labels: str) -> Counter:
        counter = Counter(name, what, [MODEL, *labels], registry=self.registry)
        return counter if labels else counter.labels(self._model)

    def responded(self, path: str, status: int) -> None:
        """An HTTP response has begun. `path` is a route's template, never what a client has written."""
        self._responses.labels(self._model, path, str(status)).inc()

    def observe(self, event: Event, commands: Sequence[Command], now_s: float) -> None:
        match event:
            case Arrived(spec):
                # Its metrics from now to its end; none if it was refused at once.
                did = self._pipeline.metrics(spec.request_id)
                call = spec.sibling_of or spec.request_id
                self._running[spec.request_id] = _Running(now_s, len(spec.token_ids), did, call, spec.num_siblings)
                self._calls.setdefault(call, _Call()).num_running += 1
                self._max_tokens.observe(spec.max_tokens)
            case Drafted(_, draft):
                self._draft_s.observe(draft.draft_ms / 1e3)
                self._length.observe(len(draft.token_ids))
            case Verified(worker, verdict) if verdict.verify_ms:
                self._passed(worker, verdict)
                self._verify_s.observe(verdict.verify_ms / 1e3)
                self._verify_queue_s.observe(verdict.queue_ms / 1e3)
                self._pass_tokens.observe(verdict.batch_tokens)
            case WorkerDown(worker):
                self._last_pass.pop(worker, None)
        for command in commands:
            match command:
                case Emit(request_id, token_ids):
                    self._emitted(request_id, len(token_ids), now_s)
                case Finish(request_id, reason, metrics):
                    running = self._running.pop(request_id, None)
                    self._ended(running, metrics.num_generated_tokens)
                    self._finished(running, reason, metrics)
                case Fail(request_id, error):
                    running = self._running.pop(request_id, None)
                    if running:
                        self._ended(running, None)
                        self._count(running.metrics, running.counted)
                    if running or not request_id:  # one that was turned away has none
                        self._failures.labels(self._model, type(error).__name__).inc()

    def _passed(self, worker: str, verdict: Verdict) -> None:
        """Requests of one pass answer one after another, with the same time and number of tokens: it counts once."""
        seen = verdict.verify_ms, verdict.batch_tokens
        if self._last_pass.get(worker) != seen:
            self._last_pass[worker] = seen
            self._iteration.observe(verdict.batch_tokens)

    def _emitted(self, request_id: str, num_tokens: int, now_s: float) -> None:
        """Tokens that come together share the time since the last ones evenly, so that the sum is the truth."""
        request = self._running.get(request_id)
        if request is None or not num_tokens:
            return
        self._generated.inc(num_tokens)
        if request.last_token_s is None:
            self._prompt.inc(request.num_prompt_tokens)
            self._ttft.observe(now_s - request.arrived_s)
            request.last_token_s = now_s
            num_tokens -= 1
        each_s = (now_s - request.last_token_s) / max(num_tokens, 1)
        for _ in range(num_tokens):
            self._itl.observe(each_s)
            self._itl_old.observe(each_s)
        request.last_token_s = now_s

    def _ended(self, running: _Running | None, num_tokens: int | None) -> None:
        """What is told of all outputs of a prompt is told when the last of them has ended; None = this one failed."""
        if running is None:
            return
        call = self._calls[running.call]
        call.num_running -= 1
        call.longest = max(call.longest, num_tokens or 0)
        if not call.num_running:
            del self._calls[running.call]
            if num_tokens is not None:
                self._n.observe(running.num_siblings)
                self._longest.observe(call.longest)

    def count_running(self) -> None:
        """Count what the requests that run have done since they were looked at last."""
        for running in self._running.values():
            self._count(running.metrics, running.counted)

    def _finished(self, running: _Running | None, reason: FinishReason, metrics: RequestMetrics) -> None:
        self._success.labels(self._model, "abort" if reason is FinishReason.CANCELLED else str(reason)).inc()
        self._chosen.labels(self._model, metrics.mode, metrics.rule, metrics.length_policy.partition(":")[0]).inc()
        self._count(metrics, running.counted if running else {})
        self._num_prompt.observe(metrics.num_prompt_tokens)
        self._num_output.observe(metrics.num_generated_tokens)
        self._wasted.inc(metrics.num_wasted_tokens)
        self._branch_wasted.inc(metrics.num_wasted_branch_tokens)
        if not metrics.num_generated_tokens:
            return  # cancelled before its first token: it has no times
        ttft_s, queue_s, e2e_s = metrics.ttft_ms / 1e3, metrics.queue_ms / 1e3, metrics.e2e_ms / 1e3
        self._e2e.observe(e2e_s)
        self._queue.observe(queue_s)
        self._prefill.observe(ttft_s - queue_s)
        self._decode.observe(e2e_s - ttft_s)
        self._inference.observe(e2e_s - queue_s)
        self._coordinator_s.observe(metrics.coordinator_ms / 1e3)
        if metrics.num_generated_tokens > 1:
            self._tpot.observe((e2e_s - ttft_s) / (metrics.num_generated_tokens - 1))
        if metrics.num_draft_tokens:
            self._overlap.observe(metrics.overlap_share)
        if metrics.num_drafts:
            self._wire_s.observe(metrics.wire_ms / metrics.num_drafts / 1e3)

    def _count(self, metrics: RequestMetrics | None, counted: _Counted) -> None:
        """Count by how much `metrics` have grown over what is `counted`."""
        if metrics is None:
            return
        for name, counter in self._plain.items():
            value = getattr(metrics, name)
            if more := value - counted.get((name, None), 0):
                counter.inc(more)
                counted[name, None] = value
        for name, counter in self._labelled.items():
            for label, value in getattr(metrics, name).items():
                if more := value - counted.get((name, label), 0):
                    counter.labels(self._model, str(label)).inc(more)
                    counted[name, label] = value
