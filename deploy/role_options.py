"""Options that several commands share: `serve` takes what the roles take, and passes it on."""

from __future__ import annotations

from deploy import options
from deploy.options import Group, Parser
from paceline.length_policy import LengthPolicy
from paceline.trace import DEFAULT_MAX_BYTES


def add_host(group: Group) -> None:
    group.add(
        "--host",
        kind=options.text,
        default="127.0.0.1",
        metavar="HOST",
        help="interface to listen on; anything but loopback needs --insecure, since there is no TLS yet",
    )
    group.add(
        "--insecure",
        kind=options.boolean,
        default=False,
        help="listen beyond this machine without encryption or keys: only on a network that you trust",
    )


def add_grpc_port(group: Group) -> None:
    group.add(
        "--grpc-port", kind=options.whole(0, 65535), default=50051, metavar="PORT", help="gRPC port; 0 = a free one"
    )


def add_pacing(parser: Parser) -> None:
    """How requests are decoded that do not say it themselves."""
    group = parser.group("decoding", "What requests get that do not ask for something else.")
    group.add(
        "--mode",
        kind=options.mode,
        default="auto",
        metavar="MODE",
        help="how drafting and verification overlap: off (plain decoding), sequential (one after the other), pearl "
        "(drafts stream ahead while earlier ones are verified), auto (pearl, for now)",
    )
    group.add(
        "--rule",
        kind=options.rule,
        default="auto",
        metavar="RULE",
        help="how drafts are judged: match (exact for any drafter), coupled (match, reproducible by seed), token "
        "(rejection sampling), auto (by temperature and seed); none of them changes the output's distribution",
    )
    group.add(
        "--length-policy",
        kind=options.policy,
        default=LengthPolicy(),
        metavar="NAME:KEY=VALUE,…",
        help="when a draft ends: fixed:length=8 (tokens) or svip:threshold_nats=0.6,max_length=40 (entropy)",
    )
    group.add(
        "--window",
        kind=options.whole(1, 64),
        default=4,
        metavar="N",
        help="drafts unverified at a time in mode pearl: one that is verified, the others drafted",
    )
    group.add(
        "--max-draft-wait-ms",
        kind=options.number(0.001, 60_000),
        default=250,
        metavar="MS",
        help="longest wait for a draft; then the verifier decodes on by itself",
    )
    group.add(
        "--max-waiting",
        kind=options.whole(1, 1_000_000),
        default=256,
        metavar="N",
        help="requests queued for a verifier; over it clients are told at once to come back later",
    )


def add_row_width(group: Group) -> None:
    group.add(
        "--row-width",
        kind=options.whole(1, 1024),
        default=64,
        metavar="N",
        help="tokens kept of each draft distribution under the rule token; drafts are drawn from exactly these",
    )


def add_engine(parser: Parser) -> Group:
    """What a worker's engine is made of."""
    group = parser.group("engine")
    group.add(
        "--dtype",
        kind=options.choice("float32", "bfloat16"),
        default="float32",
        metavar="TYPE",
        help="float32 (greedy output equals plain decoding token for token) or bfloat16 (faster; a near-tie "
        "between two tokens may fall the other way)",
    )
    group.add("--device", kind=options.text, default="cpu", metavar="DEVICE", help="cpu, cuda or cuda:N")
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
        help="memory of each worker's KV cache, such as 512MiB or 8GiB",
    )
    group.add(
        "--block-size", kind=options.whole(1, 1024), default=16, metavar="N", help="tokens in a block of the KV cache"
    )
    return group


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


def add_logging(parser: Parser) -> None:
    parser.group("messages").add(
        "--log-level",
        kind=options.choice("debug", "info", "warning", "error"),
        default="warning",
        metavar="LEVEL",
        help="least severe messages on stderr: debug, info, warning or error",
    )


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
    model.add("--revision", kind=options.text, metavar="REVISION", help="branch, tag or commit of an ORG/NAME model")
    network = parser.group("network")
    network.add(
        "--coordinator",
        kind=options.addresses,
        default=(),
        shown="none",
        metavar="HOST:PORT[,…]",
        help="coordinators to register with, again and again; one that is not there yet is waited for",
    )
    add_host(network)
    network.add("--port", kind=options.whole(0, 65535), default=0, metavar="PORT", help="gRPC port; 0 = a free one")
    network.add(
        "--advertise",
        kind=options.text,
        shown="--host",
        metavar="HOST[:PORT]",
        help="name by which coordinators reach this worker; needed with --host 0.0.0.0, with a port behind a forwarder",
    )
    engine = add_engine(parser)
    engine.add(
        "--tensor-parallel-size",
        kind=options.whole(1, 64),
        default=1,
        metavar="N",
        help=f"processes (GPUs) over which {tensor_parallel} is split; must divide its heads",
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
