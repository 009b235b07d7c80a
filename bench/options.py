"""What the benchmarks' options share: lists of values in one word."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Callable, Sequence


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
            raise argparse.ArgumentTypeError(f"{wrong[0]} is unknown; choose from {', '.join(valid)}")
        return given

    return parse


def counts(text: str) -> tuple[int, ...]:
    """Whole numbers from 1 on, comma separated: draft lengths, clients at a time."""
    return tuple(map(count(1), filter(None, text.split(",")))) or (count(1)(text),)
