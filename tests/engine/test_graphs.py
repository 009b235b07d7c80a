"""Graphs of decode-shaped steps: padding of plain integers, replay on a CPU that only pretends, and on a GPU if any."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from paceline.engine import graphs
from paceline.engine.backend import CANDIDATES, by_speed, using
from paceline.engine.executor import Executor
from paceline.engine.graphs import MAX_GRAPHS, NUM_SEQS, Pass, Shape, pad, shape_of
from paceline.engine.plan import Span, StepPlan
from paceline.engine.runner import Chunk, Runner
from paceline.engine.step import Outputs
from tests.engine.test_runner import TOLERANCE, Conversation, error, reference

Folders = Callable[[str], Path]

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def decode(lengths: list[int], block_size: int = 4) -> StepPlan:
    spans, first = [], 0
    for length in lengths:
        num_blocks = -(-length // block_size)
        spans.append(Span(length - 1, 1, tuple(range(first, first + num_blocks))))
        first += num_blocks
    return StepPlan(list(range(len(lengths))), list(range(len(lengths))), spans)


@pytest.mark.parametrize(
    ("plan", "shape"),
    [
        (decode([1]), Shape(2, 1)),
        (decode([5]), Shape(2, 2)),
        (decode([1, 9]), Shape(4, 4)),
        (decode([1] * 3), Shape(4, 1)),
        (decode([1] * 4), Shape(8, 1)),
        (decode([20] * 200), Shape(256, 8)),
        (decode([1] * 256), None),
        (StepPlan([1, 2], [1], [Span(0, 2, (0,))]), None),
    ],
)
def test_a_shape_holds_the_step_and_one_sequence_more(plan: StepPlan, shape: Shape | None) -> None:
    assert shape_of(plan) == shape
    if shape:
        padded = pad(plan, shape, scratch=99, block_size=4)
        assert len(padded.spans) == len(padded.token_ids) == shape.num_seqs
        assert padded.spans[: len(plan.spans)] == plan.spans
        assert padded.rows == plan.rows
        ends = [span.start + span.num_tokens for span in padded.spans]
        assert max(ends) == 4 * shape.num_blocks, "so that every step of a shape has as many keys"
        assert {block for span in padded.spans[len(plan.spans) :] for block in span.blocks} == {99}


def pretending(counts: list[int]) -> graphs.Capture:
    """A capture that runs the pass again at each replay; counts[0] captures, counts[1] replays."""

    def capture(once: Pass) -> Pass:
        counts[0] += 1
        once()

        def replay() -> Outputs:
            counts[1] += 1
            return once()

        return replay

    return capture


@pytest.mark.parametrize("architecture", ["Llama", "Gemma2", "Qwen3Moe"])
def test_steps_that_are_replayed_equal_plain_forwards(model_folder: Folders, architecture: str) -> None:
    """Sequences of several lengths come and go within a shape, whatever the one before has left in its memory."""
    folder, counts = model_folder(architecture), [0, 0]
    runner = Runner.load(str(folder), max_num_tokens=640, block_size=8)
    assert isinstance(runner._executor, Executor)
    runner._executor.use_graphs(pretending(counts))
    texts = {name: [(7 * at + 3 * start) % 300 for at in range(90)] for start, name in enumerate("abcde")}
    found, wanted = [], []
    for start, (name, text) in enumerate(texts.items()):
        runner.open(name)
        runner.forward([Chunk(name, 0, text[: 3 + 9 * start], 0)])
    expected = {name: reference(folder)(text) for name, text in texts.items()}
    for number in range(30):
        names = [name for at, name in enumerate(texts) if (number + at) % 4]
        chunks = []
        for name in names:
            start = runner.length(name) - (number % 7 == 5)  # now and then one token is taken back
            chunks.append(Chunk(name, start, [texts[name][start]], 1 if number % 3 else int(name in "ac")))
        rows = iter(runner.forward(chunks))
        for chunk in chunks:
            if chunk.num_rows:
                found.append(next(rows).clone())
                wanted.append(expected[chunk.sequence][chunk.start])
        runner.check_integrity()
    assert error(torch.stack(found), torch.stack(wanted)) <= TOLERANCE
    assert counts[1] >= 25
    assert 2 <= counts[0] < counts[1] / 2, "shapes are captured once and replayed after"


def test_other_steps_run_without_graphs(model_folder: Folders) -> None:
    counts = [0, 0]
    runner = Runner.load(str(model_folder("Llama")), max_num_tokens=640, block_size=8)
    assert isinstance(runner._executor, Executor)
    runner._executor.use_graphs(pretending(counts))
    conversation = Conversation(runner, seed=1)
    conversation.run(12)
    difference, same = conversation.compare(reference(model_folder("Llama")))
    assert same
    assert difference <= TOLERANCE
    assert counts[1] <= 2


def test_a_model_that_cannot_be_captured_runs_without_graphs(model_folder: Folders) -> None:
    calls = []

    def capture(once: Pass) -> Pass:
        calls.append(once)
        raise RuntimeError("operation not permitted when stream is capturing")

    runner = Runner.load(str(model_folder("Llama")), max_num_tokens=64, block_size=8)
    assert isinstance(runner._executor, Executor)
    runner._executor.use_graphs(capture)
    runner.open("a")
    runner.forward([Chunk("a", 0, [1, 2, 3], 0)])
    for start in (3, 4, 5):
        row = runner.forward([Chunk("a", start, [start + 1], 1)])
    assert error(row, reference(model_folder("Llama"))([1, 2, 3, 4, 5, 6])[-1:]) <= TOLERANCE
    assert len(calls) == 1, "it is tried once"


def test_shapes_are_few() -> None:
    """A graph keeps memory of its own, so their number has a bound whatever the traffic."""
    assert len(NUM_SEQS) <= MAX_GRAPHS
    assert list(NUM_SEQS) == sorted(NUM_SEQS)


def test_the_fastest_candidate_goes_first_and_one_that_cannot_run_is_left_out() -> None:
    now = [0.0]

    def taking(seconds: list[float]) -> Callable[[], None]:
        def run() -> None:
            now[0] += seconds.pop(0)

        return run

    def broken() -> None:
        raise RuntimeError("no available kernel")

    candidates = {
        "slow": taking([0.0, 3.0, 3.0, 3.0]),
        "fast": taking([9.0, 1.0, 1.0, 9.0]),  # its warm-up and one hiccup count for nothing
        "broken": broken,
        "middling": taking([0.0, 2.0, 2.0, 2.0]),
    }
    assert by_speed(candidates, num_rounds=3, clock=lambda: now[0]) == ["fast", "middling", "slow"]


def test_a_cpu_chooses_nothing(model_folder: Folders) -> None:
    runner = Runner.load(str(model_folder("Llama")), max_num_tokens=64)
    assert isinstance(runner._executor, Executor)
    assert runner._executor._backends == []
    assert runner._executor._graphs is None
    with using([]):
        pass


@needs_gpu
@pytest.mark.gpu
@pytest.mark.parametrize("architecture", ["Llama", "Gemma2"])
def test_on_a_gpu_graphs_and_chosen_kernels_give_the_rows_of_plain_passes(
    model_folder: Folders, architecture: str
) -> None:
    rows: dict[bool, list[torch.Tensor]] = {}
    for eager in (True, False):
        runner = Runner.load(
            str(model_folder(architecture)), device="cuda", max_num_tokens=640, block_size=8, enforce_eager=eager
        )
        assert isinstance(runner._executor, Executor)
        assert set(runner._executor._backends) == set(CANDIDATES)
        for name in "ab":
            runner.open(name)
            runner.forward([Chunk(name, 0, list(range(30)), 0)])
        rows[eager] = [runner.forward([Chunk(name, 30 + number, [number], 1) for name in "ab"]) for number in range(20)]
        graphed = runner._executor._graphs
        assert (graphed is None) == eager
        if graphed is not None:
            assert graphed._graphs, "this architecture can be captured"
    assert error(torch.cat(rows[False]), torch.cat(rows[True])) <= 1e-3
