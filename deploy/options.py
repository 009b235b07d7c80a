"""Command-line options, each said once: flag > environment > file > default.

An `Option` is the one place that knows a thing's name, type, default and meaning. Its flag, its environment twin
(`--some-option`, PACELINE_SOME_OPTION), its key in a TOML file (`some-option`), the help, `--print-config` and the
completions of shells are made from it. Whatever is wrong is said in one line that names the option as the user wrote
it, the value, and the fix; `deploy.cli` turns it into exit code 2.
"""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, NoReturn

from deploy import config_file
from paceline.errors import InvalidInput, did_you_mean
from paceline.errors import UsageError as UsageError  # every command's
from paceline.length_policy import POLICIES, LengthPolicy
from paceline.types import Mode, Rule

Kind = Callable[[str], Any]  # text to value; raises ValueError with the fix as its text
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}
CONFIG, CONFIG_TWIN = "--config", "PACELINE_CONFIG"
DEFAULT = "default"

# Where the values of the command that runs came from, by flag: what goes wrong with one later is said with it.
_SOURCES: ContextVar[Mapping[str, str] | None] = ContextVar("sources", default=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """One option of a command. `shown` is how the help writes the default; `many` values make a tuple."""

    flags: tuple[str, ...]  # the first is its name; the others are other programs' names for it
    kind: Kind
    help: str
    default: Any = None
    shown: str | None = None
    metavar: str | None = None
    required: bool = False
    many: bool = False

    @property
    def name(self) -> str:
        """The attribute that holds its value."""
        return self.flags[0].removeprefix("--").replace("-", "_")

    @property
    def keys(self) -> tuple[str, ...]:
        """Its names in a TOML file."""
        return tuple(flag.removeprefix("--") for flag in self.flags if flag.startswith("--"))

    @property
    def twins(self) -> tuple[str, ...]:
        return tuple("PACELINE_" + key.replace("-", "_").upper() for key in self.keys)

    @property
    def default_text(self) -> str:
        """How the help writes the default; empty for none."""
        if self.shown is not None:
            return self.shown
        return "" if self.default is None or self.default is False else f"{self.default}"

    @property
    def none_text(self) -> str:
        """What a user writes for the value None."""
        return "off" if self.kind is port_or_off else "auto"

    @property
    def about(self) -> str:
        """The help, with the default and the environment twins."""
        about = "required" if self.required else f"default {self.default_text}" if self.default_text else ""
        return f"{self.help} [{', '.join(filter(None, (about, *self.twins)))}]"


@dataclass(frozen=True, slots=True)
class Given:
    """An option's value, and where it came from: its flag, its environment twin, a file's key, or `DEFAULT`."""

    value: Any
    source: str


class _Argparse(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message.removeprefix('argument ')}; see {self.prog} --help")


class Parser:
    """One command's options. Add groups and options, then `parse`. `unoffered`: others' options, with what to do."""

    def __init__(self, command: str, description: str, unoffered: Mapping[str, str] | None = None) -> None:
        self.command = command
        self._unoffered = unoffered or {}
        self.options: list[Option] = []
        self._arguments: dict[str, str] = {}  # what stands without a flag: its name, and how the help writes it
        self._optional: set[str] = set()  # those of them that may be left out
        self.argparse = _Argparse(
            prog=f"paceline {command}",
            usage=f"paceline {command} [options]",
            description=description,
            epilog="Each option may be given as the environment variable in [brackets] too, or in a TOML file "
            f"({CONFIG} FILE, or {CONFIG_TWIN}): the option wins over the variable, and that over the file.",
            formatter_class=_formatter,
            allow_abbrev=False,  # an abbreviation that works today is ambiguous after the next release
        )
        file = self.argparse.add_argument_group("settings")
        file.add_argument(
            CONFIG, metavar="FILE", help=f"TOML file with options by their names without dashes [{CONFIG_TWIN}]"
        )
        file.add_argument(
            "--print-config",
            action="store_true",
            help="print every option's value and where it came from, as a TOML file, and do nothing else",
        )

    def argument(self, name: str, *, metavar: str, help: str, required: bool = True) -> None:
        """Add an argument that stands by itself, without a flag; None if it may be left out and is."""
        about = f"{help} [required]" if required else help
        self.argparse.add_argument(name, nargs="?", metavar=metavar, help=about)
        self._arguments[name] = metavar
        if not required:
            self._optional.add(name)
        shown = " ".join(f"[{word}]" if key in self._optional else word for key, word in self._arguments.items())
        self.argparse.usage = f"paceline {self.command} {shown} [options]"

    def group(self, title: str, description: str | None = None) -> Group:
        return Group(self.argparse.add_argument_group(title, description), self.options)

    def parse(self, argv: Sequence[str], environ: Mapping[str, str]) -> argparse.Namespace:
        """Every option's value. Raises InvalidInput; prints and raises SystemExit for --help and --print-config."""
        given, unknown = self.argparse.parse_known_args(argv)
        if unknown:
            self._refuse(unknown)
        path = given.config or environ.get(CONFIG_TWIN)
        settings = config_file.read(path, self.command) if path else {}
        found = {option: _find(option, given, environ, settings) for option in self.options}
        _SOURCES.set({option.flags[0]: one.source for option, one in found.items()})
        if given.print_config:
            print(config_file.written(self.command, [(option, one.value, one.source) for option, one in found.items()]))
            raise SystemExit(0)
        values = argparse.Namespace()
        for name, metavar in self._arguments.items():
            if getattr(given, name) is None and name not in self._optional:
                raise UsageError(f"{metavar}: is required; see paceline {self.command} --help")
            setattr(values, name, getattr(given, name))
        for option, one in found.items():
            if option.required and one.source == DEFAULT:
                raise UsageError(f"{option.flags[0]}: is required; give it, or set {option.twins[0]}")
            setattr(values, option.name, one.value)
        return values

    def _refuse(self, unknown: Sequence[str]) -> NoReturn:
        worst = next((word for word in unknown if word.startswith("-")), unknown[0])
        flag = worst.partition("=")[0]
        if instead := self._unoffered.get(flag):
            raise UsageError(f"{flag}: is not offered: {instead}")
        hint = did_you_mean(flag, [flag for option in self.options for flag in option.flags])
        raise UsageError(f"{flag}: unknown option; {hint}see paceline {self.command} --help")


class Group:
    """A titled group of options in the help."""

    def __init__(self, group: Any, options: list[Option]) -> None:
        self._group, self._options = group, options

    def add(
        self,
        *flags: str,
        kind: Kind,
        help: str,
        default: Any = None,
        shown: str | None = None,
        metavar: str | None = None,
        required: bool = False,
        many: bool = False,
    ) -> None:
        """Add an option; the fields are `Option`'s."""
        option = Option(
            flags=flags,
            kind=kind,
            help=help,
            default=default,
            shown=shown,
            metavar=metavar,
            required=required,
            many=many,
        )
        self._options.append(option)
        text = option.about.replace("%", "%%")
        common: dict[str, Any] = {"dest": option.name, "default": argparse.SUPPRESS, "help": text}
        if kind is boolean:
            self._group.add_argument(*flags, action=argparse.BooleanOptionalAction, **common)
            return
        more = {"nargs": "+", "action": "extend"} if many else {}
        self._group.add_argument(*flags, type=_named(flags[0], kind), metavar=metavar, **common, **more)


def source_of(flag: str) -> str:
    """Where the running command's value of `flag` came from, if that was not the command line; else empty."""
    source = (_SOURCES.get() or {}).get(flag, "")
    return "" if source in (flag, DEFAULT) else source


def rank_of(flag: str) -> int:
    """By what the running command was given `flag`: 3 = itself, 2 = its environment twin, 1 = a file, 0 = nothing."""
    source = (_SOURCES.get() or {}).get(flag, DEFAULT)
    return 3 if source == flag else 2 if re.fullmatch(r"PACELINE_\w+", source) else 0 if source == DEFAULT else 1


def _formatter(prog: str) -> argparse.HelpFormatter:
    return argparse.RawDescriptionHelpFormatter(prog, max_help_position=30)


def _named(name: str, kind: Kind) -> Kind:
    """`kind`, with errors that name the option."""

    def parse(text: str) -> Any:
        try:
            return kind(text)
        except InvalidInput:
            raise
        except ValueError as error:
            raise InvalidInput(name, text, str(error)) from None

    return parse


def _find(
    option: Option, given: argparse.Namespace, environ: Mapping[str, str], settings: Mapping[str, config_file.Setting]
) -> Given:
    if hasattr(given, option.name):
        value = getattr(given, option.name)
        return Given(tuple(value) if option.many else value, option.flags[0])
    for name in option.twins:
        if environ.get(name):
            value = _named(name, option.kind)(environ[name])
            return Given((value,) if option.many else value, name)
    here = [settings[key] for key in option.keys if key in settings]
    if len(here) > 1:
        raise InvalidInput(here[1].where, here[1].texts[0], f"is another name for {option.keys[0]}; give it once")
    for setting in here:
        read = _named(setting.where, option.kind)
        if option.many:
            return Given(tuple(map(read, setting.texts)), setting.where)
        return Given(read(",".join(setting.texts)), setting.where)
    return Given(option.default, DEFAULT)


# Kinds: text to value.


def text(value: str) -> str:
    return value


def boolean(value: str) -> bool:
    word = value.strip().lower()
    if word in ("1", "true", "yes", "on"):
        return True
    if word in ("0", "false", "no", "off"):
        return False
    raise ValueError("write 1 or 0")


def whole(low: int, high: int = 2**31 - 1) -> Kind:
    def parse(value: str) -> int:
        # Kubernetes sets PACELINE_PORT to tcp://… in every pod beside a service that is named paceline.
        hint = "; Kubernetes sets it for a service of this name: enableServiceLinks: false" if "://" in value else ""
        fix = f"must be a whole number from {low} to {high}{hint}"
        if not re.fullmatch(r"[+-]?\d{1,19}", value):
            raise ValueError(fix)
        if not low <= (number := int(value)) <= high:
            raise ValueError(fix)
        return number

    return parse


def port_or_off(value: str) -> int | None:
    """A port, 0 for a free one; None for off."""
    if value == "off":
        return None
    try:
        port: int = whole(0, 65535)(value)
    except ValueError as error:
        raise ValueError(f"{error}, or off") from None
    return port


def number(low: float, high: float) -> Kind:
    def parse(value: str) -> float:
        try:
            parsed = float(value)
        except ValueError:
            parsed = math.nan
        if not low <= parsed <= high:
            raise ValueError(f"must be a number from {low:g} to {high:g}")
        return parsed

    return parse


def real(value: str) -> float:
    """Any float; whoever uses it checks the range."""
    try:
        return float(value)
    except ValueError:
        raise ValueError("must be a number") from None


def size(value: str) -> int:
    """Bytes from 1073741824, 1GiB, 512MB, 1.5G."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?I?)B?", value.strip().upper())
    if match is None or match[2] not in _UNITS or (num_bytes := int(float(match[1]) * _UNITS[match[2]])) < 1:
        raise ValueError("must be a size in bytes, such as 1GiB, 512MiB or 1073741824")
    return num_bytes


def choice(*valid: str) -> Kind:
    def parse(value: str) -> str:
        if value not in valid:
            raise ValueError(f"unknown; {did_you_mean(value, valid)}Choose from {', '.join(valid)}")
        return value

    return parse


def dtype(value: str) -> str:
    """A model's numbers, under vLLM's names too; its half is not offered."""
    if value in ("half", "float16"):
        raise ValueError("is not offered; did you mean bfloat16? It is as small, and has float32's range")
    name: str = choice("float32", "bfloat16", "auto")("float32" if value == "float" else value)
    return name


mode = choice("auto", *Mode)
rule = choice("auto", *Rule)


def auto_or(kind: Kind) -> Kind:
    """None for `auto`."""

    def parse(value: str) -> Any:
        if value == "auto":
            return None
        try:
            return kind(value)
        except ValueError as error:
            raise ValueError(f"{error}, or auto") from None

    return parse


def policy(value: str) -> LengthPolicy | None:
    """None for `auto`."""
    if value == "auto":
        return None
    name = value.partition(":")[0].strip()
    if name not in POLICIES:
        raise ValueError(f"unknown; {did_you_mean(name, POLICIES)}Choose from {', '.join(sorted(POLICIES))}")
    return LengthPolicy.parse(value)


def address(value: str) -> str:
    match = re.fullmatch(r"(\[[0-9A-Fa-f:.%\w]+\]|[^\s:/\[\]]+):(\d{1,5})", value)
    if match is None or not 1 <= int(match[2]) <= 65535:
        raise ValueError("must be HOST:PORT, such as 127.0.0.1:50051")
    return value


def addresses(value: str) -> tuple[str, ...]:
    return tuple(address(item.strip()) for item in value.split(","))


def hosts(value: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in value.split(","))
    if not all(re.fullmatch(r"[A-Za-z0-9*][A-Za-z0-9.:*-]{0,252}", name) for name in names):
        raise ValueError("must be host names and addresses, such as db.example.org,10.0.0.1")
    return names
