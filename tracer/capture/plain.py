"""Data classes and named tuples as JSON and back, led by their types; what does not fit its type is a ValueError or a
TypeError."""

from __future__ import annotations

import json
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import is_dataclass
from enum import Enum
from functools import cache
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network
from typing import Any

ADDRESSES = (IPv4Address, IPv6Address, IPv4Interface, IPv6Interface, IPv4Network, IPv6Network)


def to_json(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def from_json(data: bytes) -> Any:
    try:
        return json.loads(data)
    except RecursionError as error:
        raise ValueError("JSON of too many levels") from error


def plain(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value.value if isinstance(value, Enum) else value
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, ADDRESSES):
        return str(value)
    if has_members(type(value)):
        kind: Any = type(value)
        return {name: plain(getattr(value, name)) for name in _hints(kind)}
    if isinstance(value, Mapping):  # pairs: keys are no strings
        return [[plain(key), plain(item)] for key, item in value.items()]
    return [plain(item) for item in (sorted(value) if isinstance(value, frozenset) else value)]


def has_members(kind: Any) -> bool:
    return is_dataclass(kind) or hasattr(kind, "_fields")


@cache
def _hints(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def members(given: Any, kind: type) -> dict[str, Any]:
    """Those members of a data class that the JSON has."""
    _of(given, dict)
    return {name: typed(given[name], hint) for name, hint in _hints(kind).items() if name in given}


def typed(value: Any, kind: Any) -> Any:
    """`value` of the JSON as a `kind`: data class, tuple, frozenset, mapping, union, address, bytes, enum, or what JSON has.
    Members that the class lacks are left out, those that it has a default for may be missing."""
    if has_members(kind):
        return kind(**members(value, kind))
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return _one_of(value, arguments)
    if origin is frozenset:
        return frozenset(typed(item, arguments[0]) for item in _of(value, list))
    if origin is Sequence or (origin is tuple and arguments[-1] is ...):
        return tuple(typed(item, arguments[0]) for item in _of(value, list))
    if origin is tuple:
        return tuple(typed(item, a) for item, a in zip(_of(value, list), arguments, strict=True))
    if origin is not None and issubclass(origin, Mapping):
        return {typed(key, arguments[0]): typed(item, arguments[1]) for key, item in _of(value, list)}
    if kind is bytes:
        return bytes.fromhex(_of(value, str))
    if kind in ADDRESSES:
        return kind(_of(value, str))
    if kind is float:
        return float(_of(value, int | float))
    if kind is int and isinstance(value, bool):
        raise TypeError("a truth value is no number")
    return kind(value) if issubclass(kind, Enum) else _of(value, kind)


def _of(value: Any, kind: Any) -> Any:
    if not isinstance(value, kind):
        raise TypeError(f"{type(value).__name__} where {kind} belongs")
    return value


def _one_of(value: Any, kinds: tuple[Any, ...]) -> Any:
    for kind in kinds:
        if kind is type(None):
            if value is None:
                return None
            continue
        try:
            return typed(value, kind)
        except (ValueError, TypeError):
            pass
    raise ValueError("no such alternative")
