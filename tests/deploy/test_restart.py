"""A lost group is started anew a bounded number of times, later and later."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from deploy.restart import COUNT, FIRST_BACKOFF_S, HEALTHY_S, MAX_BACKOFF_S, MAX_RESTARTS, restart

Call = tuple[str, list[str], Mapping[str, str]]


def lives(lived_s: float, num_lives: int) -> tuple[list[Call], list[float], int]:
    """So many processes one after the other, each of which loses its group after `lived_s`."""
    calls: list[Call] = []
    pauses: list[float] = []
    environ: Mapping[str, str] = {"KEPT": "1"}
    code = 0
    for _ in range(num_lives):
        before = len(calls)
        code = restart(
            "rank 1 is gone",
            lived_s,
            environ=environ,
            execute=lambda *arguments: calls.append(arguments),
            sleep=pauses.append,
        )
        if len(calls) == before:
            break
        environ = calls[-1][2]
    return calls, pauses, code


def test_a_group_that_is_lost_again_and_again_is_given_up(capsys: pytest.CaptureFixture[str]) -> None:
    calls, pauses, code = lives(lived_s=3.0, num_lives=MAX_RESTARTS + 5)
    assert len(calls) == MAX_RESTARTS
    assert code == 1
    assert pauses == [min(FIRST_BACKOFF_S * 2**n, MAX_BACKOFF_S) for n in range(MAX_RESTARTS)]
    assert "rank 1 is gone" in capsys.readouterr().err.splitlines()[-1]
    assert all(environ["KEPT"] == "1" for _, _, environ in calls), "and with it whatever its options came from"


def test_a_group_that_lived_long_is_not_held_against_the_next() -> None:
    calls, _, _ = lives(lived_s=HEALTHY_S, num_lives=MAX_RESTARTS + 5)
    assert len(calls) == MAX_RESTARTS + 5
    assert {environ[COUNT] for _, _, environ in calls} == {"1"}
