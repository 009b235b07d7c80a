"""A minute of workers that come and go, and a few seconds of too many clients, as real processes."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import overload, soak
from bench.soak import growth, over
from tests.tiny import write_pair


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_pair(tmp_path_factory.mktemp("pair"))


def of(pair: tuple[Path, Path], *options: str) -> list[str]:
    return ["--target", str(pair[0]), "--drafter", str(pair[1]), *options]


async def test_a_minute_of_churn_leaves_nothing_behind(pair: tuple[Path, Path]) -> None:
    given = soak.parser().parse_args(of(pair, "--seconds", "60", "--round-s", "15", "--requests", "4"))
    it = await soak.soak(given)
    assert (it.leaks, dict(it.failed), it.num_different) == ([], {}, 0)
    assert it.num_whole > 10
    assert len(it.happened) > 2
    assert len(it.moments) > 1


def test_what_was_kept_is_noticed() -> None:
    """Blocks and streams at once, threads beyond what pools of threads may grow, memory since the second moment."""
    new = {"requests": 0, "kv_blocks": 0, "streams": 1, "threads": 9, "memory_bytes": 100 << 20}
    assert over("v", new, new | {"threads": 11}) == []
    assert len(over("v", new, new | {"kv_blocks": 1, "streams": 2, "threads": 12})) == 3
    moments = [{"v": new | {"memory_bytes": size << 20}} for size in (100, 150, 160)]
    assert growth(moments) == []
    moments.append({"v": new | {"memory_bytes": 200 << 20}})
    assert growth(moments) == ["v grew from 150 to 200 MiB"]


async def test_ten_times_as_many_clients_are_queued_up_to_the_bound_and_served_as_fast(pair: tuple[Path, Path]) -> None:
    # The longest prompt leaves room for 29 tokens.
    given = overload.parser().parse_args(of(pair, "--seconds", "4", "--places", "4", "--max-tokens", "24"))
    stretches = await overload.measure(given)
    crowd = stretches[1]
    assert [set(it.refused) - {"Overloaded"} for it in stretches] == [set(), set(), set()]
    assert crowd.refused["Overloaded"] > 0
    assert crowd.most["requests"] <= given.places * (1 + overload.WAITING)
    assert crowd.num_whole > 0
    assert overload.goodput_kept(stretches) > 0.5  # 0.9 is for a machine that does nothing else
    for name, sizes in crowd.memory_bytes.items():
        assert sizes[-1] < 1.5 * sizes[0], name
