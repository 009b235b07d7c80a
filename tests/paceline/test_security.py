"""Handshakes on loopback: who gets in, as whom, and what the files must be."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from deploy.certs import make
from paceline import rpc
from paceline.api_keys import ApiKeys
from paceline.client import AsyncClient, Client
from paceline.door import Door
from paceline.errors import InvalidInput
from paceline.security import PeerRole, Tls, peer_role
from paceline.wire import coordinator_pb2 as pb
from paceline.wire import coordinator_pb2_grpc
from tests.certificates import authority, tls

NAME = "paceline.wire.Coordinator"
KEY = "k" * 20
WHO = {"Abort": (PeerRole.CLIENT,), "Generate": (PeerRole.CLIENT,), "Register": (PeerRole.DRAFTER, PeerRole.VERIFIER)}


class Tells:
    """A coordinator whose Abort notes the caller's role; GetModelInfo is a method that no door knows."""

    def __init__(self) -> None:
        self.roles: list[PeerRole | None] = []
        self.connections: set[str] = set()
        self.may_end = asyncio.Event()
        self.may_end.set()

    async def Abort(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.roles.append(peer_role(context))
        self.connections.add(context.peer())
        return pb.AbortReply()

    async def Register(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.roles.append(peer_role(context))
        return pb.RegisterReply(lease_s=1)

    async def Generate(self, request: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802
        yield pb.GenerateReply(text="a")
        await self.may_end.wait()
        yield pb.GenerateReply(text="b")

    def __getattr__(self, name: str) -> Any:
        return self.Abort


TRIES = 5


class Served:
    """A server with this door; `stub` calls it."""

    def __init__(self) -> None:
        self.servicer = Tells()
        self.port = 0
        self._server: rpc.Server | None = None

    async def start(self, server_tls: Tls | None, keys: Path | None = None, **more: Any) -> None:
        door = Door(WHO, has_tls=server_tls is not None, keys=ApiKeys(keys) if keys else None)
        add = partial(coordinator_pb2_grpc.add_CoordinatorServicer_to_server, self.servicer)
        self._server, self.port = await rpc.start_server(
            [(NAME, add)], "127.0.0.1", 0, tls=server_tls, door=door, **more
        )

    async def stop(self) -> None:
        if self._server:
            await self._server.stop()

    def connect(self, as_: Tls | None, expects: PeerRole = PeerRole.COORDINATOR) -> Any:
        return rpc.connect(f"127.0.0.1:{self.port}", as_, expects=expects)

    async def call(self, method: str, as_: Tls | None, key: str | None = None, **more: Any) -> grpc.StatusCode:
        """The status of one call."""
        # A write that meets the end of the call makes the library itself say INTERNAL, on this side: once in hundreds.
        for _ in range(TRIES):
            status, details = await self._call(method, as_, key, **more)
            if details != "Internal error from Core":
                break
        return status

    async def _call(self, method: str, as_: Tls | None, key: str | None, **more: Any) -> tuple[grpc.StatusCode, str]:
        metadata = (("authorization", f"Bearer {key}"),) if key else ()
        request = {"Abort": pb.AbortRequest, "GetModelInfo": pb.GetModelInfoRequest}.get(method)
        async with self.connect(as_, **more) as channel:
            call: Any
            if method == "Check":
                call = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=5)
            elif method == "Reflect":
                stub = reflection_pb2_grpc.ServerReflectionStub(channel)
                asks = iter([reflection_pb2.ServerReflectionRequest(list_services="")])
                call = stub.ServerReflectionInfo(asks, timeout=5, metadata=metadata)
            else:
                message = request() if request else pb.GenerateRequest()
                stub = coordinator_pb2_grpc.CoordinatorStub(channel)
                call = getattr(stub, method)(message, timeout=5, metadata=metadata)
            if method in ("Generate", "Reflect"):
                with contextlib.suppress(grpc.aio.AioRpcError):
                    _ = [reply async for reply in call]
            return await call.code(), await call.details()


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    it = Served()
    yield it
    await it.stop()


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    path = tmp_path / "keys"
    path.write_text(f"alice:{KEY}\n")
    return path


OK, REFUSED, UNKNOWN = grpc.StatusCode.OK, grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.UNAUTHENTICATED


async def test_a_call_is_for_the_roles_that_the_door_names(served: Served) -> None:
    await served.start(tls(PeerRole.COORDINATOR))
    for role in PeerRole:
        is_client = role is PeerRole.CLIENT
        assert await served.call("Abort", tls(role)) is (OK if is_client else REFUSED), role
        assert await served.call("Generate", tls(role)) is (OK if is_client else REFUSED), role
        assert await served.call("GetModelInfo", tls(role)) is REFUSED, "a method that nobody was named for"
        assert await served.call("Check", tls(role)) is OK, "health is open to all roles"
    assert served.servicer.roles == [PeerRole.CLIENT]


async def test_without_a_certificate_of_the_authority_there_is_nothing_but_a_failed_handshake(served: Served) -> None:
    await served.start(tls(PeerRole.COORDINATOR))
    strange = authority("strange")
    for stranger in (None, tls(PeerRole.CLIENT, strange, ca=authority())):
        for method in ("Abort", "Check", "Reflect"):
            assert await served.call(method, stranger) is grpc.StatusCode.UNAVAILABLE
    assert served.servicer.roles == []


@pytest.mark.parametrize("claims", [PeerRole.DRAFTER, PeerRole.CLIENT])
async def test_a_caller_talks_only_to_the_role_that_it_expects(served: Served, claims: PeerRole) -> None:
    """A drafter's certificate must not answer for a coordinator, whatever the address."""
    await served.start(tls(claims))
    assert await served.call("Check", tls(PeerRole.CLIENT)) is grpc.StatusCode.UNAVAILABLE
    assert await served.call("Check", tls(PeerRole.COORDINATOR), expects=claims) is OK


async def test_a_server_of_another_authority_is_not_believed(served: Served) -> None:
    await served.start(tls(PeerRole.COORDINATOR, authority("strange"), ca=authority()))
    assert await served.call("Check", tls(PeerRole.CLIENT)) is grpc.StatusCode.UNAVAILABLE


async def test_keys_are_asked_for_on_every_path_of_clients_and_on_no_other(served: Served, keys: Path) -> None:
    await served.start(None, keys)
    for method in ("Abort", "Generate"):
        assert await served.call(method, None) is UNKNOWN
        assert await served.call(method, None, "x" * 20) is UNKNOWN
        assert await served.call(method, None, KEY) is OK
    assert await served.call("GetModelInfo", None, KEY) is REFUSED, "a method that nobody was named for"
    assert await served.call("Check", None) is OK
    assert await served.call("Register", None) is OK


@pytest.mark.parametrize("has_keys", [True, False])
async def test_reflection_is_off_behind_a_locked_door_unless_asked_for(
    served: Served, keys: Path, has_keys: bool
) -> None:
    server_tls, client_tls = (None, None) if has_keys else (tls(PeerRole.COORDINATOR), tls(PeerRole.CLIENT))
    await served.start(server_tls, keys if has_keys else None)
    assert await served.call("Reflect", client_tls, KEY) is grpc.StatusCode.UNIMPLEMENTED
    await served.stop()
    await served.start(server_tls, keys if has_keys else None, has_reflection=True)
    assert await served.call("Reflect", client_tls, KEY) is OK
    if has_keys:
        assert await served.call("Reflect", client_tls) is UNKNOWN


async def test_an_open_door_asks_for_nothing(served: Served) -> None:
    await served.start(None)
    for method in ("Abort", "Generate", "GetModelInfo", "Check", "Reflect"):
        assert await served.call(method, None) is OK
    assert set(served.servicer.roles) == {None}


async def test_renewed_certificates_are_used_without_a_restart(served: Served, tmp_path: Path) -> None:
    """The authority itself is replaced: only a server that reads its files again lets the new ones in."""
    folder = tmp_path / "certificates"
    make(folder)
    await served.start(tls(PeerRole.COORDINATOR, folder))
    assert await served.call("Abort", tls(PeerRole.CLIENT, folder)) is OK
    old = tmp_path / "old"
    shutil.copytree(folder, old)
    for path in folder.iterdir():
        path.unlink()
    assert await served.call("Abort", tls(PeerRole.CLIENT, old)) is OK, "files that are away change nothing"
    make(folder)
    assert await served.call("Abort", tls(PeerRole.CLIENT, folder)) is OK
    assert await served.call("Abort", tls(PeerRole.CLIENT, old)) is grpc.StatusCode.UNAVAILABLE


def replace_all(folder: Path) -> None:
    """By those of a new authority."""
    for path in folder.iterdir():
        path.unlink()
    make(folder)


async def test_an_old_connection_takes_no_new_calls_and_those_that_run_end_as_they_would(
    served: Served, tmp_path: Path
) -> None:
    make(tmp_path)
    await served.start(tls(PeerRole.COORDINATOR, tmp_path), max_connection_age_s=0.3)
    served.servicer.may_end.clear()
    async with served.connect(tls(PeerRole.CLIENT, tmp_path)) as channel, asyncio.timeout(30):
        stub = coordinator_pb2_grpc.CoordinatorStub(channel)
        running = stub.Generate(pb.GenerateRequest())
        assert (await running.read()).text == "a"
        replace_all(tmp_path)
        while (status := await stub.Abort(pb.AbortRequest()).code()) is OK:
            await asyncio.sleep(0.02)
        assert status is grpc.StatusCode.UNAVAILABLE
        served.servicer.may_end.set()
        assert (await running.read()).text == "b"
        assert await running.code() is OK


@pytest.mark.parametrize("kind", [AsyncClient, Client])
async def test_a_client_shows_the_certificate_of_the_moment(
    served: Served, tmp_path: Path, kind: type[AsyncClient | Client]
) -> None:
    make(tmp_path)
    await served.start(tls(PeerRole.COORDINATOR, tmp_path), max_connection_age_s=0.3)
    client = kind(f"127.0.0.1:{served.port}", tls=tls(PeerRole.CLIENT, tmp_path))

    async def ask() -> None:
        await (client.abort("r") if isinstance(client, AsyncClient) else asyncio.to_thread(client.abort, "r"))

    async with asyncio.timeout(60):
        for _ in range(3):  # more often than there are channels kept
            seen = set(served.servicer.connections)
            await ask()
            (tmp_path / "client.key").unlink()
            await ask()  # files that do not fit change nothing
            replace_all(tmp_path)
            while len(served.servicer.connections - seen) < 2:
                await ask()
    assert len(client._to.channels) == 2
    await (client.close() if isinstance(client, AsyncClient) else asyncio.to_thread(client.close))


def test_a_role_is_not_started_with_files_that_will_not_do(tmp_path: Path) -> None:
    ours, strange = authority(), authority("strange")
    good = {"cert": f"{ours}/drafter.crt", "key": f"{ours}/drafter.key", "ca": f"{ours}/ca.crt"}
    (tmp_path / "nonsense").write_text("no PEM")
    make(tmp_path / "ended", days=0)
    ended = {name: path.replace(str(ours), str(tmp_path / "ended")) for name, path in good.items()}
    for change, says in (
        ({"key": None}, "tls-key.*together"),
        ({"cert": f"{ours}/verifier.crt", "key": f"{ours}/verifier.key"}, "is no drafter's.*spiffe://paceline/drafter"),
        ({"key": f"{strange}/drafter.key"}, "tls-key.*does not belong"),
        ({"ca": str(tmp_path / "nonsense")}, "tls-ca.*no PEM"),
        ({"cert": "/none"}, "tls-cert.*cannot be read.*paceline certs"),
        ({"cert": f"{ours}/ca.crt", "key": f"{ours}/ca.key"}, "is no drafter's"),
        (ended, "has ended on"),
    ):
        with pytest.raises(InvalidInput, match=says):
            Tls.of(PeerRole.DRAFTER, **(good | change))
    assert Tls.of(PeerRole.DRAFTER, None, None, None) is None
    assert Tls.of(PeerRole.DRAFTER, **good) == tls(PeerRole.DRAFTER)


class Context:
    """A call whose certificate carries these names."""

    def __init__(self, **names: list[bytes]) -> None:
        self._names = names

    def auth_context(self) -> dict[str, list[bytes]]:
        return self._names


@pytest.mark.parametrize(
    ("names", "role"),
    [
        ({}, None),
        ({"peer_uri": [b"spiffe://paceline/drafter"]}, PeerRole.DRAFTER),
        ({"peer_uri": [b"spiffe://elsewhere/drafter"]}, None),
        ({"peer_uri": [b"spiffe://paceline/drafter", b"https://example.org/"]}, PeerRole.DRAFTER),
        ({"peer_uri": [b"spiffe://paceline/drafter", b"spiffe://paceline/verifier"]}, None),
        ({"peer_dns": [b"spiffe://paceline/drafter"], "x509_common_name": [b"paceline drafter"]}, None),
    ],
)
def test_only_the_uri_of_a_certificate_gives_a_role_and_only_one(names: Any, role: PeerRole | None) -> None:
    assert peer_role(Context(**names)) is role
