"""How this house does gRPC: options, servers, signals, and errors to status codes and back.

Every channel and every server is made with the options below, and every handler answers errors through
`answering`: what the caller can meet becomes a status with the error's own text, anything else is a bug, whose
traceback goes to the log and never over the wire.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import math
import os
import re
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from typing import Any

import grpc
from grpc import StatusCode
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health
from grpc_reflection.v1alpha import reflection

from paceline.errors import (
    Forbidden,
    InvalidInput,
    Overloaded,
    PacelineError,
    PeerFault,
    TimedOut,
    Unauthenticated,
    Unavailable,
    Unhelpful,
    UnknownRequest,
    Unsupported,
)
from paceline.security import PeerRole, Tls
from paceline.wire import coordinator_pb2_grpc

log = logging.getLogger(__name__)

# A prompt of 128 Ki tokens takes 0.5 MiB, a draft of 64 tokens with rows of 1,024 entries 0.4 MiB: eight times the
# larger. A peer can make us hold this much a message, so not more.
MAX_MESSAGE_BYTES = 4 * 2**20
MAX_METADATA_BYTES = 16 * 2**10
MAX_STREAMS = 1024  # a connection; a client has one a request, a coordinator one a worker
MAX_CONNECTIONS = 4096  # a server; clients have one each, so it is well over what a coordinator's queue holds
MAX_DETAILS = 1000  # characters of a status message, which travels as metadata
REGISTER_TIMEOUT_S = 5.0
FIRST_BACKOFF_S, MAX_BACKOFF_S = 0.05, 1.0
LONGEST_REFUSED_S = 60.0  # a worker that is of no use asks again so often at least
RETRY_AFTER = "retry-after-s"  # trailing metadata of an error after which a later call may succeed, in seconds
PUSHBACK = "grpc-retry-pushback-ms"  # the same by the name that gRPC's own retries heed, in milliseconds

_BOTH = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_metadata_size", MAX_METADATA_BYTES),
    ("grpc.keepalive_time_ms", 10_000),  # a peer that is gone without a word is noticed within 15 s
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
)
CHANNEL_OPTIONS: Sequence[tuple[str, int]] = (
    *_BOTH,
    # gRPC's own backoff starts at 1 s and grows to 120 s; workers and coordinators restart faster than that.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.min_reconnect_backoff_ms", 5_000),  # despite its name the bound on one attempt to connect
    ("grpc.enable_http_proxy", 0),  # http_proxy is set on many machines and knows nothing of the pools
)
SERVER_OPTIONS: Sequence[tuple[str, int]] = (
    *_BOTH,
    ("grpc.max_concurrent_streams", MAX_STREAMS),
    ("grpc.max_allowed_incoming_connections", MAX_CONNECTIONS),
    ("grpc.server_handshake_timeout_ms", 10_000),  # whoever connects and says nothing is gone after it
    ("grpc.max_connection_idle_ms", 600_000),  # likewise who asks nothing; a client connects again by itself
    # With the defaults an idle stream with the keepalive above dies after 40 s: "Too many pings".
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.so_reuseport", 0),  # else a second server on a port takes half of its connections in silence
)

_STATUS: Sequence[tuple[type[PacelineError], StatusCode]] = (
    (Unsupported, StatusCode.FAILED_PRECONDITION),
    (InvalidInput, StatusCode.INVALID_ARGUMENT),
    (UnknownRequest, StatusCode.NOT_FOUND),
    (Unauthenticated, StatusCode.UNAUTHENTICATED),
    (Forbidden, StatusCode.PERMISSION_DENIED),
    (Overloaded, StatusCode.RESOURCE_EXHAUSTED),
    (Unavailable, StatusCode.UNAVAILABLE),
    (PeerFault, StatusCode.INTERNAL),  # between our own processes; the caller has done nothing wrong
)
_ERROR = {status: kind for kind, status in _STATUS} | {
    StatusCode.DEADLINE_EXCEEDED: TimedOut,
    StatusCode.CANCELLED: TimedOut,
}


def status_of(error: BaseException) -> StatusCode:
    """The gRPC status of an error; INTERNAL for what is not ours."""
    return next((status for kind, status in _STATUS if isinstance(error, kind)), StatusCode.INTERNAL)


def error_of(call: Any) -> PacelineError:
    """The error that a failed call (a `grpc.RpcError`) stands for, with the server's own text."""
    status: StatusCode = call.code()
    text = call.details() or f"the server answered {status.name} without a reason"
    metadata = call.trailing_metadata() or ()
    kind = _ERROR.get(status, PeerFault)
    if kind is Unsupported and any(key == RETRY_AFTER for key, _ in metadata):
        kind = Unhelpful
    # The text is complete already, so the constructors, which compose it from its parts, are passed by.
    error: PacelineError = kind.__new__(kind, text)
    if isinstance(error, InvalidInput):
        error.field = text.partition("=")[0] if "=" in text else "request"
    if isinstance(error, Overloaded | Unhelpful):
        error.retry_after_s = _retry_after_s(metadata)
    return error


def _retry_after_s(metadata: Any) -> float:
    value = next((value for key, value in metadata if key == RETRY_AFTER), "1")
    return float(value) if re.fullmatch(r"\d{1,6}(\.\d{1,6})?", str(value)) else 1.0


@contextlib.asynccontextmanager
async def answering(context: Any) -> AsyncIterator[None]:
    """Around a handler's body: turns an error into the call's status."""
    try:
        yield
    except grpc.aio.AbortError:
        raise
    except PacelineError as error:
        metadata: tuple[tuple[str, str], ...] = ()
        if isinstance(error, Overloaded | Unhelpful):
            after_s = error.retry_after_s
            metadata = ((RETRY_AFTER, f"{after_s:.3f}"), (PUSHBACK, str(math.ceil(1e3 * after_s))))
        await context.abort(status_of(error), str(error)[:MAX_DETAILS], trailing_metadata=metadata)
    except Exception:
        log.exception("a handler failed")
        await context.abort(StatusCode.INTERNAL, "internal error; the server's log says more")


def connect(address: str, tls: Tls | None = None, *, expects: PeerRole = PeerRole.COORDINATOR) -> Any:
    """A `grpc.aio` channel to HOST:PORT. It connects by itself, now and after every loss.

    With `tls` the other side must show a certificate of the role that this side `expects` there.
    """
    if tls is None:
        return grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS)
    return grpc.aio.secure_channel(address, tls.channel_credentials(), options=_expecting(expects))


def connect_blocking(address: str, tls: Tls | None = None) -> Any:
    """As `connect`, to a coordinator, for programs without an event loop."""
    if tls is None:
        return grpc.insecure_channel(address, options=CHANNEL_OPTIONS)
    return grpc.secure_channel(address, tls.channel_credentials(), options=_expecting(PeerRole.COORDINATOR))


def _expecting(role: PeerRole) -> Sequence[tuple[str, Any]]:
    # The certificate is to carry the role's name in place of the address's: who it is matters, not where it runs.
    return (*CHANNEL_OPTIONS, ("grpc.ssl_target_name_override", role.dns_name))


async def keep_registered(
    coordinator: str, worker_info: Callable[[], Any], tls: Tls | None = None, *, asks_again: bool = True
) -> PacelineError:
    """Register a worker for as long as it runs; returns the reason if it is refused.

    `worker_info()` is the protobuf `WorkerInfo` as it is now; it is asked for anew with each call. While it is None
    nothing is said, and the lease runs out.

    A coordinator that is not there yet, or no more, is waited for. One that has no use for the worker now is asked
    again, seldom, unless `asks_again` is false.
    """
    backoff_s, is_known = FIRST_BACKOFF_S, False
    refused_s = 0.0  # how long it was waited after the last refusal
    while True:
        try:
            async with connect(coordinator, tls) as channel:  # anew after each failure, with the files as they are now
                register = coordinator_pb2_grpc.CoordinatorStub(channel).Register
                while True:
                    while (info := worker_info()) is None:
                        await asyncio.sleep(MAX_BACKOFF_S)
                    reply = await register(info, timeout=REGISTER_TIMEOUT_S)
                    log.log(logging.DEBUG if is_known else logging.INFO, "registered with %s", coordinator)
                    backoff_s, is_known, refused_s = FIRST_BACKOFF_S, True, 0.0
                    await asyncio.sleep(_pause_s(reply.lease_s))
        except (grpc.aio.AioRpcError, Unavailable) as error:
            reason = error if isinstance(error, Unavailable) else error_of(error)
            if isinstance(reason, Unhelpful) and asks_again:
                refused_s = min(max(reason.retry_after_s, 2 * refused_s, MAX_BACKOFF_S), LONGEST_REFUSED_S)
                log.warning(
                    "coordinator %s has no use for it now, asking again in %g s: %s", coordinator, refused_s, reason
                )
                is_known = False
                await asyncio.sleep(refused_s)
                continue
            if isinstance(reason, InvalidInput | Unauthenticated | Forbidden):
                return reason
            if is_known or backoff_s == FIRST_BACKOFF_S:
                log.warning("coordinator %s does not answer, trying on: %s", coordinator, reason)
            is_known = False
        await asyncio.sleep(backoff_s)
        backoff_s = min(2 * backoff_s, MAX_BACKOFF_S)


async def register_now(coordinator: str, worker_info: Any, tls: Tls | None = None) -> None:
    """Tell a coordinator of a change that cannot wait for the next turn. One that does not answer is left alone."""
    with contextlib.suppress(grpc.aio.AioRpcError, Unavailable):
        async with connect(coordinator, tls) as channel:
            await coordinator_pb2_grpc.CoordinatorStub(channel).Register(worker_info, timeout=REGISTER_TIMEOUT_S)


def _pause_s(lease_s: float) -> float:
    """A third of the lease: two calls may be lost before it ends. Bounded, since a coordinator may be wrong."""
    return min(max(lease_s, 0.15), 600) / 3 if math.isfinite(lease_s) else MAX_BACKOFF_S


def join(host: str, port: int) -> str:
    """HOST:PORT, with the brackets that an IPv6 host needs."""
    return f"[{host}]:{port}" if ":" in host and not host.startswith("[") else f"{host}:{port}"


def is_loopback(host: str) -> bool:
    """Whether `host` is this machine only, as an address or by the one name that says so everywhere."""
    try:
        return host == "localhost" or ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def with_port(address: str, port: int) -> str:
    """`address` if it names a port already (HOST:PORT, [IPV6]:PORT), else HOST:PORT with `port`."""
    return address if re.fullmatch(r"(\[[^\]]+\]|[^:\[\]]+):\d{1,5}", address) else join(address, port)


def check_bind(host: str, *, insecure: bool = False, has_tls: bool = False) -> None:
    """Raises `InvalidInput` unless `host` is this machine only, or TLS or `insecure` make any other one right."""
    if not (is_loopback(host) or insecure or has_tls):
        fix = (
            "others could read and write this traffic; use 127.0.0.1, or give --tls-cert, --tls-key and --tls-ca "
            "(`paceline certs` makes them), or --insecure on a network that you trust"
        )
        raise InvalidInput("host", host, fix)


class Server:
    """A gRPC server with health and, if asked for, reflection. `interceptors` see every call before its handler."""

    def __init__(
        self,
        services: Sequence[tuple[str, Callable[[Any], None]]],
        *,
        interceptors: Sequence[Any] = (),
        has_reflection: bool = True,
        is_ready: bool = True,
        max_connection_age_s: float | None = None,
    ) -> None:
        self.is_ready = is_ready  # to serve from the start
        options = list(SERVER_OPTIONS)
        if max_connection_age_s:  # gRPC's own grace for what runs by then has no end
            options.append(("grpc.max_connection_age_ms", int(1e3 * max_connection_age_s)))
        self.grpc = grpc.aio.server(options=options, interceptors=interceptors)
        self.health = health.HealthServicer()
        self.services = [name for name, _ in services]
        for _, add in services:
            add(self.grpc)
        health_pb2_grpc.add_HealthServicer_to_server(self.health, self.grpc)
        if has_reflection:
            names = (*self.services, health_pb2.DESCRIPTOR.services_by_name["Health"].full_name)
            reflection.enable_server_reflection((*names, reflection.SERVICE_NAME), self.grpc)

    async def start(self, host: str, port: int, tls: Tls | None = None) -> int:
        """The bound port. Raises `InvalidInput` if it is taken."""
        address = join(host, port)
        try:
            bound: int = (
                self.grpc.add_secure_port(address, tls.server_credentials())
                if tls
                else self.grpc.add_insecure_port(address)
            )
        except RuntimeError:
            bound = 0
        if not bound:
            await self.grpc.stop(None)
            fix = f"cannot be bound on {host}; another process may have it: choose another, or 0 for a free one"
            raise InvalidInput("port", port, fix)
        await self.grpc.start()
        await self.say_serving(self.is_ready)
        return bound

    async def say_serving(self, is_serving: bool) -> None:
        """Say whether the services are served. Of the process, the empty name, nothing is said but at its end."""
        states = health_pb2.HealthCheckResponse
        for name in self.services:
            await self.health.set(name, states.SERVING if is_serving else states.NOT_SERVING)

    async def drain(self) -> None:
        """Say NOT_SERVING, so that no new clients are sent here; those that come are served as before."""
        await self.health.enter_graceful_shutdown()

    async def stop(self, grace_s: float = 0) -> None:
        """Say NOT_SERVING, take no new calls, and end those that still run after `grace_s`."""
        await self.drain()
        await self.grpc.stop(grace_s)


async def start_server(
    services: Sequence[tuple[str, Callable[[Any], None]]],
    host: str,
    port: int,
    *,
    insecure: bool = False,
    tls: Tls | None = None,
    door: Any = None,
    has_reflection: bool = False,
    is_ready: bool = True,
    max_connection_age_s: float | None = None,
) -> tuple[Server, int]:
    """A running server and its port (a free one for 0).

    `services` are pairs of a full name and what adds the service to a `grpc.aio.Server`. `door` is a `paceline.door`;
    behind one that is locked there is reflection only if it `has_reflection`. Without `is_ready` its health says that
    it serves once `say_serving` does. After `max_connection_age_s` new calls of a client need a new handshake; those
    that run are not cut. Raises `InvalidInput` for a host that is not safe to bind and for a port that is taken.
    """
    check_bind(host, insecure=insecure, has_tls=tls is not None)
    is_locked = door is not None and door.is_locked
    server = Server(
        services,
        interceptors=(door,) if door else (),
        has_reflection=has_reflection or not is_locked,
        is_ready=is_ready,
        max_connection_age_s=max_connection_age_s,
    )
    return server, await server.start(host, port, tls)


@contextlib.contextmanager
def signals() -> Iterator[asyncio.Event]:
    """An `asyncio.Event` that SIGTERM or SIGINT sets; a second signal ends the process at once."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def on_signal(number: int) -> None:
        if stop.is_set():
            os._exit(128 + number)
        stop.set()

    numbers = (signal.SIGTERM, signal.SIGINT)
    for number in numbers:
        loop.add_signal_handler(number, on_signal, number)
    try:
        yield stop
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)


async def run_until_signalled(
    shutdown: Callable[[], Awaitable[object]],
    *,
    within_s: float = 10,
    ended: asyncio.Future[int] | None = None,
) -> int:
    """The exit code: 0 after a signal, else the result of `ended` if that came first.

    Either way `shutdown` runs, for `within_s` at most: 1 if it took longer. A second signal ends the process at once.
    """
    with signals() as stop:
        ended = ended if ended is not None else asyncio.get_running_loop().create_future()
        stopped = asyncio.ensure_future(stop.wait())
        await asyncio.wait((stopped, ended), return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        code = ended.result() if ended.done() else 0
        try:
            await asyncio.wait_for(shutdown(), within_s)
        except TimeoutError:
            log.error("the shutdown took longer than %g s and was cut short", within_s)
            return code or 1
        return code
