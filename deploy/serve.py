"""`paceline serve`: a whole deployment on this machine, one process a role."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from deploy import options
from deploy.checks import check_pair, check_port
from deploy.http_options import add_http
from deploy.local import STOP_S, Supervisor
from deploy.model_free import add_model_free, check_model_free
from deploy.one_key import keys_file, settle
from deploy.options import Parser
from deploy.role_options import (
    add_clients,
    add_draft_rows,
    add_drafter_dtype,
    add_drain,
    add_engine,
    add_grpc_port,
    add_host,
    add_logging,
    add_pacing,
    add_reflection,
    add_revision,
    add_tensor_parallel,
    add_tls,
    add_trace,
    tls_of,
)
from deploy.speculative_config import add_speculative_config, unfold
from deploy.unoffered import UNOFFERED
from deploy.waiting import waiting
from paceline.api_keys import read_keys
from paceline.client import AsyncClient
from paceline.compatibility import check_options, check_versions
from paceline.rpc import check_bind, signals
from paceline.security import PeerRole

COORDINATOR_START_S = 60.0
SHARED_KV_CACHE_BYTES = 2**30


@dataclass(frozen=True, slots=True)
class Plan:
    """Which processes to start, and with what. Options as the sub-commands of the roles take them."""

    target: str
    drafter: str | None
    num_drafters: int = 1
    host: str = "127.0.0.1"
    grpc_port: int = 0
    port: int | None = None  # of HTTP; None = no HTTP
    coordinator: tuple[str, ...] = ()
    verifier: tuple[str, ...] = ()
    drafters: tuple[str, ...] = ()
    start_timeout_s: float = 600.0
    connect: Callable[[str], AsyncClient] = AsyncClient  # how to ask the coordinator who is there


async def start(supervisor: Supervisor, plan: Plan) -> str:
    """Start all processes of `plan`; the coordinator's gRPC address, once every worker is registered there."""
    http = "off" if plan.port is None else str(plan.port)
    # The drafters were chosen together with the target; where they do not pay, mode auto lets them rest.
    where = ("--host", plan.host, "--grpc-port", str(plan.grpc_port), "--port", http, "--admit-any")
    coordinator = supervisor.start(
        "coordinator", ("coordinator", "--tokenizer", plan.target, *where, *plan.coordinator)
    )
    await supervisor.wait_for(coordinator, within_s=COORDINATOR_START_S)
    port = coordinator.address.rpartition(":")[2]
    # A restarted coordinator must be found where the first one was, by the workers and by clients.
    coordinator.arguments += ("--grpc-port", port)
    if coordinator.http_url:
        coordinator.arguments += ("--port", coordinator.http_url.rpartition(":")[2])
    server = f"{reachable(plan.host)}:{port}"
    supervisor.start("verifier", ("verifier", "--model", plan.target, "--coordinator", server, *plan.verifier))
    for i in range(plan.num_drafters):
        name = "drafter" if plan.num_drafters == 1 else f"drafter-{i + 1}"
        supervisor.start(name, ("drafter", "--model", str(plan.drafter), "--coordinator", server, *plan.drafters))
    client = plan.connect(server)
    await supervisor.wait_for_workers(client, num_drafters=plan.num_drafters, within_s=plan.start_timeout_s)
    return server


def reachable(host: str) -> str:
    """The host by which this machine reaches what listens on `host`."""
    own = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host.strip("[]"), host)
    return f"[{own}]" if ":" in own and not own.startswith("[") else own


def run(argv: Sequence[str]) -> int:
    values = parser().parse(argv, os.environ)
    values.target = _target(values)
    settle(values)
    unfold(values)
    check_options(values)
    for role in PeerRole:
        check_versions(role)
    has_tls = tls_of(values, PeerRole.CLIENT) is not None
    check_bind(values.host, insecure=values.insecure, has_tls=has_tls)
    if values.num_drafters and values.drafter is None:
        raise options.UsageError("--drafter: is required; give it, or --num-drafters 0 to serve without drafts")
    check_model_free("--drafter", values.drafter, values)
    check_pair(
        values.target,
        values.drafter if values.num_drafters else None,
        revision=values.revision,
        drafter_revision=values.drafter_revision,
    )
    check_port("--grpc-port", values.host, values.grpc_port)
    if values.port is not None:
        check_port("--port", values.host, values.port)
    with keys_file(values):
        return asyncio.run(_serve(_plan(values), values))


def _target(values: argparse.Namespace) -> str:
    """The model to serve, by either of its names. Raises UsageError."""
    named, given = values.target, values.model
    if given and named and given != named and not options.source_of("--target"):
        raise options.UsageError(f"--target: {named} and {given} are two models; give one")
    if target := given or named:
        return str(target)
    raise options.UsageError("--target: is required; give it, or a MODEL, or set PACELINE_TARGET")


async def _serve(plan: Plan, values: argparse.Namespace) -> int:
    with signals() as stop:
        stopped = asyncio.create_task(stop.wait())
        async with Supervisor() as supervisor:
            started = asyncio.create_task(start(supervisor, plan))
            with waiting("loading the models"):
                await asyncio.wait((started, stopped), return_when=asyncio.FIRST_COMPLETED)
            if stopped.done():
                started.cancel()
                return 0
            server = started.result()
            drafters = f"{plan.num_drafters} drafter{'' if plan.num_drafters == 1 else 's'}"
            url = None if plan.port is None else _http_url(supervisor)
            told = {
                "ready": "serve",
                "grpc": server,
                "http": url,
                "num_verifiers": 1,
                "num_drafters": plan.num_drafters,
            }
            http = "" if url is None else f"HTTP on {url}, "
            line = f"paceline ready: gRPC on {server}, {http}1 verifier, {drafters}, mode {values.mode}"
            print(json.dumps(told | {"mode": values.mode}) if values.json else line, flush=True)
            await asyncio.wait((stopped, supervisor.failed), return_when=asyncio.FIRST_COMPLETED)
            if stopped.done():  # the coordinator first: running requests need the workers until they end
                await supervisor.drain(supervisor.children[0], values.drain_s + STOP_S)
            if supervisor.failed.done():
                supervisor.failed.result()
            return 0


def _http_url(supervisor: Supervisor) -> str:
    """Where this machine finds the coordinator's HTTP."""
    scheme, _, where = supervisor.children[0].http_url.partition("://")
    host, _, port = where.rpartition(":")
    return f"{scheme}://{reachable(host)}:{port}"


def _plan(values: argparse.Namespace) -> Plan:
    insecure = ("--insecure",) if values.insecure else ()
    tls = _given(values, "tls_cert", "tls_key", "tls_ca")
    clients = _given(values, "api_keys", "max_requests_per_key", "client_stall_s")
    drain = _given(values, "drain_s")
    trust = ("--trust-drafters",) if values.trust_drafters else ()
    common = (*tls, *drain, "--log-level", values.log_level)
    pacing = _given(
        values, "mode", "rule", "length_policy", "window", "max_draft_wait_ms", "max_waiting", "queue_timeout_s"
    )
    http = _given(values, "served_model_name", "chat_template", "generation_config", "allowed_origins")
    http += ("--reflection",) if values.reflection else ()
    trace = _given(values, "trace", "trace_max_size", "keep_traces", "otlp_traces_endpoint")
    engine = _given(
        values,
        *("device", "max_num_seqs", "max_num_batched_tokens", "max_model_len", "block_size"),
    )
    engine += ("--enforce-eager",) if values.enforce_eager else ()
    # The workers may share a device, so none of them may take what is left of it, unless the target is told to.
    cache = ("--kv-cache-memory", str(values.kv_cache_memory or SHARED_KV_CACHE_BYTES))
    target_cache = cache if values.kv_cache_memory else _given(values, "gpu_memory_utilization") or cache
    target = (*_given(values, "dtype", "tensor_parallel_size", "revision"), *target_cache)
    drafter = (
        *("--dtype", values.drafter_dtype or values.dtype),
        *("--tensor-parallel-size", str(values.drafter_tensor_parallel_size)),
        *(("--revision", values.drafter_revision) if values.drafter_revision else ()),
        *_given(values, "row_width", "row_bits", "draft_temperature", "max_ngram", "min_ngram", "suffix_tokens"),
        *(("--share-between-requests",) if values.share_between_requests else ()),
        *cache,
    )
    return Plan(
        target=values.target,
        drafter=values.drafter,
        num_drafters=values.num_drafters,
        host=values.host,
        grpc_port=values.grpc_port,
        port=values.port,
        coordinator=(*pacing, *_given(values, "revision"), *http, *trace, *insecure, *trust, *clients, *common),
        verifier=(*engine, *target, *common),
        drafters=(*engine, *drafter, *common),
        start_timeout_s=values.start_timeout,
        connect=partial(AsyncClient, tls=tls_of(values, PeerRole.CLIENT), api_key=_own_key(values)),
    )


def _own_key(values: argparse.Namespace) -> str | None:
    """A key with which this process may ask its own coordinator."""
    return next(iter(read_keys(values.api_keys).values())) if values.api_keys else None


def _given(values: argparse.Namespace, *names: str) -> tuple[str, ...]:
    """The named values as command-line arguments, without those that are None."""
    pairs = [(name, getattr(values, name)) for name in names]
    return tuple(
        word for name, value in pairs if value is not None for word in (f"--{name.replace('_', '-')}", str(value))
    )


def parser() -> Parser:
    it = Parser(
        "serve",
        """Serve a pair of models on this machine: a coordinator, a verifier and drafters, each its own process.

Prints one line when ready. A worker that dies is restarted, and requests go on without it. Ctrl-C lets
running requests end, within --drain-s, then ends all; a second Ctrl-C ends at once.

  paceline serve models/demo-target --drafter models/demo-drafter
  paceline serve --target big/ --drafter small/ --dtype bfloat16 --length-policy svip:threshold_nats=0.6
  paceline serve --target big/ --drafter prompt-lookup   drafts without a model: for answers that repeat the prompt
  paceline serve --target big/ --num-drafters 0          plain decoding, to compare

To put the roles on several machines, start each by its own sub-command (coordinator, verifier, drafter).""",
        UNOFFERED,
    )
    it.argument("model", metavar="MODEL", required=False, help="the same as --target MODEL")
    _add_models(it)
    _add_network(it)
    add_tls(it)
    add_clients(it)
    add_pacing(it)
    add_trace(it)
    _add_engine(it)
    add_model_free(it.group("drafters without a model"))
    return it


def _add_models(parser: Parser) -> None:
    models = parser.group("models")
    models.add(
        "--target",
        "--model",
        kind=options.text,
        metavar="DIR",
        shown="MODEL",
        help="the model whose output is served: a folder in Hugging Face format, or ORG/NAME [required]",
    )
    models.add(
        "--drafter",
        kind=options.text,
        metavar="DIR",
        help="a smaller model with the same tokenizer, or prompt-lookup or suffix, which need no weights; it changes "
        "the speed, never the output's distribution",
    )
    add_revision(models, what="a target given as ORG/NAME")
    add_revision(models, "--drafter-revision", "a drafter given as ORG/NAME")
    add_speculative_config(models)
    models.add(
        "--num-drafters",
        kind=options.whole(0, 64),
        default=1,
        metavar="N",
        help="drafter processes; 0 = none: plain decoding",
    )


def _add_network(parser: Parser) -> None:
    network = parser.group("network")
    add_host(network)
    add_grpc_port(network)
    add_http(network)
    add_reflection(network)
    add_drain(network)


def _add_engine(parser: Parser) -> None:
    engine = add_engine(parser)
    add_drafter_dtype(engine)
    add_tensor_parallel(engine, "processes (GPUs) over which the target is split; must divide its heads")
    engine.add(
        "--drafter-tensor-parallel-size",
        kind=options.whole(1, 64),
        default=1,
        metavar="N",
        help="the same for each drafter, independent of the target's",
    )
    engine.add(
        "--gpu-memory-utilization",
        kind=options.number(0.01, 1),
        shown="--kv-cache-memory",
        metavar="SHARE",
        help="on a GPU without --kv-cache-memory: share of its memory that the target's weights and KV cache take "
        "together; a drafter on the same GPU, with a cache of 1GiB, must fit into the rest",
    )
    add_draft_rows(engine)
    processes = parser.group("processes")
    processes.add(
        "--start-timeout",
        kind=options.number(1, 86400),
        default=600,
        metavar="S",
        help="seconds to wait for the workers to load their models",
    )
    add_logging(parser)
