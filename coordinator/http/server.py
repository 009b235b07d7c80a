"""The HTTP server, in the coordinator's process and event loop."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator

import uvicorn

from coordinator.http.app import create_app
from coordinator.http.face import Face, KeyCheck
from coordinator.metrics_export import MetricsExport
from coordinator.pool_stats import PoolStats
from coordinator.server import Coordinator
from coordinator.service import Service
from paceline.chat_template import ChatTemplate
from paceline.errors import InvalidInput
from paceline.rpc import MAX_STREAMS, check_bind, join
from paceline.tokenizer import resolve

MAX_HEADER_BYTES = 16 * 2**10
KEEP_ALIVE_S = 65  # longer than the usual 60 s of load balancers, so that it is they who close
STOP_S = 2  # for responses under way; their requests have been cancelled by then


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are the process's own business (`paceline.rpc.signals`)."""
        yield


class HttpServer:
    """`start`, then `stop`."""

    def __init__(self, coordinator: Coordinator, keys: KeyCheck | None = None) -> None:
        config = coordinator.config
        metrics, stats = MetricsExport(coordinator), PoolStats()
        coordinator.observers += [metrics, stats]
        template = ChatTemplate.load(resolve(config.tokenizer), config.chat_template)
        self.app = create_app(Face(Service(coordinator), template, metrics, stats, keys))
        self.port = 0
        self._config = config
        self._server: _Server | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def url(self) -> str:
        return f"http://{join(self._config.host, self.port)}"

    async def start(self) -> None:
        """Bind and serve. Raises InvalidInput for a host or a port that will not do."""
        host, port = self._config.host, self._config.port or 0
        check_bind(host, insecure=self._config.insecure)
        listener = _listen(host, port)
        self.port = listener.getsockname()[1]
        self._server = _Server(
            uvicorn.Config(
                self.app,
                http="h11",
                ws="none",
                lifespan="off",
                log_config=None,  # the process has its own
                access_log=False,  # prompts are nobody's business; /metrics counts
                proxy_headers=False,
                server_header=False,
                limit_concurrency=MAX_STREAMS,
                h11_max_incomplete_event_size=MAX_HEADER_BYTES,
                timeout_keep_alive=KEEP_ALIVE_S,
                timeout_graceful_shutdown=STOP_S,
            )
        )
        self._task = asyncio.create_task(self._server.serve([listener]), name="http")
        while not self._server.started:
            await asyncio.sleep(0.005)
            if self._task.done():
                self._task.result()

    async def stop(self) -> None:
        """Take no new calls, and end those that still run after STOP_S."""
        if self._server and self._task:
            self._server.should_exit = True
            await self._task


def _listen(host: str, port: int) -> socket.socket:
    """A bound socket. Raises InvalidInput."""
    try:
        family, kind, protocol, _, where = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise InvalidInput("host", host, f"cannot be bound: {error.strerror or error}") from None
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # what has just ended is no hindrance
        listener.bind(where)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        fix = f"cannot be bound on {host} ({error.strerror}); choose another, 0 for a free one, or off for no HTTP"
        raise InvalidInput("port", port, fix) from None
    return listener
