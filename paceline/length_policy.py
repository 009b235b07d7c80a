"""Which length policies exist, what their parameters are, and how one is written.

A policy decides when to stop drafting. It is data: a name and parameters, in a request, a flag or a config file, as
`NAME` or `NAME:key=value,…`. What each does is in `drafter/policies`, one file each; the table stands here because
the coordinator must refuse an unknown one at the door.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from paceline.errors import InvalidInput, did_you_mean


@dataclass(frozen=True, slots=True)
class Parameter:
    """A parameter's default and its range, both ends included."""

    default: float
    low: float
    high: float
    is_integer: bool = False


POLICIES: Mapping[str, Mapping[str, Parameter]] = {
    # Agrawal et al. 2024 give gamma, alpha, epsilon and both betas, and longest drafts of 3, 7 and 16. Where the
    # threshold starts they sweep, from 0.3 to 0.9; 0.5 at gamma 0.2 stops above 1.25 nats.
    "adaedl": {
        "threshold": Parameter(0.5, 0, 1),
        "entropy_factor": Parameter(0.2, 0.001, 10),
        "target_acceptance": Parameter(0.9, 0, 1),
        "step": Parameter(0.01, 0, 1),
        "acceptance_memory": Parameter(0.5, 0, 1),
        "threshold_memory": Parameter(0.9, 0, 1),
        "max_length": Parameter(16, 1, 64, is_integer=True),
    },
    # transformers: assistant_confidence_threshold and num_assistant_tokens.
    "confidence": {
        "threshold": Parameter(0.4, 0, 1),
        "max_length": Parameter(20, 1, 64, is_integer=True),
    },
    "fixed": {"length": Parameter(8, 1, 64, is_integer=True)},
    # Huang et al. 2024 draft at most 20. Their thresholds (0.3 in one file, 0.7 in another) hold for one pair of
    # models: 0 takes the one that was calibrated with the head for a target's pass of `cost_ratio` draft steps.
    "specdecpp": {
        "threshold": Parameter(0, 0, 1),
        "cost_ratio": Parameter(12, 1, 1000),
        "max_length": Parameter(20, 1, 64, is_integer=True),
    },
    # Zhang et al. 2024 stop after a token whose row's entropy H has sqrt(0.15 H) > 0.3: H > 0.6 nats, cap 40.
    "svip": {
        "threshold_nats": Parameter(0.6, 0, 20),
        "max_length": Parameter(40, 1, 64, is_integer=True),
    },
}

# Those that need a trained acceptance head beside the draft model.
NEED_HEAD = frozenset({"specdecpp"})


def offered(*, has_head: bool) -> tuple[str, ...]:
    """The policies of a drafter with or without an acceptance head, in alphabetical order."""
    return tuple(sorted(name for name in POLICIES if has_head or name not in NEED_HEAD))


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

    @property
    def max_length(self) -> int:
        """Tokens of the longest draft that it lets be."""
        given = dict(self.parameters)
        return int(given.get("max_length", given.get("length", 1)))

    def capped(self, max_length: int | None) -> LengthPolicy:
        """The same with drafts of `max_length` tokens at most; None = as it is."""
        if max_length is None or max_length >= self.max_length:
            return self
        cap = "max_length" if "max_length" in dict(self.parameters) else "length"
        return LengthPolicy.of(self.name, {**dict(self.parameters), cap: max_length})

    def __getitem__(self, key: str) -> float:
        return dict(self.parameters)[key]

    def __str__(self) -> str:
        return f"{self.name}:" + ",".join(f"{key}={value:g}" for key, value in self.parameters)


def _check(name: str, key: str, value: float) -> None:
    table = POLICIES[name]
    field = f"length_policy {name}:{key}"
    parameter = table.get(key)
    if parameter is None:
        raise InvalidInput(field, value, f"unknown parameter; {did_you_mean(key, table)}{name} has {', '.join(table)}")
    if not (math.isfinite(value) and parameter.low <= value <= parameter.high):
        raise InvalidInput(field, value, f"must be from {parameter.low:g} to {parameter.high:g}")
    if parameter.is_integer and value != int(value):
        raise InvalidInput(field, value, "must be a whole number")
