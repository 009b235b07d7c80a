"""Which type of numbers a device is fast in."""

from __future__ import annotations

import logging

import pytest

from paceline.engine import dtype


@pytest.mark.parametrize(("has", "want"), [(True, "bfloat16"), (False, "float32")])
def test_auto_is_bfloat16_where_the_device_has_it(has: bool, want: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dtype, "has_bfloat16", lambda device: has)
    assert dtype.resolve("auto", "cpu") == want
    assert dtype.resolve("float32", "cpu") == "float32"


def test_a_type_that_is_slow_here_is_used_and_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(dtype, "has_bfloat16", lambda device: False)
    with caplog.at_level(logging.WARNING):
        assert dtype.resolve("bfloat16", "cpu") == "bfloat16"
    assert "float32 is faster" in caplog.text


def test_a_gpu_has_bfloat16() -> None:
    assert dtype.fastest("cuda:0") == "bfloat16"
