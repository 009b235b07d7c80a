"""What can befall the link between coordinator and drafter, in bytes and in messages, costs speed and nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from bench.processes import free_port
from bench.proxy import Proxy, Shape
from bench.relay import Faults, Relay
from coordinator.core.limits import Limits
from paceline.client import Completion
from paceline.kind import Place
from paceline.types import Role
from tests.system.cluster import cluster
from tests.tiny import write_pair

PROMPT = tuple(range(40, 52))
GIVEN: Any = {"max_tokens": 160, "ignore_eos": True}
LAWS: tuple[Any, ...] = ({"temperature": 0.0}, {"temperature": 1.0, "seed": 3})


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_pair(tmp_path_factory.mktemp("pair"))


@dataclass
class Linked:
    """A link, and where a worker behind it serves and says that it does."""

    link: Proxy | Relay
    place: Place


@asynccontextmanager
async def linked(shape: Shape | Faults) -> AsyncIterator[Linked]:
    port = free_port()
    to = ("127.0.0.1", port)
    link = Proxy(to, shape) if isinstance(shape, Shape) else Relay(to, shape)
    try:
        yield Linked(link, Place(port=port, advertise=f"127.0.0.1:{await link.start()}"))
    finally:
        await link.stop()


async def stall(link: Any) -> None:
    """For two seconds nothing comes through."""
    link.shape = Shape(stall_share=1, stall_ms=2000)
    await asyncio.sleep(0.05)
    link.shape = Shape()


async def cut(link: Any) -> None:
    link.cut()


@pytest.mark.parametrize(
    ("shape", "befall"),
    [
        (Faults(repeat_share=0.2), None),
        (Faults(overtake_share=0.2), None),
        (Faults(lose_share=0.1), None),
        (Faults(repeat_share=0.1, overtake_share=0.1, lose_share=0.1), cut),
        (Shape(rtt_ms=200), None),
        (Shape(), stall),
        (Shape(), cut),
    ],
)
async def test_no_token_changes(shape: Shape | Faults, befall: Any, pair: tuple[Path, Path]) -> None:
    limits = Limits(max_draft_wait_s=0.05)
    async with linked(shape) as it, cluster(pair[0], limits=limits) as pools, pools.client() as client:
        await pools.add("v", Role.VERIFIER, pair[0])
        expected = [(await client.complete(PROMPT, mode="off", **GIVEN, **law)).token_ids for law in LAWS]
        await pools.add("d", Role.DRAFTER, pair[1], place=it.place)

        async def ask() -> list[Completion]:
            return await asyncio.gather(*(client.complete(PROMPT, mode="pearl", **GIVEN, **law) for law in LAWS))

        for _ in range(3):
            asked = asyncio.ensure_future(ask())
            if befall:
                await asyncio.sleep(0.05)
                await befall(it.link)
            assert [answer.token_ids for answer in await asked] == expected
        async with asyncio.timeout(30):  # until drafts come again; the drafter may be resting
            while not any(answer.metrics["num_received_drafts"] for answer in await ask()):
                await asyncio.sleep(0.1)
        if isinstance(it.link, Relay):
            assert it.link.num_faults
        it.link.cut()  # a close that was lost is made good by the end of the stream, and by nothing before it
