"""The whole system behind mutual TLS and keys: real handshakes, real engines."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest

from coordinator import api
from paceline import codec, rpc
from paceline.client import AsyncClient
from paceline.errors import Overloaded, Unauthenticated, Unavailable
from paceline.security import PeerRole
from paceline.types import Role, WorkerInfo
from paceline.wire import coordinator_pb2_grpc, verifier_pb2_grpc
from paceline.worker import WorkerServer
from tests.certificates import tls
from tests.paceline.test_worker import Toy
from tests.system.cluster import Cluster, cluster, until
from tests.tiny import write_pair
from verifier.server import VERIFIER

KEY, OTHER = "k" * 20, "o" * 20
PROMPT = tuple(range(40, 52))


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_pair(tmp_path_factory.mktemp("pair"))


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    path = tmp_path / "keys"
    path.write_text(f"alice:{KEY}\nbob:{OTHER}\n")
    return path


@pytest.fixture
async def locked(pair: tuple[Path, Path], keys: Path) -> AsyncIterator[Cluster]:
    settings: Any = {"tls": tls(PeerRole.COORDINATOR), "api_keys": str(keys), "max_requests_per_key": 2}
    async with cluster(pair[0], **settings) as it:
        yield it


def info(it: Cluster, role: Role, address: str = "127.0.0.1:1", incarnation: int = 1) -> WorkerInfo:
    tokenizer = it.server.coordinator.tokenizer
    return WorkerInfo(role, address, incarnation, "toy", "a" * 64, tokenizer.hash, 300, 512, 4, (0,), "float32", "cpu")


async def register(it: Cluster, as_: PeerRole, info: WorkerInfo) -> grpc.StatusCode:
    async with rpc.connect(it.address, tls(as_)) as channel:
        stub = coordinator_pb2_grpc.CoordinatorStub(channel)
        status: grpc.StatusCode = await stub.Register(codec.worker_info_to_wire(info), timeout=5).code()
        return status


async def test_all_roles_work_together_behind_tls_and_keys(locked: Cluster, pair: tuple[Path, Path]) -> None:
    await locked.add("v", Role.VERIFIER, pair[0])
    await locked.add("d", Role.DRAFTER, pair[1])
    async with locked.client(KEY) as client:
        plain = await client.complete(PROMPT, max_tokens=40, mode="off", ignore_eos=True)
        drafted = await client.complete(PROMPT, max_tokens=40, mode="pearl", ignore_eos=True)
        assert drafted.token_ids == plain.token_ids
        assert drafted.metrics["num_accepted_tokens"] > 0
        assert len((await client.server_info()).workers) == 2


async def test_old_connections_are_renewed_and_nobody_notices(
    pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Clients' and workers' to the coordinator; its own to the workers stay."""
    monkeypatch.setattr(api, "MAX_CONNECTION_AGE_S", 0.2)
    async with cluster(pair[0], tls=tls(PeerRole.COORDINATOR)) as it, it.client() as client:
        await it.add("v", Role.VERIFIER, pair[0])
        await it.add("d", Role.DRAFTER, pair[1])
        links = dict(it.server.coordinator.links)
        leases = {link.lease_until_s for link in links.values()}
        plain = await client.complete(PROMPT, max_tokens=40, mode="off", ignore_eos=True)
        (channel,) = client._to.channels
        async with asyncio.timeout(60):
            while leases & {link.lease_until_s for link in links.values()}:
                asked = client.complete(PROMPT, max_tokens=40, mode="pearl", ignore_eos=True)
                assert (await asked).token_ids == plain.token_ids
                while channel.get_state() is grpc.ChannelConnectivity.READY:
                    await asyncio.sleep(0.02)
        assert it.server.coordinator.links == links


async def test_without_a_key_nothing_is_told_and_nothing_is_done(locked: Cluster) -> None:
    for key in (None, "x" * 20):
        async with locked.client(key) as client:
            calls: list[Any] = [client.complete("hi"), client.model_info(), client.server_info(), client.abort("r")]
            for call in calls:
                with pytest.raises(Unauthenticated, match="API key"):
                    await call
    async with AsyncClient(locked.address, api_key=KEY) as client:
        with pytest.raises(Unavailable):
            await client.model_info()


async def test_a_certificate_registers_its_own_role_only(locked: Cluster) -> None:
    """A client's is no worker's, and a drafter's no verifier's: what a verifier says is believed."""
    for as_ in PeerRole:
        for role in Role:
            status = await register(locked, as_, info(locked, role))
            may = as_ == role.value
            assert status is (grpc.StatusCode.OK if may else grpc.StatusCode.PERMISSION_DENIED), (as_, role)


async def test_the_coordinator_talks_only_to_a_worker_whose_certificate_says_so(
    locked: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    """A drafter that registers the address of something else, with its own good certificate, gains nothing."""
    impostor = WorkerServer(Toy(), VERIFIER)
    await impostor.start(tls=tls(PeerRole.CLIENT))
    there = info(locked, Role.VERIFIER, impostor.info.address)
    assert await register(locked, PeerRole.VERIFIER, there) is grpc.StatusCode.OK
    await until(lambda: not locked.server.coordinator.links)
    assert "down" in caplog.text
    assert list(locked.server.coordinator.pipeline.pools) == []
    assert impostor._streams == {}
    await impostor.stop(2)


async def test_a_worker_is_asked_by_coordinators_only(locked: Cluster, pair: tuple[Path, Path]) -> None:
    await locked.add("v", Role.VERIFIER, pair[0])
    address = locked.workers["v"].info.address
    for role in (PeerRole.CLIENT, PeerRole.DRAFTER, PeerRole.VERIFIER):
        async with rpc.connect(address, tls(role), expects=PeerRole.VERIFIER) as channel:
            call = verifier_pb2_grpc.VerifierStub(channel).Connect()
            assert await call.code() is grpc.StatusCode.PERMISSION_DENIED
    async with rpc.connect(address) as channel:
        call = verifier_pb2_grpc.VerifierStub(channel).Connect()
        assert await call.code() is grpc.StatusCode.UNAVAILABLE


async def test_one_keys_requests_are_counted_and_another_keys_are_not_in_the_way(locked: Cluster) -> None:
    async with locked.client(KEY) as alice, locked.client(OTHER) as bob:
        waiting = [alice.generate(PROMPT, max_tokens=4) for _ in range(2)]
        firsts = [until_asked(chunks) for chunks in waiting]
        await until(lambda: locked.server.coordinator.pipeline.num_waiting == 2)
        with pytest.raises(Overloaded, match="requests of the key alice: full at 2") as caught:
            await alice.complete(PROMPT, max_tokens=4)
        assert caught.value.retry_after_s > 0
        other = until_asked(bob.generate(PROMPT, max_tokens=4))
        await until(lambda: locked.server.coordinator.pipeline.num_waiting == 3)
        for task in (*firsts, other):
            task.cancel()
        await until(lambda: locked.server.coordinator.pipeline.num_waiting == 0)
        assert not locked.server.coordinator._held, "places are given back"


def until_asked(chunks: Any) -> Any:
    """The generation, under way in a task of its own."""

    async def read() -> None:
        async for _ in chunks:
            pass

    return asyncio.ensure_future(read())


async def test_registrations_are_bounded(pair: tuple[Path, Path]) -> None:
    async with cluster(pair[0], max_workers=3) as it:
        for i in range(3):
            it.server.coordinator.registry.register(info(it, Role.DRAFTER, f"127.0.0.1:{i + 1}"))
        with pytest.raises(Overloaded, match="registered drafters: full at 3"):
            it.server.coordinator.registry.register(replace(info(it, Role.DRAFTER), incarnation=9))
        await until(lambda: not it.server.coordinator.links)
