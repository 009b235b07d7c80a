from __future__ import annotations

import io
import json
from typing import Any

import pytest
from rich.console import Console

from bench.oracle import long_drafts
from bench.policy_report import KEYS, rounded, rows_of, served_of, show_cell, show_rules, tuning_of
from bench.row import Row, Setting
from bench.tuning import Outcome
from tests.bench.samples import row, sample


def outcome() -> Outcome:
    """On three prompts: off at 80 tokens/s, fixed at 160, svip at 200."""
    fixed = row(*(sample(0.05),) * 3, name="fixed", policy="fixed:length=8")
    svip = row(*(sample(0.04),) * 3, name="svip", policy="svip:threshold_nats=2,max_length=40")
    return Outcome(
        tuned={("sequential", "fixed"): [fixed], ("sequential", "svip"): [svip]},
        best={("sequential", "fixed"): fixed, ("sequential", "svip"): svip, ("pearl", "fixed"): fixed},
        off=row(*(sample(0.1, num_drafts=0, num_draft_tokens=0, num_received_drafts=0, num_tested_tokens=0),) * 3),
        long=Row(long_drafts(), [sample(0.06)] * 3),
        left_out=["something"],
    )


def cell(found: Outcome) -> dict[str, Any]:
    return {
        "ratio": {"wanted": 12.0, "reached": 11.8, "verify_ms": 12.0, "draft_ms": 1.01, "num_parameters": 29 * 10**6},
        "served": served_of(found.best),
        "temperature": 0.0,
        "num_prompts": 3,
        "rows": rows_of(found, 0.5),
        "tuning": tuning_of(found),
        "calibration": None,
        "left_out": found.left_out,
    }


def test_policies_are_held_against_off_and_against_the_fixed_length_of_their_mode() -> None:
    rows = {(entry["mode"], entry["policy"]): entry for entry in rows_of(outcome(), 0.5)}
    assert rows["off", "off"]["speed_up"] == 1
    assert rows["sequential", "svip"]["speed_up"] == pytest.approx(2.5)
    assert rows["sequential", "svip"]["over_fixed"] == pytest.approx(0.25)
    assert rows["sequential", "svip"]["over_fixed_interval"] == pytest.approx((0.25, 0.25))
    assert "over_fixed" not in rows["sequential", "fixed"]
    assert rows["sequential", "oracle"]["computed"] is True
    assert rows["pearl", "oracle"]["tokens_per_s"] > rows["sequential", "oracle"]["tokens_per_s"]


def test_without_a_fixed_length_nothing_is_held_against_it() -> None:
    found = outcome()
    del found.best["sequential", "fixed"]
    assert all("over_fixed" not in entry for entry in rows_of(found, 0.5))


def test_every_key_of_a_row_is_explained_in_the_help() -> None:
    document = cell(outcome())
    keys = {key for entry in (*document["rows"], *document["tuning"], document["ratio"]) for key in entry}
    assert not [key for key in (*keys, *document, *(document["served"] or ())) if key not in KEYS]


def test_the_table_names_the_tuned_parameter_what_was_reached_and_what_is_missing() -> None:
    console = Console(file=io.StringIO(), width=190)
    show_cell(cell(outcome()), console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    for part in (
        "svip threshold_nats=2 ",
        "+25.0% (+25.0% to +25.0%)",
        "2.50 (2.50 to 2.50)",
        "wanted 12, reached 11.8",
        "sequential oracle, computed",
        "pearl oracle, computed, drafting hidden",
        "left out: something",
    ):
        assert part in text, text


def test_the_rules_table_has_the_gain_with_its_interval() -> None:
    console = Console(file=io.StringIO(), width=190)
    entry = {
        "rule": "block",
        "length": 8,
        "accepted_per_draft": 3.0,
        "accepted_per_tested": 0.8,
        "block_efficiency": 4.0,
        "over_token": 0.08,
        "over_token_interval": (0.05, 0.11),
        "num_drafts": 100.0,
    }
    show_rules([entry], 1.0, console)
    assert "+8.0% (+5.0% to +11.0%)" in console.file.getvalue()  # type: ignore[attr-defined]


def test_the_document_is_json_of_short_numbers() -> None:
    document = rounded({"a": (1.23456789, 2), "b": None, "c": "x", "d": float("nan")})
    assert json.dumps(document, allow_nan=False) == '{"a": [1.2346, 2], "b": null, "c": "x", "d": null}'


def test_served_times_are_those_of_sequential_fixed_drafts() -> None:
    other = row(sample(verify_ms=400.0), mode="pearl")
    mine: Row[Setting] = row(sample())
    served = served_of({("pearl", "fixed"): other, ("sequential", "fixed"): mine})
    assert served == {"verify_ms_per_pass": 10.0, "draft_ms_per_token": 1.0, "ratio": 10.0}
    assert served_of({}) is None
