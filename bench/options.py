"""What the benchmarks' options share: lists of values in one word."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Sequence


def numbers(text: str) -> tuple[float, ...]:
    return tuple(float(item) for item in filter(None, text.split(",")))


def integers(text: str) -> tuple[int, ...]:
    return tuple(int(item) for item in filter(None, text.split(",")))


def positive(text: str) -> float:
    """A number over 0."""
    if (value := float(text)) > 0:
        return value
    raise argparse.ArgumentTypeError(f"{text} must be over 0")


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
        given = tuple(filter(None, text.split(",")))
        if wrong := [name for name in given if name not in valid]:
            raise argparse.ArgumentTypeError(f"{wrong[0]} is unknown; choose from {', '.join(valid)}")
        return given

    return parse
