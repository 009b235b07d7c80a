"""Length policies as data: reading, printing, and refusals that say what to do."""

from __future__ import annotations

import difflib

import pytest

from paceline.errors import InvalidInput, did_you_mean
from paceline.length_policy import POLICIES, LengthPolicy


@pytest.mark.parametrize(
    ("text", "spelled_out"),
    [
        ("fixed", "fixed:length=8"),
        ("fixed:length=3", "fixed:length=3"),
        ("svip", "svip:threshold_nats=0.6,max_length=40"),
        ("confidence", "confidence:threshold=0.4,max_length=20"),
        ("specdecpp:cost_ratio=6", "specdecpp:threshold=0,cost_ratio=6,max_length=20"),
        ("svip: max_length=12 ,threshold_nats=1.5", "svip:threshold_nats=1.5,max_length=12"),
    ],
)
def test_a_policy_is_read_with_every_parameter_spelled_out(text: str, spelled_out: str) -> None:
    policy = LengthPolicy.parse(text)
    assert str(policy) == spelled_out
    assert LengthPolicy.parse(spelled_out) == policy


def test_the_default_is_fixed() -> None:
    assert LengthPolicy() == LengthPolicy.parse("fixed")


def test_defaults_are_within_their_ranges() -> None:
    for name, table in POLICIES.items():
        assert LengthPolicy.of(name, {key: p.default for key, p in table.items()}) == LengthPolicy.parse(name)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the policies are adaedl, confidence, fixed, specdecpp, svip"),
        ("magic", "the policies are adaedl, confidence, fixed, specdecpp, svip"),
        ("fixed:lenght=3", "did you mean length"),
        ("adaedl:max_length=65", "must be from 1 to 64"),
        ("adaedl:entropy_factor=0", "must be from 0.001 to 10"),
        ("confidence:treshold=0.5", "did you mean threshold"),
        ("confidence:threshold=1.5", "must be from 0 to 1"),
        ("specdecpp:cost_ratio=0", "must be from 1 to 1000"),
        ("svip:zzz=3", "svip has threshold_nats, max_length"),
        ("fixed:length=0", "must be from 1 to 64"),
        ("fixed:length=65", "must be from 1 to 64"),
        ("fixed:length=2.5", "whole number"),
        ("fixed:length=nan", "must be from 1 to 64"),
        ("svip:threshold_nats=inf", "must be from 0 to 20"),
        ("svip:threshold_nats=-1", "must be from 0 to 20"),
        ("fixed:length", "write NAME:key=value"),
        ("fixed:length=eight", "write NAME:key=value"),
    ],
)
def test_a_wrong_policy_is_refused_with_a_hint(text: str, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        LengthPolicy.parse(text)


def test_what_is_too_long_for_a_word_is_compared_with_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Comparing a name of a megabyte took the coordinator's event loop more than a second."""
    assert did_you_mean("x" * 64, ["x" * 63]) == f"did you mean {'x' * 63}? "
    monkeypatch.setattr(difflib, "get_close_matches", lambda *_, **__: pytest.fail("it was compared"))
    assert did_you_mean("x" * 65, ["x" * 64]) == ""
    with pytest.raises(InvalidInput, match="unknown parameter; fixed has length"):
        LengthPolicy.of("fixed", {"length" * 11: 1.0})
