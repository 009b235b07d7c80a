"""Dataclasses to plain values and back: what a file may hold, and nothing that a file could make us run.

A dataclass becomes a map of its fields with its class's name under "is"; enums become their values, tuples lists,
errors their class and text. On the way back the *type hints* say what is built; a file only chooses among the members
of a union that we wrote down.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar, cast

from paceline.errors import InvalidInput

T = TypeVar("T")
IS = "is"


def to_plain(value: object, *, without: tuple[type, ...] = ()) -> Any:
    """`value` as None, bool, int, float, str, bytes, list or dict.

    Instances of `without` become None, and fields that begin with `_` are left out.
    """
    if isinstance(value, enum.Enum):
        return value.value
    if value is None or isinstance(value, without):
        return None
    if isinstance(value, bool | int | float | str | bytes):
        return value
    if isinstance(value, Mapping):
        return {str(to_plain(key)): to_plain(item, without=without) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [to_plain(item, without=without) for item in value]
    if isinstance(value, Exception):
        return {IS: type(value).__name__, "message": str(value)}
    if dataclasses.is_dataclass(value):
        fields = {name: to_plain(getattr(value, name), without=without) for name in _public(cast(type, type(value)))}
        return {IS: type(value).__name__, **fields}
    raise TypeError(f"{type(value).__name__} has no plain form")


@functools.cache
def _public(kind: type) -> tuple[str, ...]:
    return tuple(field.name for field in dataclasses.fields(kind) if not field.name.startswith("_"))


def from_plain(kind: type[T], value: Any) -> T:
    """The `kind` that `value` describes. Raises InvalidInput if it does not describe one."""
    try:
        return cast(T, _build(kind, value))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        name = getattr(kind, "__name__", str(kind))
        raise InvalidInput(name, value, f"is not what it should be: {error}") from None


def _build(hint: Any, value: Any) -> Any:
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return _choose(typing.get_args(hint), value)
    if origin is tuple:
        inner = typing.get_args(hint)
        if len(inner) == 2 and inner[1] is Ellipsis:
            return tuple(_build(inner[0], item) for item in value)
        return tuple(_build(each, item) for each, item in zip(inner, value, strict=True))
    if dataclasses.is_dataclass(hint):
        if value[IS] != cast(type, hint).__name__:
            raise ValueError(f"{value[IS]} instead of {cast(type, hint).__name__}")
        hints = _hints(cast(type, hint))
        return cast(Any, hint)(**{name: _build(hints[name], item) for name, item in value.items() if name != IS})
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return hint(value)
    if hint is float and type(value) is int:
        return float(value)
    if hint is Any or type(value) is hint:
        return value
    raise TypeError(f"{type(value).__name__} instead of {getattr(hint, '__name__', hint)}")


def _choose(members: tuple[Any, ...], value: Any) -> Any:
    if value is None and type(None) in members:
        return None
    for member in members:
        if dataclasses.is_dataclass(member):
            if isinstance(value, dict) and value.get(IS) == cast(type, member).__name__:
                return _build(member, value)
        elif isinstance(member, type) and issubclass(member, Exception):
            if isinstance(value, dict):
                return _error(member, value)
        elif member is not type(None) and not isinstance(value, dict):
            return _build(member, value)
    raise ValueError(f"none of {', '.join(getattr(member, '__name__', str(member)) for member in members)}")


def _error(kind: type[Exception], value: dict[str, Any]) -> Exception:
    """The error of `kind`, or of a class derived from it, with the text that it had."""
    kinds = [kind]
    for each in kinds:
        kinds += each.__subclasses__()
    found = {each.__name__: each for each in kinds}[value[IS]]
    return found.__new__(found, _build(str, value["message"]))  # `__init__` would compose the text from its parts


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind)
