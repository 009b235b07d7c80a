"""A tensor parallel group whose other rank something else has started, as a cluster's scheduler does."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from paceline.engine.guests import gather
from paceline.engine.runner import Chunk, Runner
from paceline.errors import EngineLost, Unavailable
from tests.engine.test_parallel import Folders, needs_accelerate


@pytest.fixture
def guest(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A rank that looks for its leader at `tmp_path / "ranks"`."""
    process = subprocess.Popen(
        [sys.executable, "-m", "paceline.engine.parallel", str(tmp_path / "ranks")],
        stdin=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    yield process
    process.kill()
    process.wait()
    assert process.stdin
    process.stdin.close()


@needs_accelerate
def test_a_group_of_a_guest_computes_as_one_process_and_ends_with_it(
    guest: subprocess.Popen[bytes], model_folder: Folders, tmp_path: Path
) -> None:
    folder = str(model_folder("Llama"))
    chunk = Chunk("a", 0, [1, 2, 3], 1)
    alone = Runner.load(folder, max_num_tokens=64)
    alone.open("a")
    expected = alone.forward([chunk])
    pair = Runner.load(folder, max_num_tokens=64, tensor_parallel_size=2, ranks_socket=str(tmp_path / "ranks"))
    try:
        pair.open("a")
        assert (pair.forward([chunk]) - expected).abs().max() < 1e-5
        guest.kill()
        with pytest.raises(EngineLost, match="lost rank 1"):
            pair.forward([Chunk("a", 3, [4], 1)])
    finally:
        pair.shutdown()


@needs_accelerate
def test_a_guest_ends_when_its_leader_lets_go(
    guest: subprocess.Popen[bytes], model_folder: Folders, tmp_path: Path
) -> None:
    socket = str(tmp_path / "ranks")
    pair = Runner.load(str(model_folder("Llama")), max_num_tokens=64, tensor_parallel_size=2, ranks_socket=socket)
    pair.shutdown()
    assert guest.wait(20) == 0


def test_a_guest_ends_when_whoever_started_it_does(guest: subprocess.Popen[bytes]) -> None:
    """Its leader never comes; the pipe is what it hears of the end."""
    assert guest.stdin
    guest.stdin.close()
    assert guest.wait(30) == 1


def test_a_leader_to_whom_nobody_comes_says_how_many_are_missing(tmp_path: Path) -> None:
    started_s = time.monotonic()
    with pytest.raises(Unavailable, match="2 of 2 ranks did not come"):
        gather(str(tmp_path / "ranks"), 2, {}, 0.2)
    assert time.monotonic() - started_s < 10
    assert not (tmp_path / "ranks").exists()
