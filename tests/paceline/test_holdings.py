"""What a process says of what it holds."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest

from paceline.holdings import line, read, told_on_signal


def test_a_line_is_read_back_and_others_are_not_taken_for_one() -> None:
    assert read(line("verifier", {"requests": 3, "kv_blocks": 0})) == {"requests": 3, "kv_blocks": 0}
    assert read("paceline verifier ready on 127.0.0.1:1 (model m)") is None


async def test_a_signal_is_answered_with_what_is_held_then_and_ends_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    held = {"requests": 1}
    with told_on_signal("drafter", lambda: held):
        for held["requests"] in (1, 2):
            os.kill(os.getpid(), signal.SIGUSR1)
            await asyncio.sleep(0.05)
    first, second = (read(text) or {} for text in capsys.readouterr().out.splitlines())
    assert (first["requests"], second["requests"]) == (1, 2)
    assert first["tasks"] == len(asyncio.all_tasks())
    assert all(first[name] > 0 for name in ("threads", "files", "memory_bytes"))
