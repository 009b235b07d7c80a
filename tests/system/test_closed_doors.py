"""Every port that there is, behind TLS and keys: without a certificate or a key it gives away nothing at all."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import ssl
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from paceline import rpc
from paceline.security import PeerRole
from paceline.types import Role
from paceline.wire import coordinator_pb2, drafter_pb2, verifier_pb2
from tests.certificates import authority, tls
from tests.system.cluster import Cluster, cluster
from tests.tiny import write_pair

KEY = "k" * 20
# Of every service that there is, so that no new one is forgotten.
METHODS = [
    f"{service.full_name}/{method.name}"
    for module in (coordinator_pb2, drafter_pb2, verifier_pb2, health_pb2, reflection_pb2)
    for service in module.DESCRIPTOR.services_by_name.values()
    for method in service.methods
]
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0"
UNLISTED = {"/paceline/generate", "/paceline/pools", "/metrics", "/openapi.json", "/docs", "/admin", "/v1/models/x"}
PUBLIC = {"/health", "/ready", "/ping", "/"}  # and the parts of the page, which are in this repository for all to read


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_pair(tmp_path_factory.mktemp("pair"))


@pytest.fixture
async def locked(pair: tuple[Path, Path], tmp_path: Path) -> AsyncIterator[Cluster]:
    keys = tmp_path / "keys"
    keys.write_text(f"alice:{KEY}\n")
    async with cluster(pair[0], tls=tls(PeerRole.COORDINATOR), api_keys=str(keys), port=0) as it:
        await it.add("v", Role.VERIFIER, pair[0])
        await it.add("d", Role.DRAFTER, pair[1])
        yield it


def addresses(it: Cluster) -> list[str]:
    """Of all gRPC ports."""
    return [it.address, *(worker.info.address for worker in it.workers.values())]


def _stranger() -> grpc.ChannelCredentials:
    """Who believes the authority, and has no certificate."""
    return grpc.ssl_channel_credentials((authority() / "ca.crt").read_bytes())


def _foreigner() -> grpc.ChannelCredentials:
    """Who has a certificate of another authority."""
    theirs = authority("theirs")
    key, certificate = (theirs / "coordinator.key").read_bytes(), (theirs / "coordinator.crt").read_bytes()
    return grpc.ssl_channel_credentials((authority() / "ca.crt").read_bytes(), key, certificate)


@pytest.mark.parametrize("credentials", [None, _stranger, _foreigner])
async def test_no_method_of_any_port_answers_who_has_no_certificate(
    locked: Cluster, credentials: Callable[[], Any] | None
) -> None:
    """Health and reflection are methods too."""
    for address in addresses(locked):
        options = [("grpc.ssl_target_name_override", "coordinator.paceline"), ("grpc.enable_retries", 0)]
        if address != locked.address:
            role = next(worker.info.role for worker in locked.workers.values() if worker.info.address == address)
            options[0] = ("grpc.ssl_target_name_override", f"{role}.paceline")
        if credentials is None:
            channel = grpc.aio.insecure_channel(address)
        else:
            channel = grpc.aio.secure_channel(address, credentials(), options=options)
        async with channel:
            for method in METHODS:
                call = channel.unary_unary(f"/{method}")(b"", timeout=10)
                assert await call.code() is grpc.StatusCode.UNAVAILABLE, (address, method)
                assert not await call.initial_metadata()
                assert not await call.trailing_metadata()


async def _talk(port: int, sends: bytes) -> bytes:
    """All that comes back until the server closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(sends)
        return await asyncio.wait_for(reader.read(), 20)
    except ConnectionError:
        return b""
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


@pytest.mark.parametrize("sends", [PREFACE, b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n", b"\x16\x03\x01\x00\x05hello"])
async def test_plain_bytes_get_an_alert_at_most(locked: Cluster, sends: bytes) -> None:
    assert locked.server.http is not None
    ports = [int(address.rpartition(":")[2]) for address in addresses(locked)] + [locked.server.http.port]
    for got in await asyncio.gather(*(_talk(port, sends) for port in ports)):
        assert len(got) <= 7, "a TLS alert has seven bytes"
        assert got[:1] in (b"", b"\x15")


def _ask(port: int, method: str, path: str, key: str | None) -> tuple[int, bytes]:
    context = ssl.create_default_context(cafile=str(authority() / "ca.crt"))
    connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=20, context=context)
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
    connection.request(method, path, b"{}" if method == "POST" else None, headers)
    response = connection.getresponse()
    body = response.read()
    connection.close()
    return response.status, body


async def test_http_tells_nothing_without_a_key_on_any_path(locked: Cluster) -> None:
    """Every route that the application has, and some that it has not."""
    http_server = locked.server.http
    assert http_server is not None
    paths = set(http_server.app.openapi()["paths"]) | UNLISTED
    assert {"/v1/completions", "/v1/chat/completions", "/tokenize", "/version", "/load"} <= paths
    for path in sorted(paths - PUBLIC):
        if path.startswith("/dashboard/"):
            continue
        for key in (None, "x" * 20):
            for method in ("GET", "POST", "DELETE"):
                status, body = await asyncio.to_thread(_ask, http_server.port, method, path, key)
                assert status in (401, 404, 405), (path, method, status)
                assert locked.server.coordinator.config.tokenizer.encode() not in body
                assert len(body) < 300
    status, _ = await asyncio.to_thread(_ask, http_server.port, "GET", "/metrics", KEY)
    assert status == 200


async def test_reflection_is_off_for_those_who_may_come_in(locked: Cluster) -> None:
    async with rpc.connect(locked.address, tls(PeerRole.CLIENT)) as channel:
        call = channel.stream_stream("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo")()
        assert await call.code() is grpc.StatusCode.UNIMPLEMENTED
