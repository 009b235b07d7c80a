"""Which length policies exist, what their parameters are, and how one is written.

A policy decides when to stop drafting. It is data: a name and parameters, in a request, a flag or a config file, as
`NAME` or `NAME:key=value,…`. What each does is in `drafter/policies`, one file each; the table stands here because
the coordinator must refuse an unknown one at the door.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass

from paceline.errors import InvalidInput


@dataclass(frozen=True, slots=True)
class Parameter:
    """A parameter's default and its range, both ends included."""

    default: float
    low: float
    high: float
    is_integer: bool = False


POLICIES: Mapping[str, Mapping[str, Parameter]] = {
    "fixed": {"length": Parameter(8, 1, 64, is_integer=True)},
    # Zhang et al. 2024 stop after a token whose row's entropy H has sqrt(0.15 H) > 0.3: H > 0.6 nats, cap 40.
    "svip": {
        "threshold_nats": Parameter(0.6, 0, 20),
        "max_length": Parameter(40, 1, 64, is_integer=True),
    },
}


@dataclass(frozen=True, slots=True)
class LengthPolicy:
    """A policy's name with every parameter spelled out, in the order of the table."""

    name: str = "fixed"
    parameters: tuple[tuple[str, float], ...] = (("length", 8),)

    @classmethod
    def of(cls, name: str, given: Mapping[str, float]) -> LengthPolicy:
        """The policy `name` with `given` parameters, the others at their defaults. Raises `InvalidInput`."""
        table = POLICIES.get(name)
        if table is None:
            raise InvalidInput("length_policy", name, f"unknown; the policies are {', '.join(sorted(POLICIES))}")
        for key, value in given.items():
            _check(name, key, value)
        return cls(name, tuple((key, given.get(key, p.default)) for key, p in table.items()))

    @classmethod
    def parse(cls, text: str) -> LengthPolicy:
        """Read `NAME` or `NAME:key=value,…`, for example `svip:threshold_nats=0.6`. Raises `InvalidInput`."""
        name, _, rest = text.partition(":")
        given: dict[str, float] = {}
        for item in filter(None, rest.split(",")):
            key, _, number = item.partition("=")
            try:
                given[key.strip()] = float(number)
            except ValueError:
                fix = "write NAME:key=value,… with a number after each '='"
                raise InvalidInput("length_policy", item, fix) from None
        return cls.of(name.strip(), given)

    def __getitem__(self, key: str) -> float:
        return dict(self.parameters)[key]

    def __str__(self) -> str:
        return f"{self.name}:" + ",".join(f"{key}={value:g}" for key, value in self.parameters)


def _check(name: str, key: str, value: float) -> None:
    table = POLICIES[name]
    field = f"length_policy {name}:{key}"
    parameter = table.get(key)
    if parameter is None:
        near = difflib.get_close_matches(key, table, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise InvalidInput(field, value, f"unknown parameter; {hint}{name} has {', '.join(table)}")
    if not (math.isfinite(value) and parameter.low <= value <= parameter.high):
        raise InvalidInput(field, value, f"must be from {parameter.low:g} to {parameter.high:g}")
    if parameter.is_integer and value != int(value):
        raise InvalidInput(field, value, "must be a whole number")
