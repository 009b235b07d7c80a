"""What one request's numbers mean."""

from __future__ import annotations

from coordinator.core.metrics import RequestMetrics
from paceline.types import Draft, Source
from paceline.wire import coordinator_pb2

A, R = Source.ACCEPTED, Source.RECOVERED


def metrics() -> RequestMetrics:
    return RequestMetrics("pearl", "match", "fixed:length=4", 4, num_prompt_tokens=3)


def test_accepted_tokens_are_counted_by_their_place_in_the_draft_they_come_from() -> None:
    """Two drafts, judged as one chain: of the first the end is new, of the second the beginning was right."""
    it = metrics()
    it.settled(12, (A, A, A, R), [Draft("a", 0, 10, (1, 2, 3, 4)), Draft("a", 0, 14, (5, 6, 7))])
    assert it.accepted_at == {2: 1, 3: 1, 0: 1}
    it.settled(16, (R,), [])
    assert it.accepted_at.total() == 3


def test_a_client_is_told_everything_that_the_wire_has_a_name_for() -> None:
    wire = coordinator_pb2.RequestMetrics
    assert set(metrics().figures()) == {field.name for field in wire.DESCRIPTOR.fields}
    assert wire(**metrics().figures()).mode == "pearl"
