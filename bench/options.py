"""What the benchmarks' options share: a parser that refuses as the commands' does, and lists of values in one word.

An option has an environment twin, `--num-prompts` PACELINE_BENCH_NUM_PROMPTS, and a place in a TOML file's table
[bench.NAME]: names of their own, since what is set for a server that runs beside (PACELINE_MODE) must not change what
a benchmark measures.
"""

from __future__ import annotations

import argparse
import math
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, NoReturn

from deploy import config_file
from deploy.options import CONFIG
from paceline.errors import InvalidInput, UsageError, did_you_mean

TWIN = "PACELINE_BENCH_"


class Parser(argparse.ArgumentParser):
    """The options of `paceline bench NAME`. What is wrong is one line that names the option, the value and the fix."""

    def __init__(self, name: str, about: str | None, epilog: str = "", environ: Mapping[str, str] = os.environ) -> None:
        twins = (
            f"Each option may be given as an environment variable too (--some-option is {TWIN}SOME_OPTION), or in a "
            f"TOML file's\ntable [bench.{name}]: the option wins over the variable, and that over the file."
        )
        super().__init__(
            prog=f"paceline bench {name}",
            description=about,
            epilog="\n\n".join(filter(None, (epilog, twins))),
            formatter_class=_Formatter,
            allow_abbrev=False,  # an abbreviation that works today is ambiguous after the next release
        )
        self._name, self._environ = name, environ
        self._from: dict[str, str] = {}  # where a value came from that is not on the command line, by its flag
        self.add_argument(CONFIG, metavar="FILE", help="TOML file with options by their names without dashes")

    def add_json(self, about: str = "write the figures there") -> None:
        """`--json FILE`, which means the same in every benchmark; `bench.output` writes the file."""
        about += "; without FILE, or with -, to standard output, and the tables to standard error"
        self.add_argument("--json", nargs="?", const="-", metavar="FILE", help=about)

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Flag, else environment, else file, else default. Raises InvalidInput; SystemExit after --help."""
        given = list(sys.argv[1:] if args is None else args)
        given = [*self._from_environment(given), *given]
        values, unknown = self.parse_known_args([*self._from_file(given), *given], namespace)
        del values.config  # no part of what is measured
        if unknown:
            flag = next((word for word in unknown if word.startswith("-")), unknown[0]).partition("=")[0]
            hint = did_you_mean(flag, [flag for action in self._actions for flag in action.option_strings])
            raise UsageError(f"{flag}: unknown option; {hint}see {self.prog} --help")
        return values

    def error(self, message: str) -> NoReturn:
        text = message.removeprefix("argument ")
        if found := re.fullmatch(r"(\S+): invalid choice: '?(.*?)'? \(choose from (.*)\)", text):
            flag, value, valid = found[1], found[2], [word.strip(" '") for word in found[3].split(",")]
            text = f"{flag}={value!r}: unknown; {did_you_mean(value, valid)}Choose from {', '.join(valid)}"
        source = self._from.get(text.partition(":")[0].partition("=")[0].partition("/")[0])
        raise UsageError(f"{text}{f' (from {source})' if source else ''}; see {self.prog} --help")

    def _from_environment(self, given: Sequence[str]) -> Iterator[str]:
        """The words that the variables stand for, of options that are not given."""
        words = {word.partition("=")[0] for word in given}
        for action in self._actions:
            flags = [flag for flag in action.option_strings if flag.startswith("--")]
            if not flags or isinstance(action, argparse._HelpAction) or words & set(action.option_strings):
                continue
            for flag in flags:
                name = TWIN + flag.removeprefix("--").replace("-", "_").upper()
                if text := self._environ.get(name):
                    self._from[action.option_strings[0]] = name
                    yield from _words(flag, text.split() if _is_list(action) else [text], action, name)
                    break

    def _from_file(self, given: Sequence[str]) -> Iterator[str]:
        """The words that the file's table stands for, of options that are not given. Raises InvalidInput."""
        path = _last(CONFIG, given)
        words = {word.partition("=")[0] for word in given}
        for key, setting in (config_file.read_benchmark(path, self._name) if path else {}).items():
            action = self._option_string_actions.get(flag := f"--{key}")
            if action is None or flag in ("--help", CONFIG):
                hint = did_you_mean(flag, [flag for action in self._actions for flag in action.option_strings])
                raise InvalidInput(
                    setting.where, ",".join(setting.texts), f"is no option; {hint}See {self.prog} --help"
                )
            if not words & set(action.option_strings):
                self._from[action.option_strings[0]] = setting.where
                yield from _words(flag, setting.texts, action, setting.where)


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Keeps the line breaks that a help text has, and adds those that it needs."""

    def _split_lines(self, text: str, width: int) -> list[str]:
        return [piece for line in text.splitlines() for piece in super(_Formatter, self)._split_lines(line, width)]


def _last(flag: str, words: Sequence[str]) -> str:
    """The value that `flag` has at the end; empty without one."""
    found = ""
    for word, after in pairwise([*words, ""]):
        name, is_pair, value = word.partition("=")
        if name == flag:
            found = value if is_pair else after
    return found


def _is_list(action: argparse.Action) -> bool:
    return action.nargs in ("+", "*")


def _words(flag: str, texts: Sequence[str], action: argparse.Action, name: str) -> Sequence[str]:
    if action.nargs == 0:
        if (text := ",".join(texts).lower()) not in ("1", "true", "yes", "on", "0", "false", "no", "off"):
            raise UsageError(f"{name}={','.join(texts)!r}: write 1 or 0")
        return (flag,) if text in ("1", "true", "yes", "on") else ()
    if isinstance(action, argparse._AppendAction):
        return [f"{flag}={text}" for text in texts]
    return (flag, *texts) if _is_list(action) else (f"{flag}={','.join(texts)}",)


def numbers(text: str) -> tuple[float, ...]:
    return tuple(float(item) for item in filter(None, text.split(",")))


def integers(text: str) -> tuple[int, ...]:
    return tuple(int(item) for item in filter(None, text.split(",")))


def positive(text: str) -> float:
    """A number over 0."""
    if math.isfinite(value := _number(text)) and value > 0:
        return value
    raise argparse.ArgumentTypeError(f"{text} must be over 0")


def values(low: float, high: float) -> Callable[[str], tuple[float, ...]]:
    """At least one number from `low` to `high`, comma separated."""

    def parse(text: str) -> tuple[float, ...]:
        found = tuple(map(_number, filter(None, text.split(","))))
        if found and all(low <= value <= high for value in found):
            return found
        raise argparse.ArgumentTypeError(f"{text!r} must be numbers from {low:g} to {high:g}, such as {low:g},{high:g}")

    return parse


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text} must be a number") from None


def count(low: int) -> Callable[[str], int]:
    """A whole number from `low` on."""

    def parse(text: str) -> int:
        if re.fullmatch(r"\d{1,9}", text) and int(text) >= low:
            return int(text)
        raise argparse.ArgumentTypeError(f"{text} must be a whole number from {low} on")

    return parse


def names(valid: Sequence[str]) -> Callable[[str], tuple[str, ...]]:
    """Some of `valid`, comma separated."""

    def parse(text: str) -> tuple[str, ...]:
        given = tuple(dict.fromkeys(filter(None, text.split(","))))
        if not given:
            raise argparse.ArgumentTypeError(f"{text!r} names nothing; choose from {', '.join(valid)}")
        if wrong := [name for name in given if name not in valid]:
            hint = did_you_mean(wrong[0], valid)
            raise argparse.ArgumentTypeError(f"{wrong[0]} is unknown; {hint}choose from {', '.join(valid)}")
        return given

    return parse


def counts(text: str) -> tuple[int, ...]:
    """Whole numbers from 1 on, comma separated: draft lengths, clients at a time."""
    return tuple(map(count(1), filter(None, text.split(",")))) or (count(1)(text),)


def dtype(text: str) -> str:
    """A type of numbers; `auto` is the one in which this machine's CPU is fast, so that a report says which it was."""
    if text != "auto":
        if text not in ("float32", "bfloat16"):
            raise argparse.ArgumentTypeError(f"{text}: unknown; choose from auto, float32, bfloat16")
        return text
    from paceline.engine.dtype import fastest  # torch

    return fastest("cpu")
