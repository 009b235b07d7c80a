"""`paceline ray up | status | down`: the application on a cluster, without a line of Serve's own commands."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import logging
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from deploy import options
from deploy.options import Parser, UsageError
from paceline.errors import InvalidInput, Unavailable, did_you_mean

POLL_S = 0.2
COMMANDS = {
    "up": "deploy, or bring what is there up to date, and print where it serves",
    "status": "where it serves, and what every pool has and wants",
    "down": "let what runs end, and take the application down",
}


def run(argv: Sequence[str]) -> int:
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(_help(), file=sys.stdout if argv else sys.stderr)
        return 0 if argv else 2
    if argv[0] not in COMMANDS:
        hint = did_you_mean(argv[0], COMMANDS)
        raise UsageError(f"ray {argv[0]}: unknown command; {hint}The commands are {', '.join(COMMANDS)}")
    if has_token(os.environ):
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    values = parsers()[f"ray {argv[0]}"].parse(argv[1:], os.environ)
    _check_installed()
    return {"up": up, "status": status, "down": down}[argv[0]](values)


def parsers() -> dict[str, Parser]:
    """Each command's options, by its whole name."""
    return {f"ray {name}": make() for name, make in _PARSERS.items()}


def _check_installed() -> None:
    """Raises UsageError without Ray, which only these commands need."""
    try:
        for name in ("ray.serve", "yaml"):
            importlib.import_module(name)
    except ImportError as error:
        fix = "pip install 'paceline[ray]', here and on every node of the cluster"
        raise UsageError(f"ray: Ray Serve cannot be imported ({error}); {fix}") from None


def has_token(environ: Mapping[str, str]) -> bool:
    """Whether to show Ray's token: there is one, or the cluster is one that `up` starts, which makes one.

    Ray reads the mode once, when it is imported, and shows no token by itself to a cluster that it has not started.
    """
    given = {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & environ.keys()
    return bool(given) or not environ.get("RAY_ADDRESS") or (Path.home() / ".ray" / "auth_token").exists()


def _help() -> str:
    commands = "\n".join(f"  {name:8} {summary}" for name, summary in COMMANDS.items())
    return f"""usage: paceline ray COMMAND [options]

A coordinator, a pool of verifiers and any number of pools of drafters on a Ray cluster, each scaling on its own.

commands:
{commands}

examples:
  paceline ray up --target big/ --drafter small/
  paceline ray up --application deploy/ray/demo.yaml --set verifiers.max_replicas=2
  paceline ray status --json

`paceline ray COMMAND --help` explains a command's options, each of which has an environment twin, PACELINE_OPTION;
docs/ray.md explains the application's arguments."""


def up(values: argparse.Namespace) -> int:
    arguments = _arguments(values)
    from ray import serve

    from deploy.ray.app import build

    with _cluster(values, may_start=True) as dashboard:
        _check_nodes(arguments)
        serve.start(proxy_location="HeadOnly" if values.proxy_port else "Disabled", http_options=_http(values))
        route = "/" if values.proxy_port else None
        serve.run(build(arguments), name=arguments.name, route_prefix=route, blocking=False)
        told = _wait(arguments.name, values.start_timeout) | {"dashboard": dashboard}
        more = f", Ray's dashboard on {dashboard}" if dashboard else ""
        _print(told, values, f"paceline ready: gRPC on {told['grpc']}, HTTP on {told['http']}{more}")
    return 0


def _http(values: argparse.Namespace) -> dict[str, Any]:
    return {"host": "127.0.0.1", "port": values.proxy_port or 0}


def _arguments(values: argparse.Namespace) -> Any:
    """The application's arguments: the file's, then what the options say. Raises InvalidInput."""
    import pydantic
    import yaml

    from deploy.ray.arguments import Arguments, unfolded

    given: dict[str, Any] = {}
    if values.application is not None:
        try:
            told = yaml.safe_load(Path(values.application).read_text())
        except (OSError, yaml.YAMLError) as error:
            raise InvalidInput("application", values.application, f"cannot be read as YAML: {error}") from None
        given = unfolded(_of_application(told, values.application))
    said = dict(_pair(text) for text in values.set or ())
    chosen = {name: getattr(values, name) for name in ("target", "drafter", "name") if getattr(values, name)}
    try:
        return Arguments(**_merged(given, unfolded(said), chosen))
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "arguments"
        raise InvalidInput(where, first["input"], first["msg"].removeprefix("Value error, ")) from None


def _of_application(told: Any, path: str) -> Mapping[str, Any]:
    """The arguments in a file for `serve deploy`, or in one that holds nothing else."""
    applications = told.get("applications") if isinstance(told, Mapping) else None
    if applications:
        told = {"name": applications[0].get("name", "paceline"), **applications[0].get("args", {})}
    if not isinstance(told, Mapping):
        raise InvalidInput("application", path, "must hold the application's arguments, as deploy/ray/demo.yaml does")
    return told


def _pair(text: str) -> tuple[str, str]:
    name, is_pair, value = text.partition("=")
    if not is_pair:
        raise UsageError(f"--set {text}: write NAME=VALUE, such as verifiers.max_replicas=2")
    return name, value


def _merged(*several: Mapping[str, Any]) -> dict[str, Any]:
    """The later ones win, level by level."""
    merged: dict[str, Any] = {}
    for given in several:
        for name, value in given.items():
            is_level = isinstance(value, Mapping) and isinstance(merged.get(name), Mapping)
            merged[name] = _merged(merged[name], value) if is_level else value
    return merged


@contextlib.contextmanager
def _cluster(values: argparse.Namespace, *, may_start: bool) -> Iterator[str]:
    """Connected to the cluster that is meant; its dashboard's URL, empty without one. Raises Unavailable."""
    import ray

    from deploy.ray import directory

    address = values.address or os.environ.get("RAY_ADDRESS") or _own(values, may_start=may_start)
    level = values.log_level.upper()
    try:
        context: Any = ray.init(
            address=address, namespace=directory.NAMESPACE, log_to_driver=False, logging_level=level
        )
    except ConnectionError as error:
        raise Unavailable(f"no Ray cluster answers at {address}: {error}") from None
    logging.getLogger("ray.serve").setLevel(level)
    try:
        yield f"http://{context.dashboard_url}" if context.dashboard_url else ""
    finally:
        ray.shutdown()


def _own(values: argparse.Namespace, *, may_start: bool) -> str:
    """The cluster of this machine that `up` has started, or starts now."""
    from deploy.ray import local_cluster

    if may_start:
        return local_cluster.start(values.num_cpus)
    found = local_cluster.known()
    if not found:
        raise Unavailable("paceline ray up has started no cluster here; give --address, or set RAY_ADDRESS")
    return str(found["address"])


def _check_nodes(arguments: Any) -> None:
    """Raises InvalidInput if the nodes could not reach one another as the arguments have it."""
    import ray

    from paceline.rpc import is_loopback

    hosts = {node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}
    if len(hosts) > 1 and is_loopback(arguments.host):
        fix = f"the cluster has {len(hosts)} machines, which do not reach one another there; give host=node, with TLS"
        raise InvalidInput("host", arguments.host, fix)


def _wait(name: str, within_s: float) -> dict[str, Any]:
    """Where it serves, once every pool has what it starts with. Raises Unavailable."""
    deadline_s = time.monotonic() + within_s
    while True:
        told = _told(name)
        if told["status"] == "DEPLOY_FAILED":
            raise Unavailable(f"{name} could not be deployed: {told['message']}")
        if told["status"] == "RUNNING" and any(worker["role"] == "verifier" for worker in told["workers"]):
            return told
        if time.monotonic() > deadline_s:
            raise Unavailable(f"{name} is {told['status']} after {within_s:g} s: {told['message'] or told['pools']}")
        time.sleep(POLL_S)


def _told(name: str) -> dict[str, Any]:
    """Everything that `status` shows. The application need not be there."""
    from ray import serve

    from deploy.ray import directory
    from deploy.ray.scaling import Demand

    application = serve.status().applications.get(name)
    entries = directory.read(name)
    pools = {}
    if application is not None:
        details = {each: str(it.status.value) for each, it in application.deployments.items()}
        replicas = {each: dict(it.replica_states) for each, it in application.deployments.items()}
        pools = {each: {"status": details[each], "replicas": _plain(replicas[each])} for each in details}
    demand = Demand.of(entries)
    return {
        "name": name,
        "status": application.status.value if application else "NOT_DEPLOYED",
        "message": application.message if application else "",
        "grpc": ",".join(entry["grpc"] for entry in entries),
        "http": ",".join(entry["http"] for entry in entries),
        "pools": pools,
        "running": demand.num_running,
        "waiting": demand.num_waiting,
        "undrafted": demand.num_undrafted,
        "stall_share": round(demand.stall_share, 4),
        "verify_ms": round(demand.verify_ms, 3),
        "workers": list({worker["address"]: worker for entry in entries for worker in entry["workers"]}.values()),
    }


def _plain(states: Mapping[Any, int]) -> dict[str, int]:
    return {str(getattr(state, "value", state)): count for state, count in states.items()}


def status(values: argparse.Namespace) -> int:
    with _cluster(values, may_start=False) as dashboard:
        told = _told(values.name or "paceline") | {"dashboard": dashboard}
    lines = [f"{told['name']}: {told['status']}; gRPC on {told['grpc'] or '–'}, HTTP on {told['http'] or '–'}"]
    for name, pool in told["pools"].items():
        counts = ", ".join(f"{count} {state.lower()}" for state, count in pool["replicas"].items()) or "none"
        lines.append(f"  {name:14} {pool['status'].lower():10} {counts}")
    lines.append(
        f"  {told['running']} requests running, {told['waiting']} waiting, {told['undrafted']} without a drafter; "
        f"stall share {told['stall_share']:.0%}, a pass {told['verify_ms']:.1f} ms"
    )
    if dashboard:
        lines.append(f"  Ray's dashboard: {dashboard}")
    _print(told, values, "\n".join(lines))
    return 0 if told["status"] == "RUNNING" else 1


def down(values: argparse.Namespace) -> int:
    import ray
    from ray import serve

    from deploy.ray import directory, local_cluster

    name = values.name or "paceline"
    with _cluster(values, may_start=False):
        address = ray.get_runtime_context().gcs_address
        was_there = name in serve.status().applications
        serve.delete(name)
        directory.remove(name)
        is_last = not serve.status().applications
        if is_last:
            serve.shutdown()
    ended = is_last and local_cluster.stop(address)
    cluster = ", and the cluster of this machine" if ended else ""
    text = f"{name} is down{cluster}" if was_there else f"{name} was not deployed"
    _print({"name": name, "was_deployed": was_there, "cluster_ended": ended}, values, text)
    return 0


def _print(told: Mapping[str, Any], values: argparse.Namespace, text: str) -> None:
    print(json.dumps(told) if values.json else text, flush=True)


def _parser_of_up() -> Parser:
    parser = Parser(
        "ray up",
        """Deploy a pair of models on a Ray cluster, or bring what is deployed up to date; returns once it serves.

Connects to the cluster at --address or RAY_ADDRESS (`auto`: the one that this machine is a node of). Without either
it starts one on this machine, or uses the one that it has started.

  paceline ray up --target models/demo-target --drafter models/demo-drafter
  paceline ray up --application deploy/ray/demo.yaml --set verifiers.max_replicas=2""",
    )
    _common(parser)
    models = parser.group("application", "docs/ray.md has all arguments.")
    models.add(
        "--application", kind=options.text, metavar="FILE", help="YAML: the arguments, or a file for serve deploy"
    )
    models.add("--target", kind=options.text, metavar="DIR", help="the model whose output is served")
    models.add("--drafter", kind=options.text, metavar="DIR", help="a pool of drafters of this model")
    models.add(
        "--set",
        kind=options.text,
        many=True,
        metavar="NAME=VALUE",
        help="arguments of the application, with dots for levels, such as pools.drafters.max_replicas=3",
    )
    cluster = parser.group("a cluster of this machine")
    cluster.add(
        "--num-cpus",
        kind=options.whole(1, 4096),
        shown="as many as there are",
        metavar="N",
        help="CPUs that Ray counts; replicas ask for shares of them, which binds nobody",
    )
    serving = parser.group("serving")
    serving.add(
        "--proxy-port",
        kind=options.whole(0, 65535),
        default=0,
        shown="no proxy",
        metavar="PORT",
        help="port of Serve's HTTP proxy on this machine: it tells where the coordinator is, and sends clients there",
    )
    serving.add(
        "--start-timeout",
        kind=options.number(1, 86400),
        default=1800,
        metavar="S",
        help="seconds to wait until everything serves",
    )
    return parser


def _parser_of_status() -> Parser:
    about = (
        "Where the application serves, and what every pool has. Exit code 1 unless it serves.\n\n  paceline ray status"
    )
    return _common(Parser("ray status", about))


def _parser_of_down() -> Parser:
    about = "Take the application down. Coordinators let what runs end first; a cluster that `up` has started ends too."
    return _common(Parser("ray down", about))


def _common(parser: Parser) -> Parser:
    group = parser.group("cluster")
    group.add(
        "--address",
        kind=options.text,
        shown="RAY_ADDRESS, or one that `up` starts on this machine",
        metavar="HOST:PORT",
        help="the Ray cluster's",
    )
    group.add("--name", kind=options.text, shown="paceline", metavar="NAME", help="the application's, in Serve")
    group.add("--json", kind=options.boolean, default=False, help="one JSON object instead of text")
    group.add(
        "--log-level",
        kind=options.choice("debug", "info", "warning", "error"),
        default="warning",
        metavar="LEVEL",
        help="least severe of Ray's own messages on stderr: debug, info, warning or error",
    )
    return parser


_PARSERS = {"up": _parser_of_up, "status": _parser_of_status, "down": _parser_of_down}
