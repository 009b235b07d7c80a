from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from bench.calibration import Recorded, Row, auc, by_entropy, figures, judged, load_drafter, record, walks
from paceline.client import Completion
from paceline.types import FinishReason, Source
from tests.tiny import write_model

A, R, B, S = Source.ACCEPTED, Source.RECOVERED, Source.BONUS, Source.SELF_DECODED


def recorded(*sources: Source) -> Recorded:
    """The row of token i has entropy i."""
    return Recorded(tuple(sources), tuple(Row(float(i), -float(i), 1 / (1 + i)) for i in range(len(sources))))


def test_a_token_was_judged_where_it_was_accepted_or_replaced() -> None:
    found = judged([recorded(S, A, A, R, B, A)])
    assert [(token.row.entropy_nats, token.accepted) for token in found] == [
        (1, True),
        (2, True),
        (3, False),
        (5, True),
    ]


def test_drafts_are_told_apart_by_the_targets_own_tokens() -> None:
    found = walks([recorded(S, A, A, R, R, A, B, A)])
    assert [(walk.row.entropy_nats, walk.accepted_length) for walk in found] == [(1, 2), (4, 0), (5, 1), (7, 1)]


def test_a_self_decoded_token_ends_no_draft() -> None:
    assert [walk.accepted_length for walk in walks([recorded(S, S, A, R)])] == [1]


def test_auc_is_the_chance_of_the_right_order_with_ties_counting_half() -> None:
    assert auc([3.0, 2.0, 1.0], [True, True, False]) == 1
    assert auc([1.0, 2.0, 3.0], [True, True, False]) == 0
    assert auc([1.0, 1.0], [True, False]) == 0.5
    scores, accepted = [0.1, 0.4, 0.35, 0.8, 0.8], [False, False, True, True, False]
    pairs = [
        (a, b)
        for a, x in zip(scores, accepted, strict=True)
        if x
        for b, y in zip(scores, accepted, strict=True)
        if not y
    ]
    slow = sum(1.0 if a > b else 0.5 if a == b else 0.0 for a, b in pairs) / len(pairs)
    assert auc(scores, accepted) == pytest.approx(slow)
    assert auc([1.0], [True]) is None


def test_acceptance_falls_into_the_bucket_of_the_rows_own_entropy() -> None:
    output = recorded(S, A, A, R)
    buckets = by_entropy(judged([output]), walks([output]))
    assert [bucket["from_nats"] for bucket in buckets] == [1.0, 2.0, 3.0]
    assert [bucket["acceptance"] for bucket in buckets] == [1, 1, 0]
    assert [bucket["num_drafts"] for bucket in buckets] == [1, 0, 0]
    assert buckets[0]["accepted_length"] == 2
    assert buckets[-1]["to_nats"] is None


def test_low_entropy_counts_as_a_sign_of_acceptance() -> None:
    found = figures([recorded(S, A, A, R)])
    assert found["auc"] == {"entropy": 1, "margin": 1, "top_prob": 1}
    assert found["entropy_accepted"] < found["entropy_rejected"]


def test_rows_are_those_from_which_each_output_token_was_drawn(tmp_path: Path) -> None:
    """Off by one would be the row after the token; token by token, without the later ones, there is no such doubt."""
    folder = str(write_model(tmp_path / "drafter", seed=3))
    prompt, output = (5, 6, 7), (8, 9, 10, 11)
    completion = Completion("", output, (S, A, R, B), FinishReason.LENGTH, {}, "")
    found = record(load_drafter(folder), prompt, completion)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    for i, row in enumerate(found.rows):
        with torch.inference_mode():
            probs = model(torch.tensor([[*prompt, *output[:i]]])).logits[0, -1].softmax(-1)
        top = probs.topk(2).values
        assert row.entropy_nats == pytest.approx(float(-(probs * probs.log()).sum()), rel=1e-4)
        assert row.margin == pytest.approx(math.log(float(top[0] / top[1])), rel=1e-3)
        assert row.top_prob == pytest.approx(float(top[0]), rel=1e-4)
