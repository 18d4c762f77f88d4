"""What most events have in common with others: all that does not differ from one packet of a flow to the next at one place.
It is made once."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tracer.model.layout import ALIKE, EVENT, Event

KEPT = 1 << 12
FIRST = "QQQQQ"  # time, skb, journey, caller, conntrack: in front of a form
PADDING = bytes(2)
Form = tuple[tuple[Any, ...], tuple[Any, ...]]  # what stands in front of an event's packet, and behind it
_new = tuple.__new__  # without the arguments' names, which take their time

assert EVENT.format.startswith(f"={FIRST}")


def made(first: tuple[Any, ...], form: Form, packet: bytes) -> Event:
    """The event of its first members, its form and its packet."""
    return _new(Event, first + form[0] + (packet,) + form[1])


class Forms:
    """Those that are known, by the bytes that they were read from; no more than KEPT of them."""

    def __init__(self) -> None:
        self._known: dict[bytes, Form] = {}
        self._likes: dict[tuple[Any, ...], object] = {}
        self.get = self._known.get

    def add(self, key: bytes | None, members: Iterable[Any], stack: tuple[str, ...], tuples: bytes) -> Form:
        """`members`: from netns to name. Without a key it is made, and not kept."""
        members = tuple(members)
        for kept in (self._known, self._likes):
            if len(kept) >= KEPT:
                kept.clear()
        alike = ALIKE(Event._make((0, 0, 0, 0, 0, *members, b"", PADDING, stack, tuples, None)))
        form = members, (PADDING, stack, tuples, self._likes.setdefault(alike, object()))
        if key is not None:
            self._known[key] = form
        return form
