"""The server itself: a real socket, in this loop."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import ssl
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx2
import openai
import pytest
from starlette.responses import Response

from coordinator import api
from coordinator.http import connection, sse
from coordinator.http import server as http_server
from coordinator.http.door import Door
from coordinator.http.server import STOP_S, HttpServer
from coordinator.http.sse import EventStream
from coordinator.service import GenerationRequest, Service
from coordinator.telemetry import FLUSH_S
from deploy.certs import make
from paceline.drain import DRAIN_S
from paceline.errors import InvalidInput
from paceline.security import PeerRole
from tests import certificates
from tests.coordinator.http.conftest import Keys
from tests.coordinator.toy import Toy

HEAD = b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"


@pytest.fixture
async def served(chat_model: Path) -> AsyncIterator[tuple[Toy, HttpServer]]:
    toy = Toy(chat_model, port=0)
    toy.add_verifier()
    server = HttpServer(toy)
    await server.start()
    yield toy, server
    await toy.close()
    await server.stop()


async def post(server: HttpServer, **body: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    content = json.dumps(body).encode()
    writer.write(HEAD + f"content-length: {len(content)}\r\n\r\n".encode() + content)
    await writer.drain()
    return reader, writer


async def until(is_so: Any) -> None:
    async with asyncio.timeout(10):
        while not is_so():
            await asyncio.sleep(0.005)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_before_the_first_token_ends_its_requests(
    served: tuple[Toy, HttpServer], stream: bool
) -> None:
    toy, server = served
    toy.num_answers = 0
    _, writer = await post(server, prompt="a", n=2, stream=stream)
    await until(lambda: len(toy.opened) == 2)
    writer.close()
    await until(lambda: sorted(toy.closed) == sorted(ask.request_id for ask in toy.opened))
    assert toy.pipeline.num_running == 0


async def test_a_client_that_leaves_a_stream_ends_its_request(served: tuple[Toy, HttpServer]) -> None:
    toy, server = served
    toy.num_answers = 1
    reader, writer = await post(server, prompt="a", stream=True)
    async with asyncio.timeout(10):
        assert b"200 OK" in await reader.readline()
        await reader.readuntil(b'"text":"h"')
    assert not toy.closed
    writer.close()
    await until(lambda: toy.closed == [toy.opened[0].request_id])
    assert toy.pipeline.num_running == 0


async def test_a_request_is_aborted_by_the_id_of_its_answer_and_its_client_reads_so(
    served: tuple[Toy, HttpServer],
) -> None:
    toy, server = served
    toy.num_answers = 1
    reader, writer = await post(server, prompt="a", stream=True, request_id="mine")
    async with asyncio.timeout(10), httpx2.AsyncClient(base_url=server.url, trust_env=False) as http:
        await reader.readuntil(b'"text":"h"')
        assert (await http.post("/abort_request", json={"request_id": "cmpl-mine"})).json() == {"request_id": "mine"}
        await reader.readuntil(b'"finish_reason":"abort"')
        assert (await http.post("/abort_request", json={"request_id": "cmpl-mine"})).status_code == 404
    writer.close()
    assert toy.closed == ["mine"]


@pytest.mark.parametrize(
    ("call", "num"), [({"prompt": "a", "n": 2}, 2), ({"prompt": ["a", "b"]}, 2), ({"prompt": ["a", "b"], "n": 2}, 4)]
)
@pytest.mark.parametrize("name", ["mine", "cmpl-mine"])
async def test_a_call_is_aborted_whole_by_its_id(
    served: tuple[Toy, HttpServer], call: dict[str, Any], num: int, name: str
) -> None:
    """By the id that the caller gave, which the header tells, and by the answer's; a call beside it goes on."""
    toy, server = served
    toy.num_answers = 1
    spec = await Service(toy).admit(GenerationRequest(prompt="a", request_id="other"))
    async with asyncio.timeout(10), httpx2.AsyncClient(base_url=server.url, trust_env=False) as http:
        with toy.generation(spec):
            asked = http.post("/v1/completions", json={**call, "max_tokens": 9}, headers={"x-request-id": "mine"})
            waiting = asyncio.create_task(asked)
            await until(lambda: toy.pipeline.num_running + toy.pipeline.num_waiting == num + 1)
            assert (await http.post("/abort_request", json={"request_id": name})).status_code == 200
            answer = (await waiting).json()
            assert (toy.pipeline.num_running, toy.pipeline.num_waiting) == (1, 0)
    assert answer["id"] == "cmpl-mine"
    assert [choice["finish_reason"] for choice in answer["choices"]] == ["abort"] * num


async def test_a_call_without_a_name_is_aborted_whole_by_the_id_in_its_header(served: tuple[Toy, HttpServer]) -> None:
    toy, server = served
    toy.num_answers = 1
    reader, writer = await post(server, prompt="a", n=3, stream=True)
    async with asyncio.timeout(10), httpx2.AsyncClient(base_url=server.url, trust_env=False) as http:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        (name,) = [line.split(": ")[1] for line in head.splitlines() if line.startswith("x-request-id")]
        assert (await http.post("/abort_request", json={"request_id": name})).status_code == 200
        await reader.readuntil(b"[DONE]")
    writer.close()
    assert len(toy.closed) == 3


async def test_a_request_is_not_aborted_by_another_key(served: tuple[Toy, HttpServer]) -> None:
    """Ids may be the clients' own, and so may be guessed."""
    toy, server = served
    toy.num_answers = 1
    spec = await Service(toy).admit(GenerationRequest(prompt="a", request_id="mine", client="alice"))
    with toy.generation(spec):
        assert not toy.abort("mine", "bob")
        async with httpx2.AsyncClient(base_url=server.url, trust_env=False) as http:  # nobody's key
            assert (await http.post("/abort_request", json={"request_id": "mine"})).status_code == 404
        assert not toy.closed
        assert toy.abort("mine", "alice")
    assert toy.closed == ["mine"]


async def test_a_request_under_way_fails_so_that_its_client_may_ask_elsewhere_when_the_server_stops(
    chat_model: Path,
) -> None:
    toy = Toy(chat_model, port=0)
    toy.add_verifier()
    toy.num_answers = 0
    server = HttpServer(toy)
    await server.start()
    reader, writer = await post(server, prompt="a")
    await until(lambda: toy.opened)
    await toy.close()
    async with asyncio.timeout(5):
        answer = await reader.readuntil(b"}}")
        await server.stop()
    assert answer.startswith(b"HTTP/1.1 503")
    assert b"shutting down" in answer
    writer.close()


async def test_a_port_in_use_and_a_host_beyond_this_machine_are_refused(chat_model: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(InvalidInput, match=f"port={port}"):
            await HttpServer(Toy(chat_model, port=port)).start()
    with pytest.raises(InvalidInput, match="--insecure"):
        await HttpServer(Toy(chat_model, port=0, host="0.0.0.0")).start()


async def get(server: HttpServer, trust: ssl.SSLContext, headers: str = "") -> tuple[bytes, bytes]:
    """The status line of a call without a certificate, and the server's certificate."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port, ssl=trust)
    writer.write(f"GET /v1/models HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n{headers}\r\n".encode())
    shown: bytes = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    return answer.partition(b"\r\n")[0], shown


async def test_behind_tls_it_asks_for_a_key_and_shows_the_certificate_of_the_moment(
    chat_model: Path, tmp_path: Path
) -> None:
    make(tmp_path)
    toy = Toy(chat_model, port=0, tls=certificates.tls(PeerRole.COORDINATOR, tmp_path))
    server = HttpServer(toy, Keys())
    await server.start()
    assert server.url == f"https://127.0.0.1:{server.port}"
    trust = ssl.create_default_context(cafile=tmp_path / "ca.crt")
    try:
        assert b" 401 " in (await get(server, trust))[0]
        line, before = await get(server, trust, "authorization: Bearer sesame\r\n")
        assert b" 200 " in line
        make(tmp_path)
        await get(server, trust)  # its handshake finds the new files
        assert (await get(server, trust))[1] != before
    finally:
        await server.stop()


async def test_behind_tls_who_connects_and_says_nothing_is_closed_like_anybody_else(
    chat_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_server, "HANDSHAKE_S", 0.2)
    server = HttpServer(Toy(chat_model, port=0, tls=certificates.tls(PeerRole.COORDINATOR)), Keys())
    await server.start()
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    try:
        async with asyncio.timeout(20):  # asyncio's own bound is a minute
            with contextlib.suppress(ConnectionError):
                assert await reader.read() == b""
    finally:
        writer.close()
        await server.stop()


async def test_openais_client_streams_over_tls_with_a_key_and_is_refused_without(
    chat_model: Path, tmp_path: Path
) -> None:
    make(tmp_path)
    toy = Toy(chat_model, port=0, served_model_name="toy", tls=certificates.tls(PeerRole.COORDINATOR, tmp_path))
    toy.add_verifier()
    server = HttpServer(toy, Keys())
    await server.start()
    trust = ssl.create_default_context(cafile=tmp_path / "ca.crt")
    given: Any = {"model": "toy", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 20}
    try:
        async with asyncio.timeout(20), httpx2.AsyncClient(verify=trust, trust_env=False) as http:
            client = openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="sesame", http_client=http, max_retries=0)
            stream = await client.chat.completions.create(**given, stream=True)
            assert "".join([chunk.choices[0].delta.content or "" async for chunk in stream]) == "héllo"
            with pytest.raises(openai.AuthenticationError):
                await client.with_options(api_key="guess").chat.completions.create(**given)
    finally:
        await toy.close()
        await server.stop()


def test_behind_tls_without_keys_it_is_for_this_machine_only_and_says_so(
    chat_model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    open_to_all: Any = {"port": 0, "host": "0.0.0.0", "tls": certificates.tls(PeerRole.COORDINATOR)}
    assert HttpServer(Toy(chat_model, **open_to_all)).host == "127.0.0.1"
    assert "HTTP is on 127.0.0.1 and not on 0.0.0.0: with TLS and without --api-keys" in caplog.text
    caplog.clear()
    assert HttpServer(Toy(chat_model, **open_to_all), Keys()).host == "0.0.0.0"
    assert HttpServer(Toy(chat_model, **open_to_all, insecure=True)).host == "0.0.0.0"
    assert not caplog.text


async def test_a_client_that_does_not_read_ends_its_stream() -> None:
    is_closed = False

    async def events() -> AsyncGenerator[bytes]:
        nonlocal is_closed
        try:
            yield b"data: 1\n\n"
        finally:
            is_closed = True

    async def never(*_: Any) -> Any:
        await asyncio.Event().wait()

    async def send(message: Any) -> None:
        if message["type"] == "http.response.body":
            await never()

    async with asyncio.timeout(10):
        await EventStream(events(), 0.05)({"type": "http"}, never, send)
    assert is_closed


async def test_who_names_no_host_is_no_browser_and_is_served(served: tuple[Toy, HttpServer]) -> None:
    _, server = served
    for host, status in (b"", b" 200 "), (b"host: evil.example\r\n", b" 403 "):
        reader, writer = await said(server, b"GET /v1/models HTTP/1.0\r\n" + host + b"\r\n")
        async with asyncio.timeout(10):
            assert status in await reader.readline()
        writer.close()


async def test_the_address_is_told_as_a_browser_takes_it(served: tuple[Toy, HttpServer]) -> None:
    _, server = served
    assert server.url == f"http://127.0.0.1:{server.port}"


async def said(server: HttpServer, data: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(data)
    await writer.drain()
    return reader, writer


@pytest.mark.parametrize(
    "data", [b"", HEAD, HEAD + b'content-length: 90\r\n\r\n{"prompt":'], ids=["nothing", "half a head", "half a body"]
)
async def test_a_client_that_never_ends_its_request_loses_its_connection(
    served: tuple[Toy, HttpServer], data: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "READ_S", 0.2)
    _, server = served
    reader, writer = await said(server, data)
    async with asyncio.timeout(5):
        with contextlib.suppress(ConnectionError):
            assert await reader.read() == b""
    writer.close()


async def test_a_client_that_sends_a_byte_now_and_then_gains_no_time(
    served: tuple[Toy, HttpServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "READ_S", 0.3)
    _, server = served
    reader, writer = await said(server, HEAD)
    with contextlib.suppress(ConnectionError):
        async with asyncio.timeout(5):
            while not reader.at_eof():
                writer.write(b"x")
                await writer.drain()
                await asyncio.sleep(0.02)
    assert reader.at_eof() or reader.exception()
    writer.close()


async def test_a_request_that_has_come_may_take_as_long_as_it_takes(
    served: tuple[Toy, HttpServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "READ_S", 0.1)
    toy, server = served
    toy.num_answers = 1
    reader, writer = await post(server, prompt="a", stream=True)
    async with asyncio.timeout(10):
        await reader.readuntil(b'"text":"h"')
        await asyncio.sleep(0.4)
        assert toy.abort(toy.opened[0].request_id)
        await reader.readuntil(b'"finish_reason":"abort"')
    writer.close()


async def test_connections_over_the_bound_are_closed_and_those_before_are_served(
    served: tuple[Toy, HttpServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "MAX_CONNECTIONS", 2)
    _, server = served
    silent = [await said(server, b"") for _ in range(2)]
    reader, writer = silent[0]
    refused, refused_writer = await said(server, b"")
    async with asyncio.timeout(5):
        with contextlib.suppress(ConnectionError):
            assert await refused.read() == b""
        writer.write(b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n")
        assert b"200 OK" in await reader.readline()
    for one in (refused_writer, *(writer for _, writer in silent)):
        one.close()


async def test_too_many_calls_are_told_to_come_back_and_probes_are_answered(
    served: tuple[Toy, HttpServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    toy, server = served
    toy.num_answers = 0
    async with httpx2.AsyncClient(base_url=server.url, trust_env=False) as http:
        _, writer = await post(server, prompt="a")  # which also makes the middleware
        await until(lambda: toy.opened)
        door: Any = server.app.middleware_stack
        while not isinstance(door, Door):
            door = door.app
        monkeypatch.setattr(door._calls, "_size", 2)
        response = await http.post("/v1/completions", json={"prompt": "a"})
        assert response.status_code == 429
        assert response.json()["error"]["type"] == "rate_limit_error"
        assert (await http.get("/health")).status_code == 200
        writer.close()
        await until(lambda: toy.closed)
        await until(lambda: not door._calls.held)


async def test_a_stream_whose_response_cannot_be_made_ends_its_request(
    served: tuple[Toy, HttpServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    toy, server = served
    toy.num_answers = 1

    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(sse, "EventStream", broken)
    reader, writer = await post(server, prompt="a", stream=True)
    async with asyncio.timeout(10):
        assert b"500" in await reader.readline()
    assert toy.pipeline.num_running == 0
    writer.close()


class TwoKeys:
    def check(self, header: str | None) -> str | None:
        return header if header in ("alice", "bob") else None


@pytest.mark.parametrize("keys", [TwoKeys(), None], ids=["by key", "by address"])
async def test_one_caller_leaves_room_for_others(keys: TwoKeys | None) -> None:
    """One key with all the calls that there were kept every other key out."""
    may_end = asyncio.Event()
    statuses: list[int | None] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await may_end.wait()
        await Response()(scope, receive, send)

    async def send(message: Any) -> None:
        statuses.append(message.get("status"))

    async def call(who: str) -> Any:
        headers = [(b"authorization", who.encode())] if keys else []
        scope = {"type": "http", "method": "POST", "headers": headers, "client": (who, 1)}
        task = asyncio.create_task(door(scope, None, send))  # type: ignore[arg-type]
        await asyncio.sleep(0)
        return task

    door = Door(app, SimpleNamespace(keys=keys), max_calls=8)  # type: ignore[arg-type]
    tasks = [await call("alice") for _ in range(4)]
    await call("alice")
    assert statuses == [429, None], "it has as many as it leaves free"
    tasks += [await call("bob") for _ in range(2)]
    assert statuses == [429, None]
    may_end.set()
    await asyncio.gather(*tasks)
    assert statuses.count(200) == 6
    assert not door._calls.held


def test_a_coordinators_end_has_time_for_all_its_parts_before_kubernetes_kills() -> None:
    assert api.SHUTDOWN_S >= FLUSH_S + STOP_S + api.GRACE_S + 2
    assert DRAIN_S + api.SHUTDOWN_S < 30
