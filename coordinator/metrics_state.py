"""The metrics that are read rather than counted: who is here, who waits, what the caches hold."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from coordinator.core.worker import Worker
from coordinator.registry import STATES
from coordinator.server import Coordinator
from paceline.cache_use import CacheUse
from paceline.types import Role

MODEL = "model_name"
# vLLM's counters of a KV cache, by what a worker calls them.
_CACHE_COUNTERS = {
    "num_queried_tokens": ("vllm:prefix_cache_queries", "Tokens of prompts that were looked up."),
    "num_found_tokens": ("vllm:prefix_cache_hits", "Tokens of prompts that were found cached."),
    "num_preemptions": ("vllm:num_preemptions", "Requests that lost their cache to older ones."),
}


class State(Collector):
    """See the top of the file."""

    def __init__(self, coordinator: Coordinator, model: str) -> None:
        self._coordinator = coordinator
        self._model = model
        self._sums = Counter[str]()  # of the cache's counters, over all verifiers that there ever were
        self._last: dict[str, CacheUse] = {}  # what each verifier said when it was looked at last

    def collect(self) -> Iterator[Metric]:
        pipeline, links = self._coordinator.pipeline, self._coordinator.links
        yield self._gauge("vllm:num_requests_running", "Requests that have a verifier.", pipeline.num_running)
        yield self._gauge("vllm:num_requests_waiting", "Requests that wait for one.", pipeline.num_waiting)
        what, missing = "Running requests that want a drafter and have none.", pipeline.num_undrafted
        yield self._gauge("paceline_requests_undrafted", what, missing)
        share = self._coordinator.demand.stall_share
        yield self._gauge("paceline_stall_share", "Of late, tokens decoded for want of a draft.", share)
        here = [worker for worker in pipeline.pools if worker.name in links]
        caches = {name: cache for name, link in links.items() if (cache := link.info.cache)}
        yield from self._caches(caches)
        yield from self._workers(here)
        yield from self._admissions()
        resting = sum(worker.pace.breaker.is_resting(self._coordinator.now_s()) for worker in here)
        num_drafters = sum(worker.info.role is Role.DRAFTER for worker in here)
        what = "Drafters that are here and not resting after failures."
        yield self._gauge("paceline_drafters_healthy", what, num_drafters - resting)

    def _workers(self, here: list[Worker]) -> Iterator[Metric]:
        workers = GaugeMetricFamily(
            "paceline_workers", "Workers that are here: connected, and their lease renewed.", labels=[MODEL, "role"]
        )
        for role in Role:
            workers.add_metric([self._model, role], sum(worker.info.role is role for worker in here))
        yield workers
        load = self._by_worker("paceline_worker_load", "Share of its places that are taken.")
        rtt = self._by_worker("paceline_worker_round_trip_seconds", "Of a call that needs no model.")
        for worker in here:
            load.add_metric([self._model, worker.info.role, worker.name], worker.load)
            rtt_s = self._coordinator.links[worker.name].rtt_s
            if rtt_s is not None:
                rtt.add_metric([self._model, worker.info.role, worker.name], rtt_s)
        yield load
        yield rtt

    def _admissions(self) -> Iterator[Metric]:
        """Registered workers by state, and registrations that were refused."""
        registry = self._coordinator.registry
        states = GaugeMetricFamily(
            "paceline_registered_workers", "Workers that have registered.", labels=[MODEL, "role", "state"]
        )
        for role in Role:
            links = Counter(link.state for link in registry.links.values() if link.info.role is role)
            for state in STATES:
                states.add_metric([self._model, role, state], links[state])
        num_refused = registry.admission.num_refused(self._coordinator.now_s())
        states.add_metric([self._model, Role.DRAFTER, "refused"], num_refused)
        yield states
        refusals = CounterMetricFamily(
            "paceline_refused_registrations", "Registrations that were refused.", labels=[MODEL, "role", "reason"]
        )
        for (role, reason), count in registry.admission.refusals.items():
            refusals.add_metric([self._model, role, reason], count)
        yield refusals

    def _caches(self, caches: Mapping[str, CacheUse]) -> Iterator[Metric]:
        """Of all verifiers together; what one counted between the last look and its end is lost."""
        for name in _CACHE_COUNTERS:  # all of them before the first yield: a reader may stop anywhere
            for worker, cache in caches.items():
                before = self._last.get(worker)
                self._sums[name] += max(0, getattr(cache, name) - (getattr(before, name) if before else 0))
        self._last = dict(caches)
        size = sum(cache.num_tokens for cache in caches.values())
        share = sum(cache.num_used_tokens for cache in caches.values()) / size if size else 0.0
        yield self._gauge("vllm:kv_cache_usage_perc", "Share of the KV cache in use; 1 = all.", share)
        for name, (metric, what) in _CACHE_COUNTERS.items():
            family = CounterMetricFamily(metric, what, labels=[MODEL])
            family.add_metric([self._model], self._sums[name])
            yield family
        yield self._blocks(caches)

    def _blocks(self, caches: Mapping[str, CacheUse]) -> Metric:
        """How each verifier's cache is made up, in labels beside a 1, as vLLM has it."""
        what = "Of a verifier's KV cache: its blocks, and the tokens of each."
        labels = [MODEL, "worker", "block_size", "num_gpu_blocks"]
        family = GaugeMetricFamily("vllm:cache_config_info", what, labels=labels)
        for worker, cache in caches.items():
            if size := cache.block_size:
                family.add_metric([self._model, worker, str(size), str(cache.num_tokens // size)], 1)
        return family

    def describe(self) -> Iterable[Metric]:
        return self.collect()

    def _gauge(self, name: str, what: str, value: float) -> Metric:
        gauge = GaugeMetricFamily(name, what, labels=[MODEL])
        gauge.add_metric([self._model], value)
        return gauge

    def _by_worker(self, name: str, what: str) -> GaugeMetricFamily:
        return GaugeMetricFamily(name, what, labels=[MODEL, "role", "worker"])
