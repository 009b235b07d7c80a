"""The step plan: plain integers, the same after a trip through msgpack."""

from __future__ import annotations

from paceline.engine.plan import MAX_BATCHED_TOKENS, Chunk, Span, StepPlan, build


def test_rows_are_in_the_order_of_the_chunks_although_long_chunks_go_last() -> None:
    long = [7] * (MAX_BATCHED_TOKENS + 1)
    chunks = [Chunk("long", 4, long, 2), Chunk("none", 0, [1, 2], 0), Chunk("short", 9, [3, 4], 2)]
    plan = build(chunks, [[0, 1, 2], [3], [5]])
    assert plan.token_ids == [1, 2, 3, 4, *long]
    assert plan.spans == [Span(0, 2, (3,)), Span(9, 2, (5,)), Span(4, len(long), (0, 1, 2))]
    last = 4 + len(long)
    assert plan.rows == [last - 2, last - 1, 2, 3]


def test_a_plan_survives_msgpack() -> None:
    plan = build([Chunk("a", 3, (5, 6), 1), Chunk("b", 0, [9], 1)], [[2, 8], [4]])
    assert StepPlan.unpack(plan.pack()) == plan
