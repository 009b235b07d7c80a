"""The ingress: a coordinator's process, and the news of where it is.

Serve's proxies carry no tokens. Whoever asks one of them is told the coordinator's own addresses, or sent there: a
redirect that keeps method and body, which OpenAI's clients follow.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import ray
from ray import serve
from ray.exceptions import RayError
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response

from deploy.ray import directory
from deploy.ray.arguments import Arguments, flags
from deploy.ray.directory import REPORT_S, entry_of
from deploy.ray.replica import Replica, cancelled
from paceline.api_keys import read_keys
from paceline.client import AsyncClient, ServerInfo
from paceline.errors import PacelineError
from paceline.security import PeerRole, Tls

log = logging.getLogger("ray.serve")

ASK_TIMEOUT_S = 2.0


class Asker:
    """Asks the coordinator's process. After a refusal or a loss it reads key and certificates again.

    A key may be revoked, and a certificate run out, while the replica goes on: one that kept what it has read first
    would never report again, and the pools would stay as they are for good.
    """

    def __init__(self, address: str, arguments: Arguments) -> None:
        self._address, self._arguments = address, arguments
        self._client: AsyncClient | None = None

    async def server_info(self) -> ServerInfo:
        """Raises PacelineError, also for files that cannot be read."""
        if self._client is None:
            self._client = self._connect()
        try:
            return await self._client.server_info()
        except PacelineError:  # not for want of time: a busy process would only have a handshake more to do
            await self.close()
            raise

    def _connect(self) -> AsyncClient:
        told = self._arguments
        tls = Tls.of(PeerRole.CLIENT, told.tls_cert, told.tls_key, told.tls_ca)
        key = next(iter(read_keys(told.api_keys).values())) if told.api_keys else None
        return AsyncClient(self._address, tls=tls, api_key=key)

    async def close(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            await client.close()


def directions(request: Request, address: str, url: str) -> Response:
    """Where whoever asks a proxy finds the coordinator itself; `url` is empty if that serves no HTTP."""
    if request.url.path in ("", "/"):
        return JSONResponse({"grpc": address, "http": url})
    if not url:  # a redirect would lead to the proxy again, for ever
        return PlainTextResponse(f"no HTTP here; gRPC on {address}\n", 404)
    query = f"?{request.url.query}" if request.url.query else ""
    return RedirectResponse(f"{url}{request.url.path}{query}", status_code=307)


class CoordinatorReplica:
    """See the top of the file."""

    def __init__(self, *_pools: Any) -> None:
        """`_pools`: handles that make the pools part of the application; nothing is sent through them."""
        context = serve.get_replica_context()
        # Whatever Serve's commands call the application, everybody finds its directory by that name.
        self._application, self._name = context.app_name, context.replica_id.unique_id
        self._replica = Replica()
        self._reporting: asyncio.Task[None] | None = None

    async def reconfigure(self, config: dict[str, Any]) -> None:
        await self._leave()
        arguments = Arguments(**config)
        options = {"grpc-port": 0, "port": 0, **arguments.coordinator.options}
        keys = ("--api-keys", arguments.api_keys) if arguments.api_keys else ()
        child = await self._replica.become(
            arguments, ("coordinator", "--tokenizer", arguments.target, *flags(options), *keys)
        )
        # A restarted process must be found where the first one was.
        child.arguments += ("--grpc-port", child.address.rpartition(":")[2])
        if child.http_url:
            child.arguments += ("--port", child.http_url.rpartition(":")[2])
        self._address, self._url = child.address, child.http_url
        self._reporting = asyncio.create_task(self._report(Asker(self._address, arguments)), name="report")

    async def _report(self, asker: Asker) -> None:
        try:
            while True:
                try:
                    async with asyncio.timeout(ASK_TIMEOUT_S):
                        entry = entry_of(await asker.server_info(), self._address, self._url)
                        await directory.make(self._application).report.remote(self._name, entry)
                except (PacelineError, RayError, TimeoutError, ValueError) as error:
                    log.warning("this coordinator's report was lost: %s", str(error) or type(error).__name__)
                await asyncio.sleep(REPORT_S)
        finally:
            await asker.close()

    async def __call__(self, request: Request) -> Response:
        return directions(request, self._address, self._url)

    async def pid(self) -> int:
        """Of the role's process."""
        return self._replica.child.pid if self._replica.child else 0

    async def check_health(self) -> None:
        self._replica.check()

    async def _leave(self) -> None:
        await cancelled(self._reporting)
        self._reporting = None

    async def __del__(self) -> None:
        await self._leave()
        found = directory.find(self._application)
        if found is not None:
            try:
                if not await found.retire.remote(self._name):
                    ray.kill(found)  # the last one takes it along; whoever reports next makes another
            except RayError:
                log.warning("the directory was not told that this coordinator goes")
        await self._replica.end()
