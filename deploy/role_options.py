"""Options that several commands share: `serve` takes what the roles take, and passes it on."""

from __future__ import annotations

import argparse

from coordinator.recent import DEFAULT_KEPT
from deploy import options
from deploy.admission_options import add_queue
from deploy.options import Group, Parser
from paceline.drain import DRAIN_S
from paceline.security import PeerRole, Tls
from paceline.trace import DEFAULT_MAX_BYTES


def add_host(group: Group) -> None:
    group.add(
        "--host",
        kind=options.text,
        default="127.0.0.1",
        metavar="HOST",
        help="interface to listen on; anything but loopback needs TLS, or --insecure",
    )
    group.add(
        "--insecure",
        kind=options.boolean,
        default=False,
        help="listen beyond this machine without encryption: only on a network that you trust",
    )


def add_tls(parser: Parser) -> None:
    """The certificates of mutual TLS; `tls_of` reads the values."""
    group = parser.group(
        "encryption",
        "Mutual TLS: every side shows a certificate that says its role. Give all three, or none; `paceline certs` "
        "makes them. {role} in a path stands for the role that reads it, so that one setting serves all.",
    )
    for flag, other, about in (
        ("--tls-cert", "--ssl-certfile", "this role's certificate (PEM), chain included"),
        ("--tls-key", "--ssl-keyfile", "its private key (PEM, without a password)"),
        ("--tls-ca", "--ssl-ca-certs", "the authority's certificate (PEM): who is believed"),
    ):
        group.add(flag, other, kind=options.text, metavar="FILE", help=about)


def tls_of(values: argparse.Namespace, role: PeerRole) -> Tls | None:
    """What --tls-cert, --tls-key and --tls-ca say, for `role`; None without them. Raises InvalidInput."""
    return Tls.of(role, values.tls_cert, values.tls_key, values.tls_ca)


def add_reflection(group: Group) -> None:
    group.add(
        "--reflection",
        kind=options.boolean,
        default=False,
        help="let callers list the methods, with TLS or keys too; without either they always can",
    )


def add_drain(group: Group) -> None:
    group.add(
        "--drain-s",
        kind=options.number(0, 3600),
        default=DRAIN_S,
        metavar="S",
        help="after SIGTERM: seconds that running requests get to move or to end; a second signal ends at once",
    )


def add_clients(parser: Parser) -> None:
    """Who may ask, and how much."""
    group = parser.group("clients")
    group.add(
        "--api-keys",
        kind=options.text,
        metavar="FILE",
        shown="anybody may ask",
        help="keys that clients must show as `Authorization: Bearer KEY`, one a line, NAME:KEY or KEY; read again when "
        "it changes",
    )
    group.add(
        "--api-key",
        kind=options.text,
        metavar="KEY",
        help="the one key that clients must show, instead of --api-keys; safer in the environment than on the command "
        "line",
    )
    group.add(
        "--max-requests-per-key",
        kind=options.whole(1, 1_000_000),
        default=1024,
        metavar="N",
        help="requests of one key at a time, running and waiting; over it the client is told to come back later",
    )
    group.add(
        "--client-stall-s",
        kind=options.number(0.1, 3600),
        default=30,
        metavar="S",
        help="seconds that replies wait for a client that does not read them; then it is cut off",
    )


def add_grpc_port(group: Group) -> None:
    group.add(
        "--grpc-port", kind=options.whole(0, 65535), default=50051, metavar="PORT", help="gRPC port; 0 = a free one"
    )


def add_revision(group: Group, flag: str = "--revision", what: str = "an ORG/NAME model") -> None:
    group.add(flag, kind=options.text, shown="main", metavar="REVISION", help=f"branch, tag or commit of {what}")


def add_pacing(parser: Parser) -> None:
    """How requests are decoded that do not say it themselves."""
    group = parser.group("decoding", "What requests get that do not ask for something else.")
    group.add(
        "--mode",
        kind=options.mode,
        default="auto",
        metavar="MODE",
        help="how drafting and verification overlap: off (plain decoding), sequential (one after the other), pearl "
        "(drafts stream ahead while earlier ones are verified), branch (pearl, and drafts for likely other outcomes), "
        "auto (what the measured speeds favour, anew)",
    )
    group.add(
        "--rule",
        kind=options.rule,
        default="auto",
        metavar="RULE",
        help="how drafts are judged: match (exact for any drafter), coupled (match, reproducible by seed), token and "
        "block (rejection sampling, for trusted drafters), auto (match at temperature 0, coupled with a seed, else "
        "block if a drafter is trusted and match if not); none of them changes the output's distribution",
    )
    group.add(
        "--trust-drafters",
        kind=options.boolean,
        default=False,
        help="believe what every drafter says of its own distribution, as the rules token and block must; without it "
        "those with a certificate are believed and, without --insecure, those of this machine",
    )
    group.add(
        "--length-policy",
        kind=options.policy,
        shown="auto",
        metavar="NAME:KEY=VALUE,…",
        help="when a draft ends: fixed:length=8 (tokens), svip:threshold_nats=0.6 or adaedl:threshold=0.5 (entropy), "
        "confidence:threshold=0.4 (a token's own probability), specdecpp:cost_ratio=12 (a head trained for the "
        "drafter), or auto (a fixed length that the measured speeds favour; 8 if --mode is not auto); "
        "docs/length-policies.md has all parameters",
    )
    group.add(
        "--window",
        kind=options.auto_or(options.whole(1, 64)),
        shown="auto",
        metavar="N",
        help="drafts unverified at a time in pearl and branch: one verified, the others drafted; auto takes what a "
        "pass and a round trip hold, and mode auto always does",
    )
    group.add(
        "--max-draft-wait-ms",
        kind=options.number(0.001, 60_000),
        default=250,
        metavar="MS",
        help="longest wait for a draft; then the verifier decodes on by itself",
    )
    add_queue(group)


def add_draft_rows(group: Group) -> None:
    """What a drafter samples from: none of it changes the output's distribution."""
    group.add(
        "--row-width",
        kind=options.whole(1, 1024),
        default=64,
        metavar="N",
        help="tokens kept of each draft distribution under the rules token and block; drafts are drawn from exactly "
        "these, so more of them cost bytes, fewer cost acceptance",
    )
    group.add(
        "--row-bits",
        kind=options.whole(8, 16),
        default=12,
        metavar="N",
        help="bits of each probability kept; drafts are drawn from the rounded ones",
    )
    group.add(
        "--draft-temperature",
        kind=options.number(0.01, 100),
        metavar="T",
        shown="the request's",
        help="temperature at which drafts are sampled, whatever the request's own (temperature 0 stays greedy)",
    )


def add_dtype(group: Group) -> None:
    """In what the models compute, and on what."""
    group.add(
        "--dtype",
        kind=options.dtype,
        default="float32",
        metavar="TYPE",
        help="float32 (greedy output equals plain decoding token for token), bfloat16 (faster where the device has it; "
        "a near-tie between two tokens may fall the other way), or auto, the faster one here",
    )
    group.add("--device", kind=options.text, default="cpu", metavar="DEVICE", help="cpu, cuda or cuda:N")


def add_drafter_dtype(group: Group) -> None:
    group.add(
        "--drafter-dtype",
        kind=options.dtype,
        shown="--dtype",
        metavar="TYPE",
        help="the drafter's, if it is to differ",
    )


def add_engine(parser: Parser) -> Group:
    """What a worker's engine is made of."""
    group = parser.group("engine")
    add_dtype(group)
    group.add(
        "--max-num-seqs",
        kind=options.whole(1, 65536),
        default=64,
        metavar="N",
        help="requests that a worker holds at a time",
    )
    group.add(
        "--max-num-batched-tokens",
        kind=options.whole(1, 1_000_000),
        default=2048,
        metavar="N",
        help="tokens in a forward pass; more make every pass longer for all who are in it",
    )
    group.add(
        "--max-model-len",
        kind=options.whole(1),
        metavar="N",
        shown="the model's",
        help="longest request, prompt and output together, in tokens",
    )
    group.add(
        "--kv-cache-memory",
        kind=options.size,
        shown="1GiB",
        metavar="BYTES",
        help="memory of each worker's KV cache (on each of its ranks), such as 512MiB or 8GiB; a request that does not "
        "fit into it alone is refused",
    )
    group.add(
        "--enforce-eager",
        kind=options.boolean,
        default=False,
        help="on a GPU: launch every kernel of a decode step by itself instead of replaying a captured graph; slower, "
        "and takes less memory",
    )
    group.add(
        "--block-size", kind=options.whole(1, 1024), default=16, metavar="N", help="tokens in a block of the KV cache"
    )
    return group


def add_tensor_parallel(group: Group, help: str) -> None:
    group.add("--tensor-parallel-size", "-tp", kind=options.whole(1, 64), default=1, metavar="N", help=help)


def add_trace(parser: Parser) -> None:
    group = parser.group("trace")
    group.add(
        "--trace",
        kind=options.text,
        metavar="FILE",
        help="append every event of the coordinator's core to FILE, for `paceline simulate`; it holds token ids",
    )
    group.add(
        "--trace-max-size",
        kind=options.size,
        default=DEFAULT_MAX_BYTES,
        shown="256MiB",
        metavar="BYTES",
        help="the trace ends at this size; the server runs on",
    )
    group.add(
        "--keep-traces",
        kind=options.whole(0, 10_000),
        default=DEFAULT_KEPT,
        metavar="N",
        help="requests that have ended whose steps are kept in memory for `paceline trace`, each for its own client "
        "only; 0 = none",
    )
    group.add(
        "--otlp-traces-endpoint",
        kind=options.text,
        metavar="URL",
        help="send a trace of every request to this OpenTelemetry receiver, such as http://127.0.0.1:4317; "
        "OpenTelemetry's own OTEL_… variables say where and how too",
    )


def add_logging(parser: Parser) -> None:
    group = parser.group("messages")
    group.add("--json", kind=options.boolean, default=False, help="print the line that says that all is ready as JSON")
    group.add(
        "--log-level",
        kind=options.choice("debug", "info", "warning", "error"),
        default="warning",
        metavar="LEVEL",
        help="least severe messages on stderr: debug, info, warning or error",
    )


def add_registration(group: Group) -> None:
    """Whom a worker tells that it is there."""
    group.add(
        "--coordinator",
        kind=options.addresses,
        default=(),
        shown="none",
        metavar="HOST:PORT[,…]",
        help="coordinators to register with, again and again; one that is not there yet is waited for",
    )
    group.add("--coordinators-file", kind=options.text, metavar="FILE", help="more of them, one a line; it may change")


def add_worker(parser: Parser, what: str, *, tensor_parallel: str) -> Group:
    """A worker's options; returns the engine's group, for more."""
    model = parser.group("model")
    model.add(
        "--model",
        kind=options.text,
        metavar="DIR",
        required=True,
        help=f"{what}: a folder in Hugging Face format (safetensors and tokenizer.json), or ORG/NAME",
    )
    add_revision(model)
    network = parser.group("network")
    add_registration(network)
    add_host(network)
    network.add("--port", kind=options.whole(0, 65535), default=0, metavar="PORT", help="gRPC port; 0 = a free one")
    network.add(
        "--advertise",
        kind=options.text,
        shown="--host",
        metavar="HOST[:PORT]",
        help="name by which coordinators reach this worker; needed with --host 0.0.0.0, with a port behind a forwarder",
    )
    add_reflection(network)
    add_drain(network)
    add_tls(parser)
    engine = add_engine(parser)
    add_tensor_parallel(engine, f"processes (GPUs) over which {tensor_parallel} is split; must divide its heads")
    engine.add(
        "--ranks-socket",
        kind=options.text,
        shown="this process starts them",
        metavar="FILE",
        help="Unix socket to which the other ranks come, where something else starts them (docs/ray.md)",
    )
    engine.add(
        "--gpu-memory-utilization",
        kind=options.number(0.01, 1),
        default=0.9,
        metavar="SHARE",
        help="on a GPU without --kv-cache-memory: share of its memory that weights and KV cache take together; what "
        "the forward pass needs comes out of the rest",
    )
    add_logging(parser)
    return engine
