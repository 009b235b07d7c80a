"""Command-line options with environment twins: flag > environment > default.

Each `--some-option` may also be given as PACELINE_SOME_OPTION. Whatever is wrong is said in one line that names the
option as the user wrote it, the value, and the fix; `deploy.cli` turns it into exit code 2.
"""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from paceline.errors import InvalidInput, did_you_mean
from paceline.length_policy import POLICIES, LengthPolicy
from paceline.types import Mode, Rule

Kind = Callable[[str], Any]  # text to value; raises ValueError with the fix as its text
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}


class UsageError(InvalidInput):
    """The command line cannot be read; `text` says all that there is to say."""

    def __init__(self, text: str) -> None:
        Exception.__init__(self, text)
        self.field = "arguments"


@dataclass(frozen=True, slots=True)
class Option:
    flags: tuple[str, ...]
    kind: Kind
    default: Any
    is_required: bool
    takes_many: bool

    @property
    def name(self) -> str:
        """The attribute that holds its value."""
        return self.flags[0].removeprefix("--").replace("-", "_")

    @property
    def twins(self) -> tuple[str, ...]:
        return tuple(twin(flag) for flag in self.flags)


def twin(flag: str) -> str:
    """The environment variable of a flag: --max-num-seqs → PACELINE_MAX_NUM_SEQS."""
    return "PACELINE_" + flag.removeprefix("--").replace("-", "_").upper()


class _Argparse(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message.removeprefix('argument ')}; see {self.prog} --help")


class Parser:
    """One command's options. Add groups and options, then `parse`."""

    def __init__(self, command: str, description: str) -> None:
        self._command = command
        self._options: list[Option] = []
        self._arguments: dict[str, str] = {}  # what stands without a flag: its name, and how the help writes it
        self._parser = _Argparse(
            prog=f"paceline {command}",
            usage=f"paceline {command} [options]",
            description=description,
            epilog="Each option may be given as the environment variable in [brackets] too; the option wins.",
            formatter_class=_formatter,
            allow_abbrev=False,  # an abbreviation that works today is ambiguous after the next release
        )

    def argument(self, name: str, *, metavar: str, help: str) -> None:
        """Add a required argument that stands by itself, without a flag."""
        self._parser.add_argument(name, nargs="?", metavar=metavar, help=f"{help} [required]")
        self._arguments[name] = metavar
        self._parser.usage = f"paceline {self._command} {metavar} [options]"

    def group(self, title: str, description: str | None = None) -> Group:
        return Group(self._parser.add_argument_group(title, description), self._options)

    def parse(self, argv: Sequence[str], environ: Mapping[str, str]) -> argparse.Namespace:
        """Every option's value. Raises InvalidInput; prints the help and raises SystemExit for --help."""
        given, unknown = self._parser.parse_known_args(argv)
        if unknown:
            self._refuse(unknown)
        values = argparse.Namespace()
        for name, metavar in self._arguments.items():
            if getattr(given, name) is None:
                raise UsageError(f"{metavar}: is required; see paceline {self._command} --help")
            setattr(values, name, getattr(given, name))
        for option in self._options:
            setattr(values, option.name, _value(option, given, environ))
        return values

    def _refuse(self, unknown: Sequence[str]) -> NoReturn:
        worst = next((word for word in unknown if word.startswith("-")), unknown[0])
        flag = worst.partition("=")[0]
        hint = did_you_mean(flag, [flag for option in self._options for flag in option.flags])
        raise UsageError(f"{flag}: unknown option; {hint}see paceline {self._command} --help")


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
        """Add an option. `shown` is how the help writes the default; `many` values make a tuple."""
        option = Option(flags, kind, default, required, many)
        self._options.append(option)
        shown = shown if shown is not None else ("" if default is None or default is False else f"{default}")
        about = "required" if required else f"default {shown}" if shown else ""
        text = f"{help} [{', '.join(filter(None, (about, *option.twins)))}]".replace("%", "%%")
        common: dict[str, Any] = {"dest": option.name, "default": argparse.SUPPRESS, "help": text}
        if kind is boolean:
            self._group.add_argument(*flags, action=argparse.BooleanOptionalAction, **common)
            return
        more = {"nargs": "+", "action": "extend"} if many else {}
        self._group.add_argument(*flags, type=_named(flags[0], kind), metavar=metavar, **common, **more)


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


def _value(option: Option, given: argparse.Namespace, environ: Mapping[str, str]) -> Any:
    if hasattr(given, option.name):
        value = getattr(given, option.name)
        return tuple(value) if option.takes_many else value
    for name in option.twins:
        if environ.get(name):
            value = _named(name, option.kind)(environ[name])
            return (value,) if option.takes_many else value
    if option.is_required:
        raise UsageError(f"{option.flags[0]}: is required; give it, or set {option.twins[0]}")
    return option.default


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


mode = choice("auto", *Mode)
rule = choice("auto", *Rule)


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
