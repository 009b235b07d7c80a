"""What the outcomes amount to, by the names that `vllm bench serve` gives it. Times in milliseconds, rates a second."""

from __future__ import annotations

import math
import re
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from bench.serving.call import Outcome
from paceline.errors import InvalidInput

# What is measured of each request, as the options, the keys and the table name it.
TITLES = {
    "ttft": ("TTFT", "Time to First Token"),
    "tpot": ("TPOT", "Time per Output Token (excl. 1st token)"),
    "itl": ("ITL", "Inter-token Latency"),
    "e2el": ("E2EL", "End-to-end Latency"),
}
_SPEC_NAMES = {
    "num_drafts": "spec_decode_num_drafts",
    "draft_tokens": "spec_decode_num_draft_tokens",
    "accepted_tokens": "spec_decode_num_accepted_tokens",
}
_SAMPLE = re.compile(r"^vllm:(spec_decode_\w+?)(?:_total)?(?:\{(.*)\})? (\S+)$")


def figures(
    outcomes: Sequence[Outcome], duration_s: float, *, goodput_ms: Mapping[str, float], percentiles: Sequence[float]
) -> dict[str, Any]:
    """Of a whole run that took `duration_s`. What nothing was measured of is 0, as with vLLM."""
    good = [outcome for outcome in outcomes if not outcome.error]
    num_input, num_output = (sum(getattr(o, f"num_{side}_tokens") for o in good) for side in ("prompt", "output"))
    times = times_ms(good)
    out: dict[str, Any] = {
        "duration": duration_s,
        "completed": len(good),
        "failed": len(outcomes) - len(good),
        "total_input_tokens": num_input,
        "total_output_tokens": num_output,
        "request_throughput": len(good) / duration_s,
        "request_goodput": _num_in_time(good, goodput_ms) / duration_s if goodput_ms else None,
        "output_throughput": num_output / duration_s,
        "total_token_throughput": (num_input + num_output) / duration_s,
        **peaks(good),
    }
    for name, values in times.items():
        out[f"mean_{name}_ms"] = statistics.mean(values) if values else 0.0
        out[f"median_{name}_ms"] = statistics.median(values) if values else 0.0
        out[f"std_{name}_ms"] = statistics.pstdev(values) if values else 0.0
        out |= {f"p{share:g}_{name}_ms": percentile(values, share) for share in percentiles}
    return out


def times_ms(good: Sequence[Outcome]) -> dict[str, list[float]]:
    """Every measured time by its name: one a request, of `itl` one a token."""
    return {
        "ttft": [1e3 * outcome.ttft_s for outcome in good],
        "tpot": [1e3 * outcome.tpot_s for outcome in good if outcome.tpot_s is not None],
        "itl": [1e3 * gap_s for outcome in good for gap_s in outcome.itls_s],
        "e2el": [1e3 * outcome.e2el_s for outcome in good],
    }


def percentile(values: Sequence[float], share: float) -> float:
    """By linear interpolation, as numpy's default has it; 0 of nothing. Example: 50 of [1, 2, 4] → 2."""
    if not values:
        return 0.0
    ordered = sorted(values)
    place = (len(ordered) - 1) * share / 100
    low, high = math.floor(place), math.ceil(place)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def _num_in_time(good: Sequence[Outcome], goodput_ms: Mapping[str, float]) -> int:
    """Requests that kept every bound; one that has no such time, as the TPOT of a single token, keeps it."""
    per_request: dict[str, Any] = {
        "ttft": lambda outcome: outcome.ttft_s,
        "tpot": lambda outcome: outcome.tpot_s or 0.0,
        "e2el": lambda outcome: outcome.e2el_s,
    }
    return sum(all(1e3 * per_request[name](one) <= bound for name, bound in goodput_ms.items()) for one in good)


def parse_goodput(pairs: Sequence[str]) -> dict[str, float]:
    """Bounds in milliseconds from NAME:MS pairs. Raises InvalidInput."""
    bounds = {}
    for pair in pairs:
        name, _, bound = pair.partition(":")
        if name not in ("ttft", "tpot", "e2el") or not re.fullmatch(r"\d+(\.\d+)?", bound):
            raise InvalidInput(
                "--goodput", pair, "write ttft, tpot or e2el, a colon and milliseconds: ttft:200 tpot:50"
            )
        bounds[name] = float(bound)
    return bounds


def peaks(good: Sequence[Outcome]) -> dict[str, float]:
    """The second in which most tokens came, and the most requests that were under way at once."""
    tokens, changes = Counter[int](), []
    first_s = min((outcome.started_s for outcome in good), default=0.0)
    for outcome in good:
        changes += [(outcome.started_s, 1), (outcome.ended_s, -1)]
        known = 0
        for at_s, count in outcome.arrivals:
            tokens[int(at_s - first_s)] += count - known
            known = count
    most = running = 0
    for _, change in sorted(changes):
        running += change
        most = max(most, running)
    return {
        "max_output_tokens_per_s": float(max(tokens.values(), default=0)),
        "max_concurrent_requests": most,
    }


def read_counters(exposition: str) -> dict[str, float]:
    """The counters of speculative decoding in a page of metrics, those by position as `…per_pos/PLACE`."""
    found: Counter[str] = Counter()
    for line in exposition.splitlines():
        if match := _SAMPLE.match(line):
            place = re.search(r'position="(\d+)"', match[2] or "")
            found[match[1] + (f"/{place[1]}" if place else "")] += float(match[3])  # type: ignore[assignment]
    return dict(found)


def spec_decode(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, Any]:
    """What was drafted and accepted meanwhile; empty where nothing was drafted, or nothing is told."""
    grown = {name: value - before.get(name, 0) for name, value in after.items()}
    counts = {key: int(grown.get(name, 0)) for key, name in _SPEC_NAMES.items()}
    if not counts["num_drafts"]:
        return {}
    prefix = "spec_decode_num_accepted_tokens_per_pos/"
    places = sorted(int(name.removeprefix(prefix)) for name in grown if name.startswith(prefix))
    rates = [grown[f"{prefix}{place}"] / counts["num_drafts"] for place in places]
    return {
        "spec_decode_acceptance_rate": 100 * counts["accepted_tokens"] / max(1, counts["draft_tokens"]),
        "spec_decode_acceptance_length": 1 + counts["accepted_tokens"] / counts["num_drafts"],
        **{f"spec_decode_{key}": count for key, count in counts.items()},
        "spec_decode_per_position_acceptance_rates": rates,
    }
