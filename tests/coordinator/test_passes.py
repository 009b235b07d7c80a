"""What verdicts tell of a verifier's passes."""

from __future__ import annotations

import pytest

from coordinator.core.passes import PassTimes


def test_a_pass_counts_once_however_many_requests_tell_of_it() -> None:
    """Sixteen verdicts of one slow pass made all passes seem slow, and plain decoding with them."""
    passes = PassTimes()
    passes.seen(16, 0.1)
    for _ in range(16):
        passes.seen(16, 0.2)
    assert passes.seconds(16) == pytest.approx(0.12)
    passes.seen(16, 0.1)
    for _ in range(16):
        passes.seen(16, 0.2)
    assert passes.seconds(16) == pytest.approx(0.12 + 0.2 * -0.02 + 0.2 * 0.084)
