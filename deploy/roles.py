"""`paceline coordinator | drafter | verifier`: one role in this process, until SIGTERM or Ctrl-C.

Only here are engines put together with their servers. torch is imported inside the worker commands, after the
environment has been set: OpenMP reads it once, when it is loaded.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from deploy import model_free, options
from deploy.admission_options import add_admission, add_exit_if_refused
from deploy.http_options import add_http
from deploy.one_key import keys_file, settle
from deploy.options import Parser
from deploy.restart import restart
from deploy.role_options import (
    add_clients,
    add_draft_rows,
    add_drain,
    add_grpc_port,
    add_host,
    add_logging,
    add_pacing,
    add_reflection,
    add_revision,
    add_tls,
    add_trace,
    add_worker,
    tls_of,
)
from deploy.waiting import waiting
from paceline.compatibility import check_options, check_versions
from paceline.errors import InvalidInput
from paceline.rpc import check_bind
from paceline.security import PeerRole
from paceline.types import Mode, Role, Rule, WorkerInfo

# One OpenMP thread a worker, and none that spins while it waits: two workers spinning on each other's cores are
# thirty times slower.
THREADS = {"OMP_NUM_THREADS": "1", "GOMP_SPINCOUNT": "0", "OMP_WAIT_POLICY": "PASSIVE"}

# Set by `deploy.local`: this process ends when its standard input does, that is, when its supervisor is gone.
SUPERVISED = "PACELINE_SUPERVISED"
SHUTDOWN_S = 5.0


def run_coordinator(argv: Sequence[str]) -> int:
    values = parser_coordinator().parse(argv, os.environ)
    _end_on_sigterm()
    settle(values)
    _begin(values, PeerRole.COORDINATOR)
    from coordinator.api import serve_coordinator

    with keys_file(values):
        return asyncio.run(serve_coordinator(_coordinator_config(values), as_json=_wants_json(values)))


def parser_coordinator() -> Parser:
    parser = Parser(
        "coordinator",
        """The door for clients and for workers. It needs the target's tokenizer, no GPU and no torch.

Workers announce themselves here, so start it first (they wait for it if you do not):

  paceline certs certs/
  export PACELINE_TLS_CERT=certs/{role}.crt PACELINE_TLS_KEY=certs/{role}.key PACELINE_TLS_CA=certs/ca.crt
  paceline coordinator --tokenizer models/big --host 10.0.0.1
  paceline verifier    --model models/big   --coordinator 10.0.0.1:50051 --host 10.0.0.1
  paceline drafter     --model models/small --coordinator 10.0.0.1:50051 --host 10.0.0.2   (elsewhere)

On SIGTERM it takes no new requests and waits for those that run.""",
    )
    model = parser.group("model")
    model.add(
        "--tokenizer",
        "--target",
        kind=options.text,
        metavar="DIR",
        required=True,
        help="folder (or Hugging Face name) of the target; only its tokenizer and configuration are read",
    )
    add_revision(model)
    network = parser.group("network")
    add_host(network)
    add_grpc_port(network)
    add_http(network)
    add_reflection(network)
    add_drain(network)
    add_admission(network)
    add_tls(parser)
    add_clients(parser)
    add_pacing(parser)
    add_trace(parser)
    add_logging(parser)
    return parser


def _coordinator_config(values: argparse.Namespace) -> Any:
    from coordinator.config import CoordinatorConfig
    from coordinator.core.limits import Limits

    return CoordinatorConfig(
        tokenizer=values.tokenizer,
        revision=values.revision,
        host=values.host,
        grpc_port=values.grpc_port,
        port=values.port,
        served_model_name=values.served_model_name,
        chat_template=values.chat_template,
        generation_config=values.generation_config,
        allowed_origins=tuple(values.allowed_origins.split(",")) if values.allowed_origins else (),
        insecure=values.insecure,
        tls=tls_of(values, PeerRole.COORDINATOR),
        api_keys=values.api_keys,
        reflection=values.reflection,
        max_workers=values.max_workers,
        lease_s=values.lease_s,
        admit_any=values.admit_any,
        max_requests_per_key=values.max_requests_per_key,
        client_stall_s=values.client_stall_s,
        drain_s=values.drain_s,
        mode=None if values.mode == "auto" else Mode(values.mode),
        rule=None if values.rule == "auto" else Rule(values.rule),
        trust_drafters=values.trust_drafters,
        policy=values.length_policy,
        window=values.window,
        limits=Limits(
            max_waiting=values.max_waiting,
            queue_timeout_s=values.queue_timeout_s,
            max_draft_wait_s=values.max_draft_wait_ms / 1e3,
        ),
        trace=values.trace,
        max_trace_bytes=values.trace_max_size,
        num_traces=values.keep_traces,
        otlp_traces_endpoint=values.otlp_traces_endpoint,
    )


def parser_verifier() -> Parser:
    parser = Parser(
        "verifier",
        """Holds the target model, decodes with it, and judges drafts by the request's rule.

  paceline verifier --model models/big --coordinator 127.0.0.1:50051 --dtype bfloat16""",
    )
    add_worker(parser, "the target model", tensor_parallel="the target")
    return parser


def run_verifier(argv: Sequence[str]) -> int:
    values = parser_verifier().parse(argv, os.environ)
    _end_on_sigterm()
    runner, info = _load(values, Role.VERIFIER)
    from paceline.engine.cost import measure
    from verifier.batcher import Budget
    from verifier.engine import VerifierEngine
    from verifier.server import VERIFIER

    budget = Budget(max_num_batched_tokens=values.max_num_batched_tokens, max_num_seqs=values.max_num_seqs)
    return _serve(VerifierEngine(runner, info, budget, cost=measure(runner)), VERIFIER, runner, values)


def _end_on_sigterm() -> None:
    """Until it serves: a process that loads has nothing to hand over, and was not killed but told to go.

    A container's first process would not even notice, since without a handler the signal is nothing to it.
    """
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))


def parser_drafter() -> Parser:
    parser = Parser(
        "drafter",
        """Drafts ahead of the target: with a draft model, whose tokenizer must be the target's, or without any.

A drafter can run on another machine than the verifier, and may come and go at any time: without one the verifier
decodes by itself.

  paceline drafter --model models/small --coordinator 10.0.0.1:50051 --host 10.0.0.2

Two drafters need no weights, no GPU and no second to start. They propose what followed the last time that the text
went like this, which pays where an answer repeats its prompt or itself: summaries, edits, quotations, code.

  paceline drafter --model prompt-lookup --coordinator 127.0.0.1:50051
  paceline drafter --model suffix --share-between-requests --coordinator 127.0.0.1:50051""",
    )
    group = add_worker(parser, "the draft model, or prompt-lookup or suffix", tensor_parallel="the drafter")
    add_draft_rows(group)
    model_free.add_model_free(parser.group("drafters without a model"))
    add_exit_if_refused(parser.group("admission"))
    return parser


def run_drafter(argv: Sequence[str]) -> int:
    values = parser_drafter().parse(argv, os.environ)
    _end_on_sigterm()
    model_free.check_model_free("--model", values.model, values)
    from drafter.server import DRAFTER

    if model_free.is_model_free(values.model):
        _prepare(values, Role.DRAFTER)
        return _serve(model_free.make_engine(values), DRAFTER, None, values)
    model_free.check_model("--model", values.model)
    runner, info = _load(values, Role.DRAFTER)
    from drafter.engine import DrafterEngine
    from paceline import acceptance_head
    from paceline.engine.cost import measure

    known = runner.info
    head = acceptance_head.beside(Path(known.folder), drafter_hash=known.model_hash, device=known.device)
    engine = DrafterEngine(
        runner,
        info,
        row_width=values.row_width,
        row_bits=values.row_bits,
        draft_temperature=values.draft_temperature,
        max_num_batched_tokens=values.max_num_batched_tokens,
        cost=measure(runner),
        head=head,
    )
    return _serve(engine, DRAFTER, runner, values)


def _prepare(values: argparse.Namespace, role: Role) -> None:
    """What comes before any load: the environment, and whatever can be told wrong without a model."""
    os.environ.update(THREADS)
    _begin(values, PeerRole(role))
    tls = tls_of(values, PeerRole(role))
    check_bind(values.host, insecure=values.insecure, has_tls=tls is not None)
    if values.advertise is None and values.host.strip("[]") in ("0.0.0.0", "::"):
        raise InvalidInput("--advertise", "", "is needed with this --host: the name by which coordinators reach you")


def _load(values: argparse.Namespace, role: Role) -> tuple[Any, WorkerInfo]:
    _prepare(values, role)
    from deploy.checks import is_tested_family

    if not is_tested_family("--model", values.model):
        logging.getLogger(__name__).warning(
            "no test runs models like %s; docs/compatibility.md has those", values.model
        )
    from paceline.engine.dtype import resolve  # torch; several seconds
    from paceline.engine.runner import Runner

    with waiting(f"loading {values.model}"):
        runner = Runner.load(
            values.model,
            dtype=resolve(values.dtype, values.device),
            device=values.device,
            kv_cache_bytes=values.kv_cache_memory,
            gpu_memory_utilization=values.gpu_memory_utilization,
            block_size=values.block_size,
            revision=values.revision,
            max_model_len=values.max_model_len,
            tensor_parallel_size=values.tensor_parallel_size,
            ranks_socket=values.ranks_socket,
            enforce_eager=values.enforce_eager,
        )
    if runner.room() < runner.info.max_model_len:
        text = (
            "the KV cache holds %d tokens, the model's context %d: longer requests are refused; see --kv-cache-memory"
        )
        logging.getLogger(__name__).warning(text, runner.room(), runner.info.max_model_len)
    return runner, WorkerInfo(
        role=role,
        address="",  # filled in once the port is known
        incarnation=0,
        model=values.model,
        model_hash=runner.info.model_hash,
        tokenizer_hash=runner.info.tokenizer_hash,
        vocab_size=runner.info.vocab_size,
        max_model_len=runner.info.max_model_len,
        max_num_seqs=values.max_num_seqs,
        eos_token_ids=runner.info.eos_token_ids,
        dtype=runner.info.dtype,
        device=runner.info.device,
    )


def _serve(engine: Any, kind: Any, runner: Any, values: argparse.Namespace) -> int:
    from paceline.worker import serve_worker

    started_s = time.monotonic()
    try:
        code = asyncio.run(
            serve_worker(
                engine,
                kind,
                host=values.host,
                port=values.port,
                coordinators=values.coordinator,
                coordinators_file=values.coordinators_file,
                insecure=values.insecure,
                advertise=values.advertise,
                tls=tls_of(values, PeerRole(engine.info.role)),
                has_reflection=values.reflection,
                exits_if_refused=engine.info.role is Role.DRAFTER and values.exit_if_refused,
                drain_s=values.drain_s,
                as_json=_wants_json(values),
            )
        )
    finally:
        if runner:
            runner.shutdown()
    lost = runner.lost if runner else None
    return restart(lost, time.monotonic() - started_s) if code and lost else code


def _wants_json(values: argparse.Namespace) -> bool:
    """A supervisor reads the plain line, whatever the environment says that its children inherit."""
    return values.json and not os.environ.get(SUPERVISED)


def _begin(values: argparse.Namespace, role: PeerRole) -> None:
    """Whether all goes together, logging, and the watch over the supervisor, if there is one."""
    check_options(values)
    check_versions(role)
    logging.basicConfig(
        level=values.log_level.upper(), stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    if os.environ.get(SUPERVISED):
        threading.Thread(target=_follow_supervisor, name="supervisor", daemon=True).start()


def _follow_supervisor() -> None:
    """Ends this process once nobody holds the other end of its standard input, however the supervisor died."""
    while os.read(0, 4096):
        pass
    os.kill(os.getpid(), 15)
    time.sleep(SHUTDOWN_S)
    os._exit(1)
