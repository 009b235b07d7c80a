"""What goes together: versions, the wire between roles, model families, options. One table, checked when a role starts.

docs/compatibility.md is what `python -m paceline.compatibility` prints. Nothing here imports what it checks: a version
that does not fit may fail to import at all, and the reason should be told before.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import platform
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from paceline.errors import InvalidInput, Unsupported
from paceline.types import WIRE_VERSION

ALL = ("coordinator", "verifier", "drafter")
WORKERS = ("verifier", "drafter")
DOOR = ("coordinator",)


@dataclass(frozen=True, slots=True)
class Package:
    """A distribution that a role needs, at least in one version and, if `below` is given, before another."""

    name: str
    least: str
    below: str
    roles: tuple[str, ...]
    why: str


PACKAGES = (
    Package("python", "3.11", "", ALL, "tomllib, task groups and exception groups"),
    Package("grpcio", "1.85.1", "", ALL, "the committed wire code was generated for it"),
    Package("protobuf", "7.35.1", "", ALL, "the runtime may not be older than the committed wire code"),
    Package("msgpack", "1.1", "", ALL, "traces, and the step plan between ranks"),
    Package("tokenizers", "0.22", "", ALL, "reads every tokenizer.json"),
    Package("fastapi", "0.165", "", DOOR, "the HTTP routes; takes no JSON that does not call itself so"),
    Package("uvicorn", "0.54", "", DOOR, "serves them"),
    Package("pydantic", "2.12", "", DOOR, "checks every field that HTTP clients send"),
    Package("jinja2", "3.1.6", "", DOOR, "chat templates, in the sandbox without the holes of earlier versions"),
    Package("prometheus-client", "0.26", "", DOOR, "the text of /metrics"),
    Package("safetensors", "0.6", "", WORKERS, "reads weights without running code"),
    Package("torch", "2.9", "", WORKERS, "operators that pack a CPU's weights, and CUDA graphs as they are captured"),
    Package("transformers", "5.23", "5.24", WORKERS, "modelling code whose attention hook is no public interface yet"),
)


@dataclass(frozen=True, slots=True)
class Family:
    """A model family whose tiny twins the tests run."""

    name: str  # of its classes in transformers
    model_type: str  # in config.json
    is_lean: bool  # takes the lean path, which is faster on a CPU


FAMILIES = (
    Family("Llama", "llama", is_lean=True),
    Family("Qwen2", "qwen2", is_lean=True),
    Family("Qwen3", "qwen3", is_lean=True),
    Family("Mistral", "mistral", is_lean=True),
    Family("Gemma2", "gemma2", is_lean=False),
    Family("Gemma3", "gemma3_text", is_lean=False),
    Family("Phi3", "phi3", is_lean=False),
    Family("Mixtral", "mixtral", is_lean=False),
    Family("Qwen2Moe", "qwen2_moe", is_lean=False),
    Family("Qwen3Moe", "qwen3_moe", is_lean=False),
    Family("GPTNeoX", "gpt_neox", is_lean=False),
)
_STATE = "keeps a running state that cannot be rolled back when a draft is rejected"
_ENCODER = "reads its prompt by an encoder, and drafts continue a text"
REFUSED = {
    **dict.fromkeys(("mamba", "mamba2", "falcon_mamba", "rwkv", "recurrent_gemma", "jamba", "bamba", "zamba2"), _STATE),
    **dict.fromkeys(("t5", "bart", "mbart", "pegasus", "whisper", "m2m_100"), _ENCODER),
    **dict.fromkeys(("bert", "roberta", "distilbert", "xlm-roberta"), "does not write text from left to right"),
}


@dataclass(frozen=True, slots=True)
class Conflict:
    """Options of which one makes the other wrong."""

    one: str
    other: str
    fix: str
    is_met: Callable[[Mapping[str, Any]], Any]  # by the options' values


CONFLICTS = (
    Conflict(
        "--api-key",
        "--api-keys",
        "is one key and --api-keys a file of them: give one of the two",
        lambda given: given.get("api_key") and given.get("api_keys"),
    ),
    Conflict(
        "--chat-template",
        "--port off",
        "is for HTTP, which --port off turns off: leave one of them out",
        lambda given: given.get("chat_template") and "grpc_port" in given and given.get("port") is None,
    ),
    Conflict(
        "--served-model-name",
        "--port off",
        "is for HTTP, which --port off turns off: leave one of them out",
        lambda given: given.get("served_model_name") and "grpc_port" in given and given.get("port") is None,
    ),
    Conflict(
        "--allowed-origins",
        "--port off",
        "is for HTTP, which --port off turns off: leave one of them out",
        lambda given: given.get("allowed_origins") and "grpc_port" in given and given.get("port") is None,
    ),
    Conflict(
        "--tensor-parallel-size",
        "--device cuda:N",
        "takes one GPU a rank: say --device cuda, and choose the GPUs by CUDA_VISIBLE_DEVICES",
        lambda given: (given.get("tensor_parallel_size") or 1) > 1 and ":" in str(given.get("device")),
    ),
    Conflict(
        "--length-policy",
        "--drafter prompt-lookup or suffix",
        "specdecpp needs a head trained for the drafter, and a drafter without a model has none: choose another policy",
        lambda given: (
            given.get("drafter") in ("prompt-lookup", "suffix")
            and getattr(given.get("length_policy"), "name", "") == "specdecpp"
        ),
    ),
)


def check_versions(role: str, found: Callable[[str], str] | None = None) -> None:
    """Raises InvalidInput for the first package of `role` that does not fit, with what to install."""
    for package in PACKAGES:
        if role in package.roles and (trouble := misfit(package, (found or installed)(package.name))):
            raise InvalidInput(package.name, (found or installed)(package.name) or "none", trouble)


def misfit(package: Package, version: str) -> str:
    """What is wrong with a version, and the fix; empty if it fits."""
    fits = bool(version) and _numbers(version) >= _numbers(package.least)
    if fits and not (package.below and _numbers(version) >= _numbers(package.below)):
        return ""
    wanted = f"{package.least} or later" + (f", before {package.below}" if package.below else "")
    if package.name == "python":
        return f"Paceline needs {wanted} ({package.why}); make its environment with such a Python"
    bound = f",<{package.below}" if package.below else ""
    return f"Paceline needs {wanted} ({package.why}); pip install '{package.name}>={package.least}{bound}'"


def installed(name: str) -> str:
    """The version of a package that is here; empty if it is not."""
    if name == "python":
        return platform.python_version()
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def check_wire(version: int, who: str) -> None:
    """Raises Unsupported unless a worker speaks this program's wire."""
    if version != WIRE_VERSION:
        older = "the worker" if version < WIRE_VERSION else "the coordinator"
        fix = (
            f"this coordinator speaks version {WIRE_VERSION}; install the same Paceline on both ({older} is the older)"
        )
        raise Unsupported(f"wire version of {who}", version, fix)


def check_family(option: str, model: str, config: Mapping[str, Any]) -> bool:
    """Whether the tests run this family. `config`: of config.json. Raises Unsupported for one that cannot be served."""
    text = config.get("text_config") if isinstance(config.get("text_config"), dict) else config
    kind = str((text or {}).get("model_type", ""))
    reason = REFUSED.get(kind) or (_ENCODER if config.get("is_encoder_decoder") is True else "")
    if reason:
        known = ", ".join(family.name for family in FAMILIES)
        raise Unsupported(option, model, f"is a {kind} model, which {reason}; choose one of {known}")
    return any(kind == family.model_type for family in FAMILIES)


def check_options(values: argparse.Namespace) -> None:
    """Raises InvalidInput for options that cannot go together."""
    given = vars(values)
    for conflict in CONFLICTS:
        if conflict.is_met(given):
            value = given.get(conflict.one.removeprefix("--").replace("-", "_"))
            raise InvalidInput(conflict.one, "…" if conflict.one == "--api-key" else value, conflict.fix)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", re.split(r"[+a-z]", version, maxsplit=1)[0])))


def page() -> str:
    """docs/compatibility.md."""
    packages = [
        f"| {p.name} | {p.least}{f', before {p.below}' if p.below else ' or later'} | {', '.join(p.roles)} | {p.why} |"
        for p in PACKAGES
    ]
    families = [f"| {f.name} | `{f.model_type}` | {'lean' if f.is_lean else 'transformers’ own'} |" for f in FAMILIES]
    reasons = dict.fromkeys(REFUSED.values())
    refused = [f"| {', '.join(f'`{k}`' for k, v in REFUSED.items() if v == why)} | {why} |" for why in reasons]
    conflicts = [f"| `{c.one}` | `{c.other}` | {c.fix} |" for c in CONFLICTS]
    rows = {"packages": packages, "families": families, "refused": refused, "conflicts": conflicts}
    return _PAGE.format(wire=WIRE_VERSION, **{name: "\n".join(lines) for name, lines in rows.items()})


_PAGE = """\
# Compatibility

Printed by `python -m paceline.compatibility`; a test compares. A role checks its part when it starts, and refuses with
the fix. `paceline doctor` checks all of it.

## Versions

| package | version | needed by | why |
|---|---|---|---|
{packages}

## The wire

Version {wire}. A coordinator takes in workers of its own version only, and tells others which is the older. Clients
are not asked: fields are only ever added to what they send and read.

## Models

Families whose tiny twins the tests run, token for token against transformers. Another family is loaded if the rehearsal
at its load finds nothing that the engine does not implement; a warning says that no test runs it. Drafter and target
may be of different families with the same tokenizer.

| family | `model_type` | code on a CPU |
|---|---|---|
{families}

| refused | because it |
|---|---|
{refused}

## Options

| option | does not go with | what to do: it … |
|---|---|---|
{conflicts}
"""


if __name__ == "__main__":
    print(page(), end="")
