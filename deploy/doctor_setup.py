"""What can be told of a set-up without running a prompt: versions, models, ports, certificates, keys, workers."""

from __future__ import annotations

import argparse
import datetime
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploy.checks import check_pair, check_port, is_tested_family
from deploy.model_free import is_model_free
from paceline.api_keys import read_keys
from paceline.client import ModelInfo, ServerInfo
from paceline.compatibility import PACKAGES, installed, misfit
from paceline.errors import PacelineError
from paceline.security import PeerRole, Tls
from paceline.types import WIRE_VERSION, Role, WorkerInfo

OK, WARNING, BROKEN = "ok", "warning", "broken"
RENEW_WITHIN = datetime.timedelta(days=14)
PORTS = (("--grpc-port", 50051), ("--port", 8000))  # those that serve takes if none are given


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    what: str
    value: str
    state: str = OK
    fix: str = ""  # of what is not ok


def versions() -> Iterator[Finding]:
    """Of everything that a role needs; the client's machine may do with less, so what is not here is a warning."""
    for package in PACKAGES:
        version = installed(package.name)
        trouble = misfit(package, version)
        state = OK if not trouble else BROKEN if version else WARNING
        yield Finding(f"version of {package.name}", version or "not installed", state, trouble)
    yield Finding("cores", f"{os.cpu_count()}")


def devices(device: str, dtype: str) -> Iterator[Finding]:
    """What there is to compute on, and whether `device` is there and fast in `dtype`. Of no machine without torch."""
    if not installed("torch"):
        return
    import torch  # a second or two

    from paceline.engine.dtype import has_bfloat16

    names = [_gpu(torch.cuda.get_device_properties(i)) for i in range(torch.cuda.device_count())]
    found = ", ".join(names) or "none"
    index = device.partition(":")[2] or "0"
    if device.startswith("cuda") and not (index.isdigit() and int(index) < len(names)):
        fix = f"{device} is not there: install torch for the GPU's CUDA, look at CUDA_VISIBLE_DEVICES, or say --device"
        yield Finding("CUDA devices", found, BROKEN, f"{fix} {'cuda' if names else 'cpu'}")
    else:
        yield Finding("CUDA devices", found)
    has, is_slow = has_bfloat16("cpu"), dtype == "bfloat16" and device == "cpu"
    told = f"{torch.backends.cpu.get_cpu_capability()}, bfloat16 {'in hardware' if has else 'emulated, which is slow'}"
    fix = "passes over drafts are slow in bfloat16 here: say --dtype float32, or auto" if is_slow and not has else ""
    yield Finding("CPU", told, WARNING if fix else OK, fix)


def _gpu(properties: Any) -> str:
    return f"{properties.name} with {properties.total_memory / 2**30:.0f} GiB"


def models(target: str, drafter: str | None) -> Iterator[Finding]:
    """Tokenizers, vocabularies, families."""
    try:
        pair = check_pair(target, drafter)
    except PacelineError as error:
        yield Finding("models", f"{target}, {drafter}", BROKEN, str(error))
        return
    what = f"{pair.vocab_size} tokens; one tokenizer" if drafter and not is_model_free(drafter) else "one model"
    yield Finding("models", what)
    for option, model in (("--target", target), ("--drafter", drafter)):
        if model and not is_model_free(model) and not is_tested_family(option, model):
            fix = "check its output with `paceline check-lossless`; docs/compatibility.md has the tested families"
            yield Finding(f"family of {model}", "not one that the tests run", WARNING, fix)


def ports() -> Iterator[Finding]:
    """Whether `paceline serve` could listen where it does if it is not told otherwise."""
    for option, port in PORTS:
        try:
            check_port(option, "127.0.0.1", port)
        except PacelineError as error:
            yield Finding(f"port {port}", "taken", WARNING, str(error))
        else:
            yield Finding(f"port {port}", "free")


def files(values: argparse.Namespace, now: datetime.datetime) -> Iterator[Finding]:
    """Certificates with their ends, and who can read what only this user should."""
    if values.tls_cert or values.tls_key or values.tls_ca:
        yield from certificate(values, now)
    if values.api_keys:
        yield _tried("API keys", lambda: f"{len(read_keys(values.api_keys))} keys")
        yield from _private(values.api_keys)


def certificate(values: argparse.Namespace, now: datetime.datetime) -> Iterator[Finding]:
    what = "certificate"
    try:
        tls = Tls.of(PeerRole.CLIENT, values.tls_cert, values.tls_key, values.tls_ca)
        assert tls is not None, "one of the three was given"
        ends = tls.read().check(tls)
    except PacelineError as error:
        yield Finding(what, f"{values.tls_cert}", BROKEN, str(error))
        return
    left = ends - now
    renew = "run `paceline certs` again in its folder; running roles take the new ones by themselves"
    if left <= RENEW_WITHIN:
        state = BROKEN if left <= datetime.timedelta(0) else WARNING
        yield Finding(what, f"ends on {ends:%Y-%m-%d}", state, renew)
    else:
        yield Finding(what, f"valid for {left.days} days more")
    yield from _private(tls.key)


def _private(path: str) -> Iterator[Finding]:
    try:
        mode = stat.S_IMODE(Path(path).stat().st_mode)
    except OSError:
        return  # told by whoever could not read it
    if mode & 0o077:
        yield Finding(f"permissions of {path}", f"{mode:03o}", WARNING, f"other users may use it: chmod 600 {path}")
    else:
        yield Finding(f"permissions of {path}", f"{mode:03o}")


def _tried(what: str, check: Callable[[], str]) -> Finding:
    try:
        return Finding(what, check())
    except PacelineError as error:
        return Finding(what, "wrong", BROKEN, str(error))


def server(model: ModelInfo, info: ServerInfo) -> Iterator[Finding]:
    """What a running coordinator says of itself and of its workers."""
    yield Finding("server", f"version {info.version}, model {model.model}, context {model.max_model_len}")
    for role in (Role.VERIFIER, Role.DRAFTER):
        here = [worker for worker in info.workers if worker.role is role]
        if here:
            yield Finding(f"{role}s", f"{len(here)}: {_described(here)}")
        elif role is Role.VERIFIER:
            yield Finding("verifiers", "none", BROKEN, "start one: paceline verifier --model … --coordinator …")
        else:
            fix = "all requests are decoded plainly; start one: paceline drafter --model … --coordinator …"
            yield Finding("drafters", "none", WARNING, fix)
    for worker in info.workers:
        if worker.tokenizer_hash not in ("", model.tokenizer_hash):
            fix = "start it with a model of the target's tokenizer"
            yield Finding(f"tokenizer of {worker.model}", worker.tokenizer_hash[:12], BROKEN, fix)
        if worker.wire_version != WIRE_VERSION:
            yield Finding(
                f"wire of {worker.model}", f"{worker.wire_version}", BROKEN, "install the same Paceline on all"
            )


def _described(workers: Sequence[WorkerInfo]) -> str:
    return ", ".join(
        f"{worker.model} on {worker.device}{f' in {worker.dtype}' if worker.dtype else ''}" for worker in workers
    )
