"""Options from a TOML file, and as one.

    host = "10.0.0.1"          # of every command that has --host
    [serve]
    target = "models/big"      # of `paceline serve` alone; it wins over the same key above
    max-num-seqs = 128         # names are those of the options, without their dashes; _ for - will do
    [ray.up]
    num-cpus = 8               # of `paceline ray up`
    [bench.serve]
    num-prompts = 64           # of `paceline bench serve`, which takes nothing from above: what is set for a server
                               # must not change what a benchmark measures

No file is read that was not named: one that merely lies in the working folder could change what a command does without
a word. A key that no command knows is an error, so a misspelt one never passes for a default.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from paceline.errors import InvalidInput, did_you_mean

if TYPE_CHECKING:
    from deploy.options import Option

BENCH = "bench "  # before the names of benchmarks, as commands
MAX_BYTES = 1_000_000
SECRETS = ("api_key",)  # never written


@dataclass(frozen=True, slots=True)
class Setting:
    """What a file says of one option: its values as a command line would have them."""

    where: str  # the file and the key, for errors
    texts: tuple[str, ...]


def read(path: str, command: str) -> dict[str, Setting]:
    """The file's settings for `command`, by key. Raises InvalidInput, also for what is wrong of other commands.

    The tables of commands that cannot be imported here are not looked into: one file may do for several images.
    """
    # Late: it imports every command, which only those who use a file need wait for.
    from deploy.bench import BENCHMARKS
    from deploy.cli import absent, parsers

    unchecked = sorted(absent())
    known = {name: {key for option in parser.options for key in option.keys} for name, parser in parsers().items()}
    table = _load(path)
    shared = {key: value for key, value in table.items() if not isinstance(value, dict)}
    tables = _tables(table, known)
    everything = set().union(*known.values())
    but = f" but perhaps of {', '.join(unchecked)}, into whose table it then belongs" if unchecked else ""
    found = _settings(path, "", shared, everything, f" of any command{but}")
    benchmarks = [f"{BENCH}{name}" for name in BENCHMARKS]
    for name, values in tables.items():
        # A benchmark's options are known to itself alone, and it may need torch.
        if name in benchmarks or name.partition(" ")[0] in unchecked:
            continue
        if name not in known:
            raise _unknown(path, name, [*known, *benchmarks])
        own = _settings(path, f"[{_dotted(name)}] ", values, known[name], f" of paceline {name}")
        if name == command:
            found |= own
    return {key: setting for key, setting in found.items() if key in known.get(command, ())}


def read_benchmark(path: str, name: str) -> dict[str, Setting]:
    """The file's settings for `paceline bench NAME`, whatever their keys. Raises InvalidInput."""
    from deploy.bench import BENCHMARKS

    tables = _tables(_load(path), {})
    benchmarks = [f"{BENCH}{each}" for each in BENCHMARKS]
    for each in tables:
        if each.startswith(BENCH) and each not in benchmarks:
            raise _unknown(path, each, benchmarks)
    values = tables.get(f"{BENCH}{name}", {})
    return _settings(path, f"[{_dotted(BENCH + name)}] ", values, None, "")


def _unknown(path: str, name: str, known: Sequence[str]) -> InvalidInput:
    fix = f"is no command with options; {did_you_mean(name, known)}Use one of {', '.join(map(_dotted, known))}"
    return InvalidInput(f"{path}: [{_dotted(name)}]", "…", fix)


def _tables(table: Mapping[str, Any], known: Mapping[str, object]) -> dict[str, dict[str, Any]]:
    """The tables by their commands: [ray.up] is `ray up`'s."""
    found: dict[str, dict[str, Any]] = {}
    for name, value in table.items():
        if not isinstance(value, dict):
            continue
        inner = {f"{name} {key}": own for key, own in value.items() if isinstance(own, dict)}
        if name not in known and inner and len(inner) == len(value):
            found |= inner
        else:
            found[name] = value
    return found


def _dotted(command: str) -> str:
    return command.replace(" ", ".")


def _load(path: str) -> dict[str, Any]:
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise InvalidInput("--config", path, f"has more than {MAX_BYTES} bytes, which no configuration needs")
        return tomllib.loads(data.decode())
    except OSError as error:
        raise InvalidInput("--config", path, f"cannot be read: {error.strerror}") from None
    except ValueError as error:  # tomllib's own, and what is no UTF-8
        raise InvalidInput("--config", path, f"is no TOML: {error}") from None


def _settings(
    path: str, table: str, values: Mapping[str, Any], known: set[str] | None, whose: str
) -> dict[str, Setting]:
    """By key; `known` = None takes any."""
    found: dict[str, Setting] = {}
    for name, value in values.items():
        key, where = name.replace("_", "-"), f"{path}: {table}{name}"
        if known is not None and key not in known:
            raise InvalidInput(where, value, f"is no option{whose}; {did_you_mean(key, known)}See --help")
        if key in found:
            raise InvalidInput(where, value, f"stands there twice, once as {found[key].where}; give it once")
        found[key] = Setting(where, _texts(where, value))
    return found


def _texts(where: str, value: Any) -> tuple[str, ...]:
    if isinstance(value, list):
        return tuple(text for item in value for text in _texts(where, item))
    if isinstance(value, bool):
        return ("true" if value else "false",)
    if isinstance(value, str | int | float):
        return (str(value),)
    raise InvalidInput(where, value, "must be a text, a number, true or false, or a list of these")


def written(command: str, rows: Sequence[tuple[Option, Any, str]]) -> str:
    """A file that says what `rows` say, with where each value came from; what is not set is commented out."""
    lines = [f"[{_dotted(command)}]"]
    for option, value, source in rows:
        key = option.keys[0]
        if option.name in SECRETS and value is not None:
            lines.append(f"# {key} = …  # {source}; a secret is not printed")
        elif source == "default" and (value is None or value == ()):
            about = "required" if option.required else option.default_text or "not set"
            lines.append(f"# {key} =  # {about}")
        else:
            lines.append(f"{key} = {_toml(option.none_text if value is None else value)}  # {source}")
    return "\n".join(lines)


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return str(value)
    if isinstance(value, tuple):
        items = [":".join(map(str, item)) if isinstance(item, tuple) else item for item in value]
        return f"[{', '.join(map(_toml, items))}]"
    return json.dumps("auto" if value is None else str(value), ensure_ascii=False)
