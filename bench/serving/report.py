"""A run's figures as `vllm bench serve` prints and saves them, so that its readers and scripts need not be told."""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.serving.call import Outcome
from bench.serving.figures import TITLES
from paceline.errors import InvalidInput

WIDTH = 50


def table(figures: Mapping[str, Any], given: argparse.Namespace) -> str:
    """The lines that are printed. Figures that nobody asked for or that there are none of are left out."""
    return "\n".join(_lines(figures, given))


def _lines(figures: Mapping[str, Any], given: argparse.Namespace) -> Iterator[str]:
    yield " Serving Benchmark Result ".center(WIDTH, "=")
    yield _line("Successful requests:", figures["completed"])
    yield _line("Failed requests:", figures["failed"])
    if given.max_concurrency:
        yield _line("Maximum request concurrency:", given.max_concurrency)
    if math.isfinite(given.request_rate):
        yield _line("Request rate configured (RPS):", float(given.request_rate))
    yield _line("Benchmark duration (s):", figures["duration"])
    yield _line("Total input tokens:", figures["total_input_tokens"])
    yield _line("Total generated tokens:", figures["total_output_tokens"])
    yield _line("Request throughput (req/s):", figures["request_throughput"])
    if figures["request_goodput"] is not None:
        yield _line("Request goodput (req/s):", figures["request_goodput"])
    yield _line("Output token throughput (tok/s):", figures["output_throughput"])
    yield _line("Peak output token throughput (tok/s):", figures["max_output_tokens_per_s"])
    yield _line("Peak concurrent requests:", float(figures["max_concurrent_requests"]))
    yield _line("Total token throughput (tok/s):", figures["total_token_throughput"])
    for name in given.percentile_metrics:
        short, title = TITLES[name]
        yield title.center(WIDTH, "-")
        yield _line(f"Mean {short} (ms):", figures[f"mean_{name}_ms"])
        yield _line(f"Median {short} (ms):", figures[f"median_{name}_ms"])
        for share in given.metric_percentiles:
            yield _line(f"P{share:g} {short} (ms):", figures[f"p{share:g}_{name}_ms"])
    if "spec_decode_num_drafts" in figures:
        yield from _speculation(figures)
    yield "=" * WIDTH


def _speculation(figures: Mapping[str, Any]) -> Iterator[str]:
    yield "Speculative Decoding".center(WIDTH, "-")
    yield _line("Acceptance rate (%):", figures["spec_decode_acceptance_rate"])
    yield _line("Acceptance length:", figures["spec_decode_acceptance_length"])
    yield _line("Drafts:", figures["spec_decode_num_drafts"])
    yield _line("Draft tokens:", figures["spec_decode_draft_tokens"])
    yield _line("Accepted tokens:", figures["spec_decode_accepted_tokens"])
    yield "Per-position acceptance (%):"
    for place, rate in enumerate(figures["spec_decode_per_position_acceptance_rates"]):
        yield _line(f"  Position {place}:", 100 * rate)


def _line(name: str, value: float) -> str:
    return f"{name:<40} {value:<10.2f}" if isinstance(value, float) else f"{name:<40} {value:<10}"


def result(
    figures: Mapping[str, Any], outcomes: Sequence[Outcome], given: argparse.Namespace, model: str
) -> dict[str, Any]:
    """What is saved: how it was asked, then the figures, then what each request did."""
    head: dict[str, Any] = {
        "date": time.strftime("%Y%m%d-%H%M%S"),
        "endpoint_type": given.backend,
        "backend": given.backend,
        "label": given.label,
        "model_id": model,
        "tokenizer_id": given.tokenizer,
        "num_prompts": given.num_prompts,
        "request_rate": given.request_rate if math.isfinite(given.request_rate) else "inf",
        "burstiness": given.burstiness,
        "max_concurrency": given.max_concurrency,
        **dict(given.metadata),
    }
    details: dict[str, Any] = {}
    if given.save_detailed:
        details = {
            "input_lens": [outcome.num_prompt_tokens for outcome in outcomes],
            "output_lens": [outcome.num_output_tokens for outcome in outcomes],
            "ttfts": [outcome.ttft_s if outcome.arrivals else 0.0 for outcome in outcomes],
            "itls": [outcome.itls_s if outcome.arrivals else [] for outcome in outcomes],
            "start_times": [outcome.started_s for outcome in outcomes],
            "generated_texts": [outcome.text for outcome in outcomes],
            "errors": [outcome.error for outcome in outcomes],
        }
    return head | dict(figures) | details


def file_of(given: argparse.Namespace, model: str) -> Path | None:
    """Where the result is saved; None if it is not to be. Makes the folder. Raises InvalidInput."""
    if not (given.save_result or given.save_detailed or given.result_filename):
        return None
    concurrency = f"-concurrency{given.max_concurrency}" if given.max_concurrency else ""
    name = f"{given.label or given.backend}-{given.request_rate}qps{concurrency}-{model.rstrip('/').split('/')[-1]}"
    folder = Path(given.result_dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidInput("--result-dir", given.result_dir, f"cannot be made: {error.strerror}") from None
    return folder / (given.result_filename or f"{name}-{time.strftime('%Y%m%d-%H%M%S')}.json")
