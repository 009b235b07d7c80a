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
from starlette.responses import JSONResponse, RedirectResponse, Response

from deploy.ray import directory
from deploy.ray.arguments import Arguments, flags
from deploy.ray.directory import REPORT_S, entry_of
from deploy.ray.replica import Replica, cancelled
from paceline.api_keys import read_keys
from paceline.client import AsyncClient
from paceline.errors import PacelineError
from paceline.security import PeerRole, Tls

log = logging.getLogger("ray.serve")

ASK_TIMEOUT_S = 2.0


class CoordinatorReplica:
    """See the top of the file."""

    def __init__(self, *_pools: Any) -> None:
        """`_pools`: handles that make the pools part of the application; nothing is sent through them."""
        context = serve.get_replica_context()
        # Whatever Serve's commands call the application, everybody finds its directory by that name.
        self._application, self._name = context.app_name, context.replica_id.unique_id
        self._replica = Replica()
        self._reporting: asyncio.Task[None] | None = None
        self._client: AsyncClient | None = None

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
        tls = Tls.of(PeerRole.CLIENT, arguments.tls_cert, arguments.tls_key, arguments.tls_ca)
        key = next(iter(read_keys(arguments.api_keys).values())) if arguments.api_keys else None
        self._client = AsyncClient(self._address, tls=tls, api_key=key)
        self._reporting = asyncio.create_task(self._report(self._client), name="report")

    async def _report(self, client: AsyncClient) -> None:
        while True:
            try:
                async with asyncio.timeout(ASK_TIMEOUT_S):
                    entry = entry_of(await client.server_info(), self._address, self._url)
                    await directory.make(self._application).report.remote(self._name, entry)
            except (PacelineError, RayError, TimeoutError, ValueError) as error:
                log.warning("this coordinator's report was lost: %s", error)
            await asyncio.sleep(REPORT_S)

    async def __call__(self, request: Request) -> Response:
        if request.url.path in ("", "/"):
            return JSONResponse({"grpc": self._address, "http": self._url})
        query = f"?{request.url.query}" if request.url.query else ""
        return RedirectResponse(f"{self._url}{request.url.path}{query}", status_code=307)

    async def pid(self) -> int:
        """Of the role's process."""
        return self._replica.child.pid if self._replica.child else 0

    async def check_health(self) -> None:
        self._replica.check()

    async def _leave(self) -> None:
        await cancelled(self._reporting)
        self._reporting = None
        if self._client:
            await self._client.close()

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
