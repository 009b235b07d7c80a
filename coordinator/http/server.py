"""The HTTP server, in the coordinator's process and event loop."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import socket
import ssl
from collections.abc import Iterator

import uvicorn

from coordinator.http.app import create_app
from coordinator.http.connection import Connection
from coordinator.http.face import Face, KeyCheck
from coordinator.metrics_export import MetricsExport
from coordinator.pool_stats import PoolStats
from coordinator.server import Coordinator
from coordinator.service import Service
from paceline.chat_template import ChatTemplate
from paceline.errors import InvalidInput
from paceline.files import stamp
from paceline.generation_config import sampling_defaults
from paceline.rpc import check_bind, is_loopback, join
from paceline.security import Tls
from paceline.tokenizer import resolve

log = logging.getLogger(__name__)

MAX_HEADER_BYTES = 16 * 2**10
HANDSHAKE_S = 10.0  # as over gRPC; asyncio gives a minute to whoever connects and says nothing
KEEP_ALIVE_S = 65  # longer than the usual 60 s of load balancers, so that it is they who close
# More than may wait and run at a time, so that who comes too many is told so by the queue and not by a bare 503.
MAX_CONNECTIONS = 4096
STOP_S = 2  # for responses under way; their requests have been cancelled by then


class _Server(uvicorn.Server):
    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """uvicorn's own for sockets that are given, but for the bound on handshakes, for which it has no option."""
        config, loop = self.config, asyncio.get_running_loop()
        protocol = functools.partial(
            Connection, config=config, server_state=self.server_state, app_state=self.lifespan.state
        )
        bound_s = HANDSHAKE_S if config.ssl else None
        self.servers = [
            await loop.create_server(
                protocol, sock=each, ssl=config.ssl, ssl_handshake_timeout=bound_s, backlog=config.backlog
            )
            for each in sockets or ()
        ]
        self.started = True

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are the process's own business (`paceline.rpc.signals`)."""
        yield


class HttpServer:
    """`start`, then `stop`.

    Behind TLS it asks for no certificate, which browsers and OpenAI's clients do not have, but for a key. Where TLS is
    on and there are no keys it is for this machine only, whatever the host, unless that is `insecure`.
    """

    def __init__(self, coordinator: Coordinator, keys: KeyCheck | None = None) -> None:
        config = coordinator.config
        metrics, stats = MetricsExport(coordinator), PoolStats()
        coordinator.observers += [metrics, stats]
        folder = resolve(config.tokenizer, config.revision)
        template = ChatTemplate.load(folder, config.chat_template)
        defaults = sampling_defaults(config.generation_config, folder)
        if defaults:
            law = ", ".join(f"{name}={value:g}" for name, value in defaults.items())
            log.warning("HTTP requests that name no other are sampled with %s; --generation-config says why", law)
        self.port = 0
        self._config = config
        is_guarded = config.tls is None or keys is not None or config.insecure
        self.host = config.host if is_guarded or is_loopback(config.host) else "127.0.0.1"
        if self.host != config.host:
            fix = "with TLS and without --api-keys it goes beyond this machine only with --insecure"
            log.warning("HTTP is on %s and not on %s: %s", self.host, config.host, fix)
        face = Face(Service(coordinator), template, metrics, stats, keys, defaults)
        self.app = create_app(face, is_own_host_only=keys is None and is_loopback(self.host))
        self._server: _Server | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def url(self) -> str:
        return f"{'https' if self._config.tls else 'http'}://{join(self.host, self.port)}"

    async def start(self) -> None:
        """Bind and serve. Raises InvalidInput for a host or a port that will not do."""
        tls = self._config.tls
        check_bind(self.host, insecure=self._config.insecure, has_tls=tls is not None)
        listener = _listen(self.host, self._config.port or 0, stall_s=self._config.client_stall_s)
        self.port = listener.getsockname()[1]
        config = uvicorn.Config(
            self.app,
            http=Connection,
            ws="none",
            lifespan="off",
            log_config=None,  # the process has its own
            access_log=False,  # prompts are nobody's business; /metrics counts
            proxy_headers=False,
            server_header=False,
            h11_max_incomplete_event_size=MAX_HEADER_BYTES,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=STOP_S,
            ssl_certfile=tls.cert if tls else None,
            ssl_keyfile=tls.key if tls else None,
        )
        config.load()
        if tls and config.ssl:
            _renew(config.ssl, tls)
        self._server = _Server(config)
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


def _renew(context: ssl.SSLContext, tls: Tls) -> None:
    """At each handshake, have `context` look whether the certificate has changed; from the next one on it is used."""
    seen = stamp(tls.cert, tls.key)

    def look(*_: object) -> None:
        nonlocal seen
        now = stamp(tls.cert, tls.key)
        if now == seen:
            return
        try:
            tls.read().check(tls)  # while certificate and key do not fit, the former ones stay in use
            context.load_cert_chain(tls.cert, tls.key)
        except (InvalidInput, OSError) as error:
            log.error("the former certificate stays in use: %s", error)
        else:
            seen = now

    context.sni_callback = look


def _listen(host: str, port: int, *, stall_s: float) -> socket.socket:
    """A bound socket. Raises InvalidInput."""
    try:
        family, kind, protocol, _, where = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise InvalidInput("host", host, f"cannot be bound: {error.strerror or error}") from None
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # what has just ended is no hindrance
        if hasattr(socket, "TCP_USER_TIMEOUT"):  # else what nobody reads would keep its connection for good
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(1e3 * stall_s))
        listener.bind(where)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        fix = f"cannot be bound on {host} ({error.strerror}); choose another, 0 for a free one, or off for no HTTP"
        raise InvalidInput("port", port, fix) from None
    return listener
