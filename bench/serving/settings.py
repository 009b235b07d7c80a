"""The options of `paceline bench serve`: those of `vllm bench serve` under its names, and a few of ours."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from typing import Any

from bench import options
from bench.plot import check_plot
from bench.serving import datasets, figures
from paceline.errors import InvalidInput
from paceline.types import Mode

# What each kind of backend is asked by.
ENDPOINTS = {
    "openai": "/v1/completions",
    "vllm": "/v1/completions",
    "openai-chat": "/v1/chat/completions",
}
MODES = tuple(dict.fromkeys((*Mode, "branch", "auto")))


def parser(about: str) -> options.Parser:
    it = options.Parser("serve", about)
    _add_server(it.add_argument_group("server"))
    _add_dataset(it.add_argument_group("data set"))
    _add_load(it.add_argument_group("load"))
    _add_sampling(it.add_argument_group("sampling"))
    _add_results(it.add_argument_group("results"))
    it.add_json("write the result there too")
    return it


def parse(arguments: Sequence[str] | None, about: str) -> argparse.Namespace:
    """The options, with `endpoint`, `base_url` and `body` (fields of every request) filled in. Raises InvalidInput."""
    given: argparse.Namespace = parser(about).parse_args(arguments)
    given.endpoint = given.endpoint or ENDPOINTS[given.backend]
    given.base_url = (given.base_url or f"http://{given.host}:{given.port}").removesuffix("/")
    given.body = _body(given)
    if given.dataset_name is None:
        given.dataset_name = "custom" if given.dataset_path else "random"
    if given.endpoint.endswith("chat/completions") and given.dataset_name == "random":
        raise InvalidInput("--dataset-name", "random", "sends token ids, which a chat has not: use /v1/completions")
    figures.parse_goodput(given.goodput)
    if given.plot:
        check_plot(given.plot)
    return given


def _body(given: argparse.Namespace) -> dict[str, Any]:
    penalties = ("frequency_penalty", "presence_penalty", "repetition_penalty")
    names = ("temperature", "top_p", "top_k", "min_p", *penalties)
    body: dict[str, Any] = {name: value for name in names if (value := getattr(given, name)) is not None}
    if given.ignore_eos:
        body["ignore_eos"] = True
    return body | dict(given.extra_body)


def _add_server(group: Any) -> None:
    group.add_argument("--backend", choices=sorted(ENDPOINTS), default="openai", help="openai-chat sends messages")
    group.add_argument("--base-url", metavar="URL", help="instead of --host and --port; https too")
    group.add_argument("--host", default="127.0.0.1")
    group.add_argument("--port", type=int, default=8000)
    group.add_argument("--endpoint", metavar="PATH", help="/v1/completions, or as --backend has it")
    group.add_argument("--model", help="as the server calls it; default: the first that /v1/models lists")
    group.add_argument("--tokenizer", metavar="DIR", help="for random prompts; default: what /v1/models names as root")
    group.add_argument("--header", type=_pair("="), action="append", default=[], metavar="NAME=VALUE")
    group.add_argument("--request-id-prefix", metavar="TEXT", help="sent with a number as every call's X-Request-Id")
    group.add_argument("--insecure", action="store_true", help="take any certificate")
    group.add_argument(
        "--ready-check-timeout-sec", type=float, default=0, metavar="S", help="wait so long for the server (0)"
    )


def _add_dataset(group: Any) -> None:
    group.add_argument("--dataset-name", choices=datasets.NAMES, help="custom if there is a path, else random")
    about = "\n".join(f"{name}: {what}." for name, what in datasets.FILES.items())
    group.add_argument("--dataset-path", metavar="FILE", help=about)
    group.add_argument("--num-prompts", type=options.count(1), default=1000, metavar="N", help="(1000)")
    group.add_argument("--shuffle", action="store_true", help="a file's prompts, by --seed")
    group.add_argument("--disable-shuffle", dest="shuffle", action="store_false", help="a file's order, as by default")
    group.set_defaults(shuffle=False)
    group.add_argument("--seed", type=int, default=0, help="of prompts and arrivals (0)")
    group.add_argument("--random-input-len", type=options.count(1), default=1024, metavar="N", help="(1024)")
    group.add_argument("--random-output-len", type=options.count(1), default=128, metavar="N", help="(128)")
    group.add_argument(
        "--random-range-ratio", type=_share, default=0.0, metavar="R", help="lengths from 1-R to 1+R (0)"
    )
    group.add_argument("--random-prefix-len", type=options.count(0), default=0, metavar="N", help="shared by all (0)")
    same = ("--custom-output-len", "--sharegpt-output-len", "--spec-bench-output-len")
    group.add_argument(
        "--output-len", *same, dest="output_len", type=options.count(1), metavar="N", help="tokens of every output"
    )
    group.add_argument("--spec-bench-category", metavar="NAME", help="only these of Spec-Bench's questions")


def _add_load(group: Any) -> None:
    group.add_argument("--request-rate", type=_rate, default=math.inf, metavar="R", help="requests a second (inf)")
    group.add_argument("--burstiness", type=options.positive, default=1.0, help="1 = Poisson; less is burstier (1)")
    group.add_argument("--max-concurrency", type=options.count(1), metavar="N", help="requests at a time")
    group.add_argument("--num-warmups", type=options.count(0), default=0, metavar="N", help="requests before (0)")
    group.add_argument(
        "--compare",
        type=options.names(MODES),
        metavar="MODES",
        help=f"run these modes interleaved ({','.join(MODES)}) and print ratios; --max-concurrency prompts a round (1)",
    )


def _add_sampling(group: Any) -> None:
    penalties = ("--frequency-penalty", "--presence-penalty", "--repetition-penalty")
    for name in ("--temperature", "--top-p", "--min-p", *penalties):
        group.add_argument(name, type=float, metavar="X", help="the server's default if absent")
    group.add_argument("--top-k", type=int, metavar="K", help="likewise")
    group.add_argument("--ignore-eos", action="store_true", help="outputs as long as asked for")
    group.add_argument("--extra-body", type=_object, default={}, metavar="JSON", help="further fields of every request")


def _add_results(group: Any) -> None:
    group.add_argument("--goodput", nargs="+", default=[], metavar="NAME:MS", help="bounds on ttft, tpot, e2el")
    group.add_argument(
        "--percentile-metrics",
        type=options.names(tuple(figures.TITLES)),
        default=("ttft", "tpot", "itl", "e2el"),
        metavar="NAMES",
        help="what the table tells (ttft,tpot,itl,e2el)",
    )
    group.add_argument(
        "--metric-percentiles", type=options.values(0, 100), default=(99.0,), metavar="P", help="comma separated (99)"
    )
    group.add_argument("--save-result", action="store_true", help="as JSON, with vLLM's keys")
    group.add_argument("--save-detailed", action="store_true", help="with every request's times and text")
    group.add_argument("--append-result", action="store_true", help="to the file that is there, a line a result")
    group.add_argument("--result-dir", default=".", metavar="DIR", help="(.)")
    group.add_argument("--result-filename", metavar="NAME", help="instead of LABEL-RATEqps-MODEL-DATE.json")
    group.add_argument("--label", help="in the result, and in its file's name; default: --backend")
    group.add_argument("--metadata", type=_pair("="), nargs="*", default=[], metavar="KEY=VALUE", help="in the result")
    group.add_argument("--plot", metavar="FILE.png", help="distributions of the times, or of the ratios")
    group.add_argument("--disable-tqdm", action="store_true", help="no progress bar")


def _rate(text: str) -> float:
    return math.inf if text == "inf" else options.positive(text)


def _share(text: str) -> float:
    (value,) = options.values(0, 1)(text)
    return value


def _pair(mark: str) -> Any:
    def parse(text: str) -> tuple[str, str]:
        key, found, value = text.partition(mark)
        if not (key and found):
            raise argparse.ArgumentTypeError(f"{text!r} must be KEY{mark}VALUE")
        return key, value

    return parse


def _object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"is no JSON: {error}") from None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError("must be a JSON object")
    return value
