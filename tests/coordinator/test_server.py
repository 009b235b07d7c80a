"""Whom the coordinator takes in."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import grpc
import pytest

from coordinator.config import CoordinatorConfig
from coordinator.server import Coordinator
from paceline import codec
from paceline.errors import PeerFault, Unavailable, Unsupported
from paceline.types import MAX_BRANCHES, Branch, Commit, Draft, Role, WorkerInfo
from tests.tiny import write_tokenizer


def info(role: Role, tokenizer_hash: str) -> WorkerInfo:
    return WorkerInfo(
        role,
        f"127.0.0.1:{1 + list(Role).index(role)}",
        1,
        "m",
        "0" * 64,
        tokenizer_hash,
        50,
        99,
        4,
        (),
        "float32",
        "cpu",
    )


async def test_only_a_drafter_may_do_without_a_tokenizer(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    (tmp_path / "config.json").write_text('{"max_position_embeddings": 99}')
    it = Coordinator(CoordinatorConfig(str(tmp_path)))
    for role, tokenizer_hash in ((Role.VERIFIER, ""), (Role.VERIFIER, "a" * 64), (Role.DRAFTER, "a" * 64)):
        with pytest.raises(Unsupported, match="tokenizer of m"):
            it.registry.register(info(role, tokenizer_hash))
    it.registry.register(info(Role.DRAFTER, ""))
    it.registry.register(info(Role.VERIFIER, it.tokenizer.hash))
    assert [link.info.role for link in it.links.values()] == [Role.DRAFTER, Role.VERIFIER]
    await it.close()


class Call:
    """A stream that says what it is given, and ends."""

    def __init__(self, replies: list[Any]) -> None:
        """A reply of None is bytes that are none, as gRPC hands them on."""
        self._left = iter([*(one and codec.drafter_reply_to_wire(one) for one in replies), grpc.aio.EOF])

    async def read(self) -> Any:
        return next(self._left)


async def test_a_drafter_may_send_a_full_window_and_all_branches_for_one_ask(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    (tmp_path / "config.json").write_text('{"max_position_embeddings": 99}')
    it = Coordinator(CoordinatorConfig(str(tmp_path)))
    it.registry.register(info(Role.DRAFTER, ""))
    (link,) = it.links.values()
    drafts = [Draft("r", 0, 5 + at, (1,)) for at in range(64)]
    branches = [Branch(2, Draft("r", 0, 6 + at, (1,))) for at in range(MAX_BRANCHES)]
    for num_more, expected in ((0, Unavailable), (2, PeerFault)):
        link.num_owed = 0
        it._send(link.name, Commit("r", 1, 3, (7,)))
        with pytest.raises(expected):
            await it._read(link, Call([*drafts, *branches, *drafts[:num_more]]))
    await it.close()


async def test_a_worker_that_sends_what_cannot_be_read_is_to_blame(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    (tmp_path / "config.json").write_text('{"max_position_embeddings": 99}')
    it = Coordinator(CoordinatorConfig(str(tmp_path)))
    it.registry.register(info(Role.DRAFTER, ""))
    (link,) = it.links.values()
    it._send(link.name, Commit("r", 1, 3, (7,)))
    with pytest.raises(PeerFault, match="cannot be read"):
        await it._read(link, Call([Draft("r", 0, 5, (1,)), None]))
    await it.close()


@pytest.mark.parametrize("error", [asyncio.InvalidStateError("RPC already finished."), ZeroDivisionError("a bug")])
async def test_whatever_ends_a_link_is_a_line_in_the_log_and_no_more(
    tmp_path: Path, error: Exception, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("coordinator.server.connect", fail)
    write_tokenizer(tmp_path)
    (tmp_path / "config.json").write_text('{"max_position_embeddings": 99}')
    it = Coordinator(CoordinatorConfig(str(tmp_path)))
    link = it.registry.register(info(Role.DRAFTER, ""))
    assert link
    assert link.task
    await link.task  # raises nothing
    assert not it.links
    assert f"{link.name} down" in caplog.text
    assert str(error) in caplog.text
    await it.close()
