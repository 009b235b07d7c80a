"""Options of the HTTP door, which `serve` and `coordinator` share."""

from __future__ import annotations

import json
import re

from deploy import options
from deploy.options import Group


def add_http(group: Group) -> None:
    group.add(
        "--port",
        kind=options.port_or_off,
        default=8000,
        metavar="PORT",
        help="HTTP port: OpenAI's API, /metrics, and a web page at /; 0 = a free one, off = no HTTP",
    )
    group.add(
        "--served-model-name",
        kind=options.text,
        shown="the target as it was given",
        metavar="NAME",
        help="what HTTP clients call the model",
    )
    group.add(
        "--chat-template",
        kind=options.text,
        shown="the target's own",
        metavar="FILE",
        help="Jinja template that makes a prompt of a chat's messages",
    )
    group.add(
        "--generation-config",
        kind=options.text,
        default="auto",
        metavar="auto|none|DIR",
        help="whose generation_config.json says how HTTP requests are sampled that do not say it themselves "
        "(temperature, top_p, top_k, min_p, repetition_penalty): auto = the target's, none = nobody's, which is "
        "temperature 1, as OpenAI has it",
    )
    group.add(
        "--allowed-origins",
        kind=origins,
        shown="none",
        metavar="ORIGIN[,…]",
        help="web pages of other origins that may call over HTTP, such as https://chat.example.org, or * for any",
    )


def origins(value: str) -> str:
    """Origins with commas between them; vLLM's JSON list will do too."""
    try:
        found = json.loads(value) if value.lstrip().startswith("[") else value.split(",")
    except ValueError:
        found = [value]
    names = [str(one).strip() for one in found]
    if not names or not all(re.fullmatch(r"\*|[a-z][a-z0-9+.-]*://[^\s/,]+", name) for name in names):
        raise ValueError("must be origins, such as https://chat.example.org,http://127.0.0.1:3000, or *")
    return ",".join(names)
