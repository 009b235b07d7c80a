"""Whom the coordinator takes in."""

from __future__ import annotations

from pathlib import Path

import pytest

from coordinator.config import CoordinatorConfig
from coordinator.server import Coordinator
from paceline.errors import Unsupported
from paceline.types import Role, WorkerInfo
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
