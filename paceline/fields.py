"""How the fields of a message cross between a dataclass and its protobuf twin, and what is checked on the way in.

The machinery of `paceline.codec`, which holds the table. `to` trusts its value; `of` is given the field's full name
and raises `InvalidInput` with it, because what comes from a wire is believed only as far as it was checked.
"""

from __future__ import annotations

import dataclasses
import re
import struct
from collections.abc import Callable, Iterable, Mapping
from enum import Enum
from operator import attrgetter
from typing import Any, Generic, NamedTuple, TypeVar

from paceline.errors import InvalidInput, PeerFault
from paceline.types import Tokens

MAX_MS = 1e7  # some three hours: no pass takes so long, and no arithmetic on such numbers overflows

T = TypeVar("T")
E = TypeVar("E", bound=Enum)


def tokens_to_wire(token_ids: Iterable[int]) -> bytes:
    """Little-endian uint32."""
    token_ids = tuple(token_ids)
    return struct.pack(f"<{len(token_ids)}I", *token_ids)


def tokens_from_wire(field: str, data: bytes, low: int = 0, high: int = 2**32) -> Tokens:
    """`low` to `high` token ids. Raises `InvalidInput`."""
    num, rest = divmod(len(data), 4)
    if rest:
        raise InvalidInput(field, f"{len(data)} bytes", "must be whole little-endian uint32, 4 bytes each")
    if not low <= num <= high:
        upper = f" to {high}" if high < 2**32 else " or more"
        raise InvalidInput(field, f"{num} tokens", f"must be {low}{upper} tokens")
    return struct.unpack(f"<{num}I", data)


class Field(NamedTuple):
    """How one field's value crosses: `to(value)` and `of(field_name, wire_value)`."""

    to: Callable[[Any], Any]
    of: Callable[[str, Any], Any]


def same(value: Any) -> Any:
    return value


def as_it_is(_field: str, value: Any) -> Any:
    return value


COPY = Field(same, as_it_is)


class Message(Generic[T]):
    """A dataclass and its protobuf twin, whose fields have the same names.

    `special` says how a field crosses; the others are copied, since protobuf itself bounds them. Fields whose
    default is None may be absent. `check(name, value)` sees the whole, for bounds across fields.
    """

    def __init__(
        self,
        name: str,
        kind: Callable[..., T],
        wire: Callable[..., Any],
        check: Callable[[str, T], None] | None = None,
        **special: Field,
    ) -> None:
        self._name, self._kind, self._wire, self._check = name, kind, wire, check
        self._to, self._of = [], []
        for field in dataclasses.fields(kind):  # type: ignore[arg-type]
            key, get = field.name, attrgetter(field.name)
            way = special.pop(key, COPY)
            self._to.append((key, get, way.to))
            self._of.append((key, f"{name}.{key}", get, way.of, field.default is None))
        if special:
            raise TypeError(f"{name} has no field {', '.join(special)}")

    def to_wire(self, value: T) -> Any:
        return self._wire(**self.plain(value))

    def plain(self, value: T) -> dict[str, Any]:
        """What to make the protobuf message of, by field; a message inside it is such a dict too."""
        values = {}
        for key, get, to in self._to:
            plain = get(value)
            if plain is not None:
                values[key] = plain if to is same else to(plain)
        return values

    def from_wire(self, wire: Any) -> T:
        given: list[Any] = []
        for key, label, get, of, is_optional in self._of:
            if is_optional and not wire.HasField(key):
                given.append(None)
            else:
                given.append(get(wire) if of is as_it_is else of(label, get(wire)))
        value = self._kind(*given)
        if self._check:
            self._check(self._name, value)
        return value

    @property
    def field(self) -> Field:
        """This message inside another."""
        return Field(self.plain, lambda _, wire: self.from_wire(wire))


class EnumField(Generic[E]):
    """A StrEnum and its protobuf twin, whose names carry the enum's name as a prefix; 0 is *unspecified*."""

    def __init__(self, field: str, kind: type[E], wire: Any) -> None:
        self._field = field
        self._to = {member: wire.Value(f"{field.upper()}_{member.name}") for member in kind}
        self._of = {number: member for member, number in self._to.items()}

    def to_wire(self, value: E | None) -> Any:
        return 0 if value is None else self._to[value]

    def from_wire(self, field: str, number: int) -> E:
        member = self._of.get(number)
        if member is None:
            names = ", ".join(f"{number}={member.value}" for number, member in self._of.items())
            raise InvalidInput(field, number, f"must be one of {names}")
        return member

    def or_none(self, number: int) -> E | None:
        """None for *unspecified*, which a client's request reads as auto."""
        return self.from_wire(self._field, number) if number else None

    def all_to_wire(self, values: Iterable[E]) -> list[int]:
        return [self._to[value] for value in values]

    def all_from_wire(self, field: str, numbers: Iterable[int]) -> tuple[E, ...]:
        """Of a repeated field."""
        known = self._of
        return tuple([known[number] if number in known else self.from_wire(field, number) for number in numbers])

    @property
    def field(self) -> Field:
        return Field(self._to.__getitem__, self.from_wire)


def integer(low: int, high: int) -> Field:
    def of(field: str, value: int) -> int:
        if not low <= value <= high:
            raise InvalidInput(field, value, f"must be from {low} to {high}")
        return value

    return Field(same, of)


def string(low: int, high: int, cut: bool = False) -> Field:
    def of(field: str, value: str) -> str:
        if not low <= len(value) <= high:
            raise InvalidInput(field, value, f"must be {low} to {high} characters")
        return value

    return Field((lambda value: value[:high]) if cut else same, of)


def matching(pattern: str, meaning: str) -> Field:
    def of(field: str, value: str) -> str:
        if not re.fullmatch(pattern, value):
            raise InvalidInput(field, value, f"must be {meaning}")
        return value

    return Field(same, of)


def tokens(low: int = 0, high: int = 2**32) -> Field:
    return Field(tokens_to_wire, lambda field, data: tokens_from_wire(field, data, low, high))


def milliseconds(field: str, value: float) -> float:
    """What one process says that its work took: a number whose sums and products stay numbers too."""
    if not 0 <= value <= MAX_MS:
        raise InvalidInput(field, value, f"must be a number of milliseconds from 0 to {MAX_MS:g}")
    return value


class OneOf(Generic[T]):
    """The envelope of a stream: exactly one of its messages."""

    def __init__(self, oneof: str, wire: Callable[..., Any], arms: Mapping[str, tuple[type, Message[Any]]]):
        self._oneof, self._wire = oneof, wire
        self._to = {kind: (arm, message) for arm, (kind, message) in arms.items()}
        self._of = {arm: message for arm, (_, message) in arms.items()}

    def to_wire(self, value: T) -> Any:
        arm, message = self._to[type(value)]
        return self._wire(**{arm: message.plain(value)})

    def from_wire(self, wire: Any) -> T:
        arm = wire.WhichOneof(self._oneof)
        if arm is None:
            raise InvalidInput(self._oneof, None, f"must be one of {', '.join(self._of)}")
        value: T = self._of[arm].from_wire(getattr(wire, arm))
        return value

    def blaming_the_peer(self, wire: Any) -> T:
        """`from_wire`, for the answers that another process sends us."""
        try:
            return self.from_wire(wire)
        except InvalidInput as error:
            raise PeerFault(f"the peer's {self._oneof} is malformed: {error}") from error
