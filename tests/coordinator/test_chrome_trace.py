"""A request's steps as a trace in Google's Trace Event Format: well formed, and true to the times that were told."""

from __future__ import annotations

import json
from typing import Any

import pytest

from coordinator.chrome_trace import TRACKS, chrome_trace
from coordinator.core.commands import Ask, Emit, Finish
from coordinator.core.events import Arrived, Branched, Drafted, RequestSpec, Verified
from coordinator.core.metrics import RequestMetrics
from coordinator.recent import Seen
from paceline.types import (
    Branch,
    Commit,
    Draft,
    FinishReason,
    OpenVerify,
    Rule,
    SamplingParams,
    Source,
    Tokens,
    Verdict,
    Verify,
)

SAMPLING = SamplingParams(temperature=0)
SPEC = RequestSpec("r", (1, 2, 3), 8, SAMPLING, 1, 2)


def verdict(start: int, tokens: Tokens, num_drafts: int, verify_ms: float, queue_ms: float = 0.0) -> Verified:
    sources = (Source.ACCEPTED,) * len(tokens)
    it = Verdict("r", 0, start, tokens, sources, num_drafts, num_drafts, verify_ms, queue_ms, batch_tokens=4)
    return Verified("verifier-1", it)


def steps() -> list[Seen]:
    """A prefill, then a draft that takes 30 ms on its way to the verifier and back, and one drafted meanwhile."""
    first, second = Draft("r", 0, 4, (5, 6), draft_ms=8.0), Draft("r", 0, 6, (7, 8), draft_ms=40.0)
    opens = OpenVerify("r", SPEC.token_ids, SAMPLING, Rule.MATCH, 1)
    metrics = RequestMetrics("pearl", "match", "fixed:length=2", 2, 3)
    return [
        Seen(10.000, Arrived(SPEC), (Ask("verifier-1", opens),)),
        Seen(10.050, verdict(3, (4,), 0, 40.0), (Emit("r", (4,), (Source.SELF_DECODED,)),)),
        Seen(10.060, Drafted("drafter-1", first), (Ask("verifier-1", Verify(first)),)),
        Seen(10.110, Drafted("drafter-1", second), ()),
        Seen(
            10.140,
            verdict(4, (5, 6, 9), 1, 45.0, 5.0),
            (Emit("r", (5, 6, 9), (Source.ACCEPTED,) * 3), Ask("drafter-1", Commit("r", 1, 4, (5, 6, 9)))),
        ),
        Seen(
            10.200,
            Drafted("drafter-1", Draft("r", 1, 7, (1,), draft_ms=20.0)),
            (Finish("r", FinishReason.STOP, metrics),),
        ),
    ]


def check(trace: dict[str, Any]) -> None:
    """The format's rules for what we use of it: complete events, instants, and metadata."""
    assert json.loads(json.dumps(trace)) == trace
    assert trace["displayTimeUnit"] in ("ms", "ns")
    named, used = set(), set()
    for event in trace["traceEvents"]:
        assert isinstance(event["name"], str)
        assert event["ph"] in ("X", "i", "M")
        assert type(event["pid"]) is type(event["tid"]) is int
        assert isinstance(event["args"], dict)
        if event["ph"] == "M":
            assert event["name"] in ("process_name", "thread_name", "thread_sort_index")
            named.add(event["tid"])
            continue
        used.add(event["tid"])
        assert isinstance(event["cat"], str)
        assert event["ts"] >= 0
        if event["ph"] == "X":
            assert event["dur"] > 0
        else:
            assert event["s"] in ("t", "p", "g")
    assert used <= named
    for thread in used:
        _check_nesting([e for e in trace["traceEvents"] if e["ph"] == "X" and e["tid"] == thread])


def _check_nesting(bars: list[dict[str, Any]]) -> None:
    """On one line, bars lie beside or within one another; viewers draw nothing sensible of others."""
    for i, one in enumerate(bars):
        for other in bars[i + 1 :]:
            a, b = sorted((one, other), key=lambda bar: (bar["ts"], -bar["dur"]))
            a_end, b_end = a["ts"] + a["dur"], b["ts"] + b["dur"]
            assert b["ts"] >= a_end - 1e-3 or b_end <= a_end + 1e-3, (a, b)


def bars(trace: dict[str, Any], track: str, name: str) -> list[tuple[float, float]]:
    """Start and end in ms since the arrival."""
    found = [e for e in trace["traceEvents"] if e["ph"] == "X" and (e["cat"], e["name"]) == (track, name)]
    return [(round(e["ts"] / 1e3, 3), round((e["ts"] + e["dur"]) / 1e3, 3)) for e in found]


def test_it_is_a_trace_with_a_track_for_everybody() -> None:
    trace = chrome_trace("r", steps(), unix_s=1e9)
    check(trace)
    names = [e["args"]["name"] for e in trace["traceEvents"] if e["name"] == "thread_name"]
    assert list(dict.fromkeys(name.partition(" (")[0] for name in names)) == list(TRACKS)
    assert trace["otherData"]["request_id"] == "r"


def test_work_is_placed_within_its_round_trip_and_the_rest_is_the_networks() -> None:
    trace = chrome_trace("r", steps())
    assert bars(trace, "verifier", "decode") == [(10.0, 50.0)], "nobody knows when it was wanted: late by one way"
    # Asked at 60, answered at 140: 80 ms, of which 5 in the queue and 45 in the pass; 15 each way.
    assert bars(trace, "network", "draft to the verifier") == [(60.0, 75.0)]
    assert bars(trace, "verifier", "waits for a pass") == [(75.0, 80.0)]
    assert bars(trace, "verifier", "verify") == [(80.0, 125.0)]
    assert bars(trace, "network", "verdict") == [(125.0, 140.0)]
    # Told at 140, drafted at 200 in 20 ms: 20 each way.
    assert bars(trace, "network", "commit to the drafter") == [(140.0, 160.0)]
    assert bars(trace, "drafter", "draft") == [(52.0, 60.0), (70.0, 110.0), (160.0, 180.0)]
    assert bars(trace, "client", "request") == [(0.0, 200.0)]
    assert bars(trace, "client", "until the first token") == [(0.0, 50.0)]


def test_overlap_is_to_be_seen() -> None:
    trace = chrome_trace("r", steps())
    (verify,) = bars(trace, "verifier", "verify")
    assert any(start < verify[1] and verify[0] < end for start, end in bars(trace, "drafter", "draft"))


def test_a_draft_that_waits_for_its_own_requests_pass_is_not_on_its_way() -> None:
    late = Draft("r", 0, 6, (7, 8), draft_ms=4.0)
    middle = [*steps()[:4], Seen(10.111, Drafted("drafter-1", late), (Ask("verifier-1", Verify(late)),))]
    middle += [Seen(10.140, verdict(4, (5, 6), 1, 45.0), ()), Seen(10.190, verdict(6, (7, 8, 1), 1, 45.0), ())]
    trace = chrome_trace("r", middle)
    check(trace)
    assert len(bars(trace, "network", "verdict")) == 1
    assert bars(trace, "verifier", "verify")[-1] == (145.0, 190.0)


def test_a_draft_that_is_awaited_by_a_pass_of_its_own_request_is_placed_by_its_arrival() -> None:
    """Under pre-verify the verifier may be forwarding the token before it; that wait is in no figure."""
    draft = Draft("r", 0, 4, (5, 6), draft_ms=8.0)
    awaited = Seen(10.060, Drafted("drafter-1", draft), (Ask("verifier-1", Verify(draft, preverify=True)),))
    trace = chrome_trace("r", [*steps()[:2], awaited, Seen(10.140, verdict(4, (5, 6, 9), 1, 45.0), ())])
    assert bars(trace, "network", "verdict") == []
    assert bars(trace, "verifier", "verify") == [(95.0, 140.0)]


def test_a_branch_is_a_bar_of_its_own_on_the_drafters_track() -> None:
    branch = Branched("drafter-1", Branch(9, Draft("r", 0, 5, (7, 8), draft_ms=12.0)))
    trace = chrome_trace("r", [*steps()[:4], Seen(10.130, branch, ()), *steps()[4:]])
    check(trace)
    assert bars(trace, "drafter", "branch") == [(118.0, 130.0)]
    assert len(bars(trace, "drafter", "draft")) == 3


def test_bars_that_would_lie_over_one_another_get_lines_of_their_own() -> None:
    draft = Draft("r", 0, 4, (5, 6), draft_ms=20.0)
    crowded = [*steps()[:2], Seen(10.1, Drafted("d", draft), ()), Seen(10.11, Drafted("d", draft), ())]
    trace = chrome_trace("r", crowded)
    check(trace)
    names = [e["args"]["name"] for e in trace["traceEvents"] if e["name"] == "thread_name"]
    assert "drafter (2)" in names


def test_a_trace_that_is_cut_says_so_and_where() -> None:
    trace = chrome_trace("r", steps()[:4], is_cut=True)
    check(trace)
    assert trace["otherData"]["is_cut"]
    (cut,) = [event for event in trace["traceEvents"] if event["name"] == "cut here"]
    assert cut["ts"] == pytest.approx(110e3)
    whole = chrome_trace("r", steps())
    assert not whole["otherData"]["is_cut"]
    assert all(event["name"] != "cut here" for event in whole["traceEvents"])


@pytest.mark.parametrize("num", [0, 1, 3, 5])
def test_a_request_that_still_runs_has_a_trace_too(num: int) -> None:
    check(chrome_trace("r", steps()[:num]))
