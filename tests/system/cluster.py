"""A coordinator, verifiers and drafters on loopback in one process: real gRPC, real engines, real threads."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from coordinator.api import CoordinatorServer
from coordinator.config import CoordinatorConfig
from drafter.engine import DrafterEngine
from drafter.server import DRAFTER
from paceline import acceptance_head
from paceline.client import AsyncClient
from paceline.engine.runner import Runner
from paceline.kind import Place
from paceline.security import PeerRole, Tls
from paceline.types import Role, WorkerInfo
from paceline.worker import WorkerServer
from tests import certificates
from verifier.engine import VerifierEngine
from verifier.server import VERIFIER


def worker_info(role: Role, model: Path, runner: Runner, max_num_seqs: int = 16) -> WorkerInfo:
    info = runner.info
    return WorkerInfo(
        role,
        address="",
        incarnation=0,
        model=model.name,
        model_hash=info.model_hash,
        tokenizer_hash=info.tokenizer_hash,
        vocab_size=info.vocab_size,
        max_model_len=info.max_model_len,
        max_num_seqs=max_num_seqs,
        eos_token_ids=info.eos_token_ids,
        dtype=info.dtype,
        device=info.device,
    )


def load(model: Path, max_num_tokens: int = 8192) -> Runner:
    return Runner.load(str(model), dtype="float32", max_num_tokens=max_num_tokens)


@dataclass
class Cluster:
    server: CoordinatorServer
    workers: dict[str, WorkerServer[Any, Any]] = field(default_factory=dict)
    engines: dict[str, VerifierEngine | DrafterEngine] = field(default_factory=dict)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.server.port}"

    def tls(self, role: PeerRole) -> Tls | None:
        return certificates.tls(role) if self.server.coordinator.config.tls else None

    def client(self, api_key: str | None = None) -> AsyncClient:
        return AsyncClient(self.address, tls=self.tls(PeerRole.CLIENT), api_key=api_key, max_retries=0)

    async def add(
        self,
        name: str,
        role: Role,
        model: Path,
        max_num_tokens: int = 8192,
        *,
        kind: type[DrafterEngine] = DrafterEngine,
        place: Place | None = None,
        **options: Any,
    ) -> None:
        """Start a worker with a pool of so many tokens, and wait until the coordinator uses it.

        `options` are a drafter engine's.
        """
        runner = load(model, max_num_tokens)
        info = worker_info(role, model, runner)
        worker: WorkerServer[Any, Any]
        if role is Role.VERIFIER:
            verifier = self.engines[name] = VerifierEngine(runner, info)
            worker = WorkerServer(verifier, VERIFIER)
        else:
            head = acceptance_head.beside(model, drafter_hash=info.model_hash)
            drafter = self.engines[name] = kind(runner, info, **{"row_width": 16, "head": head, **options})
            worker = WorkerServer(drafter, DRAFTER)
        self.workers[name] = worker
        own = Place(coordinators=[self.address], tls=self.tls(PeerRole(role)))
        await worker.start(**((place or Place()) | own))
        address = worker.info.address
        pools = self.server.coordinator.pipeline.pools
        await until(lambda: any(member.info.address == address for member in pools))

    async def remove(self, name: str) -> None:
        worker = self.workers.pop(name)
        await worker.stop(2)
        pools = self.server.coordinator.pipeline.pools
        await until(lambda: all(member.info.address != worker.info.address for member in pools))

    def check_nothing_leaked(self) -> None:
        for name, engine in self.engines.items():
            engine.runner.check_integrity()
            if name in self.workers:
                assert not engine._entries, f"{name} still holds requests"
        pipeline = self.server.coordinator.pipeline
        assert pipeline.num_running == pipeline.num_waiting == 0
        assert all(not member.requests for member in pipeline.pools)


async def until(condition: Any, within_s: float = 20.0) -> None:
    """Wait for something that another task or thread brings about."""
    async with asyncio.timeout(within_s):
        while not condition():
            await asyncio.sleep(0.005)


@asynccontextmanager
async def cluster(tokenizer: Path, **settings: Any) -> AsyncIterator[Cluster]:
    # Tiny drafters are as slow as tiny targets: none of them would be taken in.
    settings = {"admit_any": True, **settings}
    server = CoordinatorServer(CoordinatorConfig(str(tokenizer), grpc_port=0, **settings))
    await server.start()
    it = Cluster(server)
    try:
        yield it
        await until(lambda: all(not e._entries for n, e in it.engines.items() if n in it.workers))
        it.check_nothing_leaked()
    finally:
        for worker in it.workers.values():
            await worker.stop(2)
        await server.stop()
