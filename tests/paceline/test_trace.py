"""Traces: written as things happen, bounded, readable after a crash, and never a reason to fail."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import msgpack
import pytest

from coordinator.core.commands import Emit
from coordinator.core.events import Tick, Verified, WorkerDown
from paceline import __version__
from paceline.errors import InvalidInput
from paceline.trace import Closed, Opened, Step, Writer, read
from paceline.types import Source, Verdict


def writer(path: Path, max_bytes: int = 1 << 20) -> Writer:
    return Writer(str(path), unix_s=1e9, clock_s=5.0, settings={"window": 4}, max_bytes=max_bytes)


EVENT = Verified("v", Verdict("r", 0, 3, (1, 2), (Source.ACCEPTED, Source.BONUS)))
COMMANDS = [Emit("r", (1, 2), (Source.ACCEPTED, Source.BONUS))]


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.trace"
    trace = writer(path)
    trace.observe(EVENT, COMMANDS, 6.0)
    trace.close()
    opened, step, closed = read(str(path))
    assert opened == Opened(1e9, 5.0, __version__, {"window": 4})
    assert isinstance(step, Step)
    assert step.at_s == 6.0
    assert step.event["is"] == "Verified"
    assert step.commands[0]["token_ids"] == [1, 2]
    assert closed == Closed("stopped")


def test_a_step_is_in_the_file_as_soon_as_it_is_added(tmp_path: Path) -> None:
    """A process that is killed takes nothing with it."""
    path = tmp_path / "a.trace"
    trace = writer(path)
    for num_steps in range(3):
        assert len(list(read(str(path)))) == 1 + num_steps
        trace.observe(Tick(), [], 6.0 + num_steps)


def test_a_full_trace_says_so_and_takes_no_more(tmp_path: Path) -> None:
    path = tmp_path / "a.trace"
    trace = writer(path, max_bytes=1000)
    for i in range(1000):
        trace.observe(EVENT, COMMANDS, float(i))
    trace.close()
    records = list(read(str(path)))
    assert records[-1] == Closed("full")
    assert 2 < len(records) < 20
    assert path.stat().st_size < 1020


def test_a_restarted_coordinator_goes_on_behind_what_a_crash_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "a.trace"
    trace = writer(path)
    trace.observe(EVENT, COMMANDS, 6.0)
    trace.observe(EVENT, COMMANDS, 7.0)
    with open(path, "r+b") as file:
        file.truncate(path.stat().st_size - 5)
    again = writer(path)
    again.observe(Tick(), [], 1.0)
    kinds = [type(record) for record in read(str(path))]
    assert kinds == [Opened, Step, Opened, Step]


def test_a_trace_is_for_its_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "a.trace"
    writer(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_file_that_is_no_trace_is_neither_read_nor_written_to(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    for content in (b"dear diary", msgpack.packb({"a": 1}), msgpack.packb([5.0, {}, []]), b"\xc1"):
        path.write_bytes(content)
        with pytest.raises(InvalidInput, match="notes"):
            list(read(str(path)))
        with pytest.raises(InvalidInput, match="notes"):
            writer(path)
        assert path.read_bytes() == content


def test_a_trace_of_another_version_is_refused_by_its_version(tmp_path: Path) -> None:
    path = tmp_path / "a.trace"
    path.write_bytes(msgpack.packb(["paceline trace", 2, {}]))
    with pytest.raises(InvalidInput, match="is of version 2; this program reads version 1"):
        list(read(str(path)))


def test_a_path_that_cannot_be_written_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"--trace=.*No such file or directory; name another"):
        writer(tmp_path / "none" / "a.trace")


def test_a_disk_that_fails_ends_the_trace_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    trace = writer(tmp_path / "a.trace")

    def fail(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", fail)
    trace.observe(WorkerDown("v"), [], 6.0)
    trace.observe(WorkerDown("v"), [], 7.0)
    trace.close()
    assert caplog.text.count("No space left on device") == 1
