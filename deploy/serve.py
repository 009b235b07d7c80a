"""`paceline serve`: a whole deployment on this machine, one process a role."""

from __future__ import annotations

import argparse
import asyncio
import os
from collections.abc import Sequence
from dataclasses import dataclass

from deploy import options
from deploy.checks import check_pair, check_port
from deploy.local import Supervisor
from deploy.options import Parser
from deploy.role_options import add_engine, add_grpc_port, add_host, add_logging, add_pacing, add_row_width, add_trace
from paceline.rpc import check_bind, signals

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
    coordinator: tuple[str, ...] = ()
    verifier: tuple[str, ...] = ()
    drafters: tuple[str, ...] = ()
    start_timeout_s: float = 600.0


async def start(supervisor: Supervisor, plan: Plan) -> str:
    """Start all processes of `plan`; the coordinator's address, once every worker is registered there."""
    where = ("--host", plan.host, "--grpc-port", str(plan.grpc_port))
    coordinator = supervisor.start(
        "coordinator", ("coordinator", "--tokenizer", plan.target, *where, *plan.coordinator)
    )
    await supervisor.wait_for(coordinator, within_s=COORDINATOR_START_S)
    port = coordinator.address.rpartition(":")[2]
    # A restarted coordinator must be found where the first one was, by the workers and by clients.
    coordinator.arguments += ("--grpc-port", port)
    server = f"{reachable(plan.host)}:{port}"
    supervisor.start("verifier", ("verifier", "--model", plan.target, "--coordinator", server, *plan.verifier))
    for i in range(plan.num_drafters):
        name = "drafter" if plan.num_drafters == 1 else f"drafter-{i + 1}"
        supervisor.start(name, ("drafter", "--model", str(plan.drafter), "--coordinator", server, *plan.drafters))
    await supervisor.wait_for_workers(server, num_drafters=plan.num_drafters, within_s=plan.start_timeout_s)
    return server


def reachable(host: str) -> str:
    """The host by which this machine reaches what listens on `host`."""
    own = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host.strip("[]"), host)
    return f"[{own}]" if ":" in own and not own.startswith("[") else own


def run(argv: Sequence[str]) -> int:
    values = _parser().parse(argv, os.environ)
    check_bind(values.host, insecure=values.insecure)
    if values.num_drafters and values.drafter is None:
        raise options.UsageError("--drafter: is required; give it, or --num-drafters 0 to serve without drafts")
    check_pair(values.target, values.drafter if values.num_drafters else None)
    check_port(values.host, values.grpc_port)
    return asyncio.run(_serve(_plan(values), values))


async def _serve(plan: Plan, values: argparse.Namespace) -> int:
    with signals() as stop:
        stopped = asyncio.create_task(stop.wait())
        async with Supervisor() as supervisor:
            started = asyncio.create_task(start(supervisor, plan))
            await asyncio.wait((started, stopped), return_when=asyncio.FIRST_COMPLETED)
            if stopped.done():
                started.cancel()
                return 0
            server = started.result()
            drafters = f"{plan.num_drafters} drafter{'' if plan.num_drafters == 1 else 's'}"
            print(f"paceline ready: gRPC on {server}, 1 verifier, {drafters}, mode {values.mode}", flush=True)
            await asyncio.wait((stopped, supervisor.failed), return_when=asyncio.FIRST_COMPLETED)
            if supervisor.failed.done():
                supervisor.failed.result()
            return 0


def _plan(values: argparse.Namespace) -> Plan:
    insecure = ("--insecure",) if values.insecure else ()
    log_level = ("--log-level", values.log_level)
    pacing = _given(values, "mode", "rule", "length_policy", "window", "max_draft_wait_ms", "max_waiting")
    trace = _given(values, "trace", "trace_max_size")
    engine = _given(
        values,
        *("device", "max_num_seqs", "max_num_batched_tokens", "max_model_len", "block_size"),
    )
    # The workers may share a device, so none of them may take what is left of it.
    engine += ("--kv-cache-memory", str(values.kv_cache_memory or SHARED_KV_CACHE_BYTES))
    dtype = ("--dtype", values.dtype)
    drafter_dtype = ("--dtype", values.drafter_dtype or values.dtype)
    size = ("--tensor-parallel-size", str(values.tensor_parallel_size))
    drafter_size = ("--tensor-parallel-size", str(values.drafter_tensor_parallel_size))
    return Plan(
        target=values.target,
        drafter=values.drafter,
        num_drafters=values.num_drafters,
        host=values.host,
        grpc_port=values.grpc_port,
        coordinator=(*pacing, *trace, *insecure, *log_level),
        verifier=(*engine, *dtype, *size, *log_level),
        drafters=(*engine, *drafter_dtype, *drafter_size, "--row-width", str(values.row_width), *log_level),
        start_timeout_s=values.start_timeout,
    )


def _given(values: argparse.Namespace, *names: str) -> tuple[str, ...]:
    """The named values as command-line arguments, without those that are None."""
    pairs = [(name, getattr(values, name)) for name in names]
    return tuple(
        word for name, value in pairs if value is not None for word in (f"--{name.replace('_', '-')}", str(value))
    )


def _parser() -> Parser:
    parser = Parser(
        "serve",
        """Serve a pair of models on this machine: a coordinator, a verifier and drafters, each its own process.

Prints one line when ready. A worker that dies is restarted, and requests go on without it. Ctrl-C ends all.

  paceline serve --target models/demo-target --drafter models/demo-drafter
  paceline serve --target big/ --drafter small/ --dtype bfloat16 --length-policy svip:threshold_nats=0.6
  paceline serve --target big/ --num-drafters 0        plain decoding, to compare

To put the roles on several machines, start each by its own sub-command (coordinator, verifier, drafter).""",
    )
    _add_models(parser)
    _add_network(parser)
    add_pacing(parser)
    add_trace(parser)
    _add_engine(parser)
    return parser


def _add_models(parser: Parser) -> None:
    models = parser.group("models")
    models.add(
        "--target",
        kind=options.text,
        required=True,
        metavar="DIR",
        help="the model whose output is served: a folder in Hugging Face format, or ORG/NAME",
    )
    models.add(
        "--drafter",
        kind=options.text,
        metavar="DIR",
        help="a smaller model with the same tokenizer; it changes the speed, never the output's distribution",
    )
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
    network.add(
        "--port",
        kind=options.whole(0, 65535),
        default=8000,
        metavar="PORT",
        help="HTTP port; accepted, but HTTP is not served yet: use gRPC",
    )


def _add_engine(parser: Parser) -> None:
    engine = add_engine(parser)
    engine.add(
        "--drafter-dtype",
        kind=options.choice("float32", "bfloat16"),
        shown="--dtype",
        metavar="TYPE",
        help="the drafter's, if it is to differ",
    )
    engine.add(
        "--tensor-parallel-size",
        kind=options.whole(1, 64),
        default=1,
        metavar="N",
        help="processes (GPUs) over which the target is split; must divide its heads",
    )
    engine.add(
        "--drafter-tensor-parallel-size",
        kind=options.whole(1, 64),
        default=1,
        metavar="N",
        help="the same for each drafter, independent of the target's",
    )
    add_row_width(engine)
    processes = parser.group("processes")
    processes.add(
        "--start-timeout",
        kind=options.number(1, 86400),
        default=600,
        metavar="S",
        help="seconds to wait for the workers to load their models",
    )
    add_logging(parser)
