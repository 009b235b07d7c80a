"""What can be told wrong about a pair of models before any process is started. No torch here."""

from __future__ import annotations

import contextlib
import json
import math
import socket
import struct
from dataclasses import dataclass
from pathlib import Path

from deploy.model_free import check_model, is_model_free
from paceline.compatibility import check_family
from paceline.engine.files import check_tokenizer, find_shards, read_json
from paceline.errors import InvalidInput
from paceline.tokenizer import Tokenizer, resolve, tokenizer_hash

_NEEDED = {
    "config.json": "copy the whole model folder",
    "tokenizer.json": "save the fast tokenizer into the same folder",
}


@dataclass(frozen=True, slots=True)
class PairCheck:
    """A pair that may be served together."""

    target_hash: str  # of the tokenizer, which is the drafter's too
    vocab_size: int


def check_pair(
    target: str, drafter: str | None, *, revision: str | None = None, drafter_revision: str | None = None
) -> PairCheck:
    """Raises InvalidInput that names the option, the folder and the fix.

    Without a drafter, or with one that needs no model, only the target is read. The revisions are of models that are
    named as on the Hugging Face hub.
    """
    _check_folder("--target", target)
    if is_model_free(drafter):
        drafter = None
    if drafter is not None:
        check_model("--drafter", drafter)
        _check_folder("--drafter", drafter)
    tokenizer = Tokenizer.load(target, revision)
    if drafter is not None and (other := tokenizer_hash(resolve(drafter, drafter_revision))) != tokenizer.hash:
        fix = (
            f"its tokenizer ({_short(other)}) is not that of --target {target} ({_short(tokenizer.hash)}), so its "
            "tokens would mean something else; choose a drafter of the same model family, or --num-drafters 0"
        )
        raise InvalidInput("--drafter", drafter, fix)
    return PairCheck(tokenizer.hash, tokenizer.vocab_size)


def _check_folder(option: str, given: str) -> None:
    folder = Path(given).expanduser()
    if not folder.is_dir():
        # Not a path, so perhaps the name of a model on the Hugging Face hub.
        is_path = given.startswith((".", "/", "~")) or given.count("/") != 1
        if is_path or folder.parent.is_dir():
            raise InvalidInput(option, given, "no such folder; give a model's folder in Hugging Face format")
        return
    for name, fix in _NEEDED.items():
        if not (folder / name).is_file():
            raise InvalidInput(option, given, f"has no {name}; {fix}")
    if not any(folder.glob("*.safetensors")):
        fix = "has no *.safetensors; save the weights in this format (others can run code when they are read)"
        raise InvalidInput(option, given, fix)
    find_shards(folder, field=option)
    config = read_json(folder, "config.json", _NEEDED["config.json"], field=option)
    check_family(option, given, config)
    text_config = config.get("text_config")  # of models that read images too
    vocab_size = (text_config if isinstance(text_config, dict) else config).get("vocab_size")
    if isinstance(vocab_size, int):
        check_tokenizer(folder, vocab_size, field=option)


def is_tested_family(option: str, model: str) -> bool:
    """Whether the tests run models like this one; a name on the hub, not read here, counts as one.

    Raises Unsupported for a family that cannot be served.
    """
    folder = Path(model).expanduser()
    if not (folder / "config.json").is_file():
        return True
    return check_family(option, model, read_json(folder, "config.json", _NEEDED["config.json"], field=option))


def check_port(option: str, host: str, port: int) -> None:
    """Raises InvalidInput if nothing could listen there now; 0 is always free."""
    with contextlib.suppress(socket.gaierror), contextlib.ExitStack() as stack:  # gRPC says more of an unknown host
        for family, kind, protocol, _, where in socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM):
            tried = stack.enter_context(socket.socket(family, kind, protocol))
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # what has just ended is no hindrance
            try:
                tried.bind(where)
            except OSError as error:
                fix = f"cannot be used on {host} ({error.strerror}); choose another, or 0 for a free one"
                raise InvalidInput(option, port, fix) from None


def num_parameters(folder: str | Path) -> int:
    """Weights in a folder's *.safetensors, from their headers; tied ones count once."""
    return sum(map(_num_in_file, Path(folder).glob("*.safetensors")))


def _num_in_file(file: Path) -> int:
    with file.open("rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        header = json.loads(stream.read(length))
    return sum(math.prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")


def _short(hash: str) -> str:
    return hash.partition(":")[2][:12]
