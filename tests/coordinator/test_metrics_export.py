"""What is counted, and that the page names exactly what is exported."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from coordinator.core.commands import Emit, Fail, Finish
from coordinator.core.events import Arrived, Drafted, RequestSpec, Tick, Verified
from coordinator.core.metrics import RequestMetrics
from coordinator.metrics_export import MetricsExport
from coordinator.registry import Link
from paceline.cache_use import CacheUse
from paceline.errors import Overloaded, Unsupported
from paceline.types import Draft, FinishReason, Role, SamplingParams, Source, Verdict, WorkerInfo
from tests.coordinator.toy import Toy, write_model

PAGE = Path(__file__).parents[2] / "docs/metrics.md"
A, R, B, S = Source.ACCEPTED, Source.RECOVERED, Source.BONUS, Source.SELF_DECODED


@pytest.fixture
def exported(tmp_path: Path) -> MetricsExport:
    return MetricsExport(Toy(write_model(tmp_path / "model"), served_model_name="m"))


def value(exported: MetricsExport, name: str, **labels: str) -> float | None:
    return exported.registry.get_sample_value(name, {"model_name": "m"} | labels)


def spec(request_id: str = "a") -> RequestSpec:
    return RequestSpec(request_id, (1, 2, 3), 8, SamplingParams(), seed=1, draft_seed=2)


def metrics(**more: Any) -> RequestMetrics:
    return RequestMetrics("pearl", "match", "svip:threshold_nats=0.123", 4, num_prompt_tokens=3, **more)


def test_the_page_names_what_is_exported_with_its_labels_and_kind(exported: MetricsExport) -> None:
    told = re.findall(r"^\| `([\w:]+)(?:\{([\w,]+)\})?` \| (\w+) \|", PAGE.read_text(), flags=re.MULTILINE)
    families = list(exported.registry.collect())
    # A labelled counter has no sample before its first event, so labels are read from the metric itself.
    labels = {family.name: names for collector, names in _labels(exported).items() for family in collector.describe()}
    is_counter = {family.name: family.type == "counter" for family in families}
    there = {
        (name + "_total" * is_counter[name], tuple(names), next(f.type for f in families if f.name == name))
        for name, names in labels.items()
    }
    assert {(name, tuple(filter(None, names.split(","))), kind) for name, names, kind in told} == there
    assert len(told) == len(there)
    for table in re.findall(r"(?:^\|.*\n)+", PAGE.read_text(), flags=re.MULTILINE):
        assert table.splitlines()[1].startswith("|---"), "rows without a head are no table to a reader's eye"


def _labels(exported: MetricsExport) -> dict[Any, tuple[str, ...]]:
    """Every metric with the labels it has beside the model's name."""
    found: dict[Any, tuple[str, ...]] = {}
    for collector in exported.registry._collector_to_names:
        names = getattr(collector, "_labelnames", None)
        if names is not None:
            found[collector] = tuple(names[1:])
        else:
            for family in collector.collect():
                found[_One(family)] = tuple(getattr(family, "_labelnames", ()))[1:]
    return found


class _One:
    """A collector of one family."""

    def __init__(self, family: Any) -> None:
        self.family = family

    def describe(self) -> list[Any]:
        return [self.family]


def test_tokens_that_come_together_share_the_time_since_the_last(exported: MetricsExport) -> None:
    exported.observe(Arrived(spec()), [], 10.0)
    exported.observe(Tick(), [Emit("a", (5,), (S,))], 10.5)
    exported.observe(Tick(), [Emit("a", (5, 6, 7, 8), (A, A, A, B))], 10.9)
    assert value(exported, "vllm:time_to_first_token_seconds_sum") == pytest.approx(0.5)
    assert value(exported, "vllm:time_to_first_token_seconds_count") == 1
    for name in ("inter_token_latency", "time_per_output_token"):
        assert value(exported, f"vllm:{name}_seconds_count") == 4
        assert value(exported, f"vllm:{name}_seconds_sum") == pytest.approx(0.4)
        assert value(exported, f"vllm:{name}_seconds_bucket", le="0.15") == 4
    assert value(exported, "vllm:generation_tokens_total") == 5
    assert value(exported, "vllm:prompt_tokens_total") == 3


def test_tokens_that_come_with_the_first_take_no_time(exported: MetricsExport) -> None:
    exported.observe(Arrived(spec()), [], 0.0)
    exported.observe(Tick(), [Emit("a", (5, 6), (S, S))], 2.0)
    assert value(exported, "vllm:inter_token_latency_seconds_count") == 1
    assert value(exported, "vllm:inter_token_latency_seconds_sum") == 0


def test_an_end_counts_what_the_request_did(exported: MetricsExport) -> None:
    done = metrics(
        num_drafts=4,
        num_draft_tokens=30,
        num_judged_tokens=14,
        num_tested_tokens=12,
        num_stale_drafts=1,
        num_branches=5,
        num_branch_tokens=20,
        num_promoted_tokens=8,
        num_branch_hits=2,
        num_branch_misses=3,
        sources=Counter({A: 9, R: 2, S: 1}),
        accepted_at=Counter({0: 4, 1: 3, 2: 2}),
        fallbacks=Counter({"late draft": 2}),
        queue_ms=100.0,
        ttft_ms=300.0,
        e2e_ms=1400.0,
        wire_ms=8.0,
    )
    exported.observe(Arrived(spec()), [], 0.0)
    exported.observe(Tick(), [Finish("a", FinishReason.LENGTH, done)], 1.4)
    assert value(exported, "vllm:request_success_total", finished_reason="length") == 1
    drafts = ("num_drafts", 4), ("num_draft_tokens", 14), ("num_accepted_tokens", 9)
    for name, count in drafts:
        assert value(exported, f"vllm:spec_decode_{name}_total") == count
    places = [value(exported, "vllm:spec_decode_num_accepted_tokens_per_pos_total", position=str(i)) for i in range(4)]
    assert places == [4, 3, 2, None]
    assert value(exported, "paceline_drafted_tokens_total") == 30
    assert value(exported, "paceline_wasted_tokens_total") == 21
    assert value(exported, "paceline_branches_total") == 5
    assert value(exported, "paceline_branch_tokens_total") == 20
    assert value(exported, "paceline_wasted_branch_tokens_total") == 12
    assert value(exported, "paceline_branch_runs_total", outcome="hit") == 2
    assert value(exported, "paceline_branch_runs_total", outcome="miss") == 3
    assert value(exported, "paceline_committed_tokens_total", source="recovered") == 2
    assert value(exported, "paceline_fallbacks_total", reason="late draft") == 2
    chosen = {"mode": "pearl", "rule": "match", "length_policy": "svip"}  # without what the client chose freely
    assert value(exported, "paceline_requests_total", **chosen) == 1
    assert value(exported, "paceline_wire_seconds_sum") == pytest.approx(0.002)
    for name, want in (("queue", 0.1), ("prefill", 0.2), ("decode", 1.1), ("inference", 1.3)):
        assert value(exported, f"vllm:request_{name}_time_seconds_sum") == pytest.approx(want)
    assert value(exported, "vllm:request_time_per_output_token_seconds_sum") == pytest.approx(1.1 / 11)


def test_counters_move_while_a_request_runs_and_its_end_adds_only_the_rest(exported: MetricsExport) -> None:
    """A dashboard over long requests must not stand still, and nothing may be counted twice."""
    did = metrics()
    exported._pipeline = SimpleNamespace(metrics=lambda _: did)  # type: ignore[assignment]
    accepted = "vllm:spec_decode_num_accepted_tokens_total"
    place = "vllm:spec_decode_num_accepted_tokens_per_pos_total"
    exported.observe(Arrived(spec()), [], 0.0)
    did.num_draft_tokens, did.num_judged_tokens = 5, 4
    did.num_drafts, did.sources, did.accepted_at = 1, Counter({A: 3, R: 1}), Counter({0: 1, 1: 1, 2: 1})
    did.tokens_by_mode["pearl"] = 4
    for _ in range(2):  # nothing is counted twice
        exported.render()
    assert (value(exported, accepted), value(exported, place, position="2")) == (3, 1)
    assert value(exported, "vllm:spec_decode_num_draft_tokens_total") == 4
    assert value(exported, "paceline_tokens_by_mode_total", mode="pearl") == 4
    did.sources[A], did.num_drafts, did.num_draft_tokens = 4, 2, 9
    exported.observe(Tick(), [Finish("a", FinishReason.LENGTH, did)], 0.3)
    assert (value(exported, accepted), value(exported, "vllm:spec_decode_num_drafts_total")) == (4, 2)
    assert value(exported, "paceline_wasted_tokens_total") == 5
    assert value(exported, "paceline_committed_tokens_total", source="recovered") == 1


def test_what_a_request_did_that_failed_is_counted_too(exported: MetricsExport) -> None:
    did = metrics(num_drafts=3)
    exported._pipeline = SimpleNamespace(metrics=lambda _: did)  # type: ignore[assignment]
    exported.observe(Arrived(spec()), [], 0.0)
    exported.observe(Tick(), [Fail("a", Overloaded("queue", 1, 1))], 0.1)
    assert value(exported, "vllm:spec_decode_num_drafts_total") == 3


async def test_caches_add_up_over_verifiers_and_never_count_backwards(tmp_path: Path) -> None:
    """A verifier that has left takes its gauge with it, not what it has counted."""
    toy = Toy(write_model(tmp_path / "model"), served_model_name="m")
    exported = MetricsExport(toy)

    def link(name: str, cache: CacheUse) -> None:
        toy.links[name] = SimpleNamespace(info=SimpleNamespace(cache=cache), rtt_s=None)  # type: ignore[assignment]

    link("v1", CacheUse(1000, 100, 50, 10, 1))
    link("v2", CacheUse(3000, 900, 70, 20, 0, block_size=16))
    assert value(exported, "vllm:cache_config_info", worker="v2", block_size="16", num_gpu_blocks="187") == 1
    assert value(exported, "vllm:kv_cache_usage_perc") == 0.25
    assert value(exported, "vllm:prefix_cache_queries_total") == 120
    del toy.links["v2"]
    link("v1", CacheUse(1000, 500, 60, 15, 3))
    assert value(exported, "vllm:kv_cache_usage_perc") == 0.5
    assert value(exported, "vllm:prefix_cache_queries_total") == 130
    assert value(exported, "vllm:prefix_cache_hits_total") == 35
    assert value(exported, "vllm:num_preemptions_total") == 3


def test_work_is_observed_as_it_is_reported(exported: MetricsExport) -> None:
    exported.observe(Drafted("d", Draft("a", 0, 3, (5, 6, 7), draft_ms=12.0)), [], 1.0)
    exported.observe(Verified("v", Verdict("a", 0, 3, (5,), (A,), verify_ms=30.0, queue_ms=4.0)), [], 1.0)
    exported.observe(Verified("v", Verdict("a", 0, 3, (5,), (A,))), [], 1.0)  # from the log: no pass was needed
    assert value(exported, "paceline_draft_seconds_sum") == pytest.approx(0.012)
    assert value(exported, "paceline_draft_length_tokens_sum") == 3
    assert value(exported, "paceline_verify_seconds_sum") == pytest.approx(0.03)
    assert value(exported, "paceline_verify_seconds_count") == 1


def test_a_failure_is_counted_once_and_a_request_cancelled_before_its_first_token_has_no_times(
    exported: MetricsExport,
) -> None:
    failed = Fail("a", Overloaded("queue", 1, 1))
    exported.observe(Arrived(spec()), [failed], 0.0)
    exported.observe(Tick(), [failed], 0.0)
    assert value(exported, "paceline_request_failures_total", error="Overloaded") == 1
    exported.observe(Arrived(spec("b")), [], 0.0)
    exported.observe(Tick(), [Finish("b", FinishReason.CANCELLED, metrics())], 0.0)
    assert value(exported, "vllm:request_success_total", finished_reason="abort") == 1
    assert value(exported, "vllm:e2e_request_latency_seconds_count") == 0
    assert not exported._running


async def test_states_are_read_when_they_are_asked_for(tmp_path: Path) -> None:
    toy = Toy(write_model(tmp_path / "model"), served_model_name="m")
    exported = MetricsExport(toy)
    assert value(exported, "paceline_workers", role="verifier") == 0
    assert value(exported, "vllm:num_requests_running") == 0
    families = {family.name for family in text_string_to_metric_families(exported.render().decode())}
    assert {"vllm:spec_decode_num_drafts", "paceline_workers"} <= families


async def test_registrations_are_told_by_state_and_refusals_by_reason(tmp_path: Path) -> None:
    toy = Toy(write_model(tmp_path / "model"), served_model_name="m")
    exported = MetricsExport(toy)
    workers, refusals = "paceline_registered_workers", "paceline_refused_registrations_total"
    info = WorkerInfo(Role.DRAFTER, "127.0.0.1:1", 1, "d", "x", "", 50, 99, 4, (), "float32", "cpu")
    toy.registry.links["d"] = link = Link("d", info, asyncio.Queue())
    assert value(exported, workers, role="drafter", state="connecting") == 1
    link.judged.set()
    assert value(exported, workers, role="drafter", state="probation") == 1
    link.is_up = True
    assert value(exported, workers, role="drafter", state="healthy") == 1
    link.is_suspected = True
    assert value(exported, workers, role="drafter", state="suspected") == 1
    assert value(exported, workers, role="drafter", state="healthy") == 0
    with pytest.raises(Unsupported):
        toy.registry.register(replace(info, incarnation=2, tokenizer_hash="a" * 64))
    assert value(exported, refusals, role="drafter", reason="tokenizer") == 1


def test_outputs_of_one_prompt_are_told_together(exported: MetricsExport) -> None:
    for name, first in (("a", ""), ("b", "a"), ("c", "")):
        num_siblings = 1 if name == "c" else 2
        exported.observe(Arrived(replace(spec(name), num_siblings=num_siblings, sibling_of=first)), [], 0.0)
    for name, num_tokens in (("a", 7), ("c", 4), ("b", 5)):
        done = metrics(sources=Counter({S: num_tokens}))
        exported.observe(Tick(), [Finish(name, FinishReason.LENGTH, done)], 1.0)
    assert value(exported, "vllm:request_params_n_sum") == 2 + 1
    assert value(exported, "vllm:request_params_n_count") == 2
    assert value(exported, "vllm:request_max_num_generation_tokens_sum") == 7 + 4
    exported.observe(Arrived(replace(spec("d"), num_siblings=2)), [Fail("d", Overloaded("queue", 1, 1))], 0.0)
    assert not exported._calls, "of a call that was refused nothing stays"


def test_a_pass_counts_once_however_many_requests_it_answers(exported: MetricsExport) -> None:
    for worker, ms, num_tokens in (("v", 3.5, 40), ("v", 3.5, 40), ("w", 3.5, 40), ("v", 3.6, 40), ("v", 3.6, 9)):
        verdict = Verdict("a", 0, 3, (5,), (A,), verify_ms=ms, batch_tokens=num_tokens)
        exported.observe(Verified(worker, verdict), [], 1.0)
    assert value(exported, "vllm:iteration_tokens_total_sum") == 40 + 40 + 40 + 9
    assert value(exported, "paceline_pass_tokens_count") == 5
