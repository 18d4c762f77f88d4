"""Packets of one flow take the same way: what the events of the first meant, the same events of the next mean as well, at
other times. Reading them anew costs several times as much.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from operator import itemgetter
from typing import Any

from tracer.journey.tracks import ROUTE, Track
from tracer.model.frame import ICMP, ICMPV6, IPV4, IPV6, TCP, UDP, frame
from tracer.model.journey import End, Hops, Journey
from tracer.model.layout import ALIKE, Event

KEPT = 1024
_new = tuple.__new__  # without the arguments' names, which take their time
_TIME, _CONNTRACK, _PACKET, _LIKE = map(itemgetter, map(Event._fields.index, ("time", "conntrack", "packet", "like")))
Ask = Callable[[int], Hashable]  # asked for a time, CLOCK_MONOTONIC ns


@dataclass(frozen=True, slots=True, eq=False)
class _Template:
    journey: Journey
    begun: int  # its time is that of this event, of all in the order of time; so are those of hops and end
    hops: tuple[int, ...]
    rest: tuple[tuple[Any, ...], ...]  # of the hops
    ended: int | None
    first: int  # the time of `begun` when it was made

    def again(self, times: Sequence[int], track: Track) -> Journey:
        begun, like, end = times[self.begun], self.journey, self.journey.end
        if self.ended is not None:
            end = _new(End, (*end[:-1], times[self.ended] - begun))
        hops = Hops([times[at] - begun for at in self.hops], self.rest)
        return Journey(track.number, track.packet, hops, end, like.kind, like.seq, like.source, like.target, like.parent,
                       like.wall_ns + begun - self.first, track.lost, track.lost == 0, frame=frame(track.events[0]))


@dataclass(slots=True, eq=False)
class _Way:
    """Of packets with events alike."""

    asks: list[tuple[int, Ask]]  # by the number of the event
    protocol: int | None  # of all events; None: there are several, or route lookups
    known: dict[Hashable, _Template | None] = field(default_factory=dict)

    def marks(self, events: Sequence[Event]) -> list[bytes | None]:
        """What the meaning of each event's packet depends on; None for one that may have a meaning of its own."""
        if self.protocol is None:
            return [e.packet[:64] if e.place == ROUTE else _headers(e.protocol, e.packet) for e in events]
        packets = list(map(_PACKET, events))  # the same at most places
        found = {packet: _headers(self.protocol, packet) for packet in set(packets)}
        return [found[packet] for packet in packets]


class Templates:
    """Of what was read in one context: another one, another set of templates."""

    def __init__(self) -> None:
        self._ways: dict[tuple[object, ...], _Way] = {}
        self._count = 0  # of templates
        self._context: tuple[object, ...] = ()

    def journey(self, track: Track, context: tuple[object, ...], asks: Callable[[Event], Ask | None],
                read: Callable[[], Journey]) -> Journey:
        """What read() says of this packet that has no copies, or would. `context`: what it reads besides, compared by
        identity but for numbers; `asks`: what it asks about an event that has other answers at other times."""
        if self._count >= KEPT or len(self._ways) >= KEPT or len(context) != len(self._context) or any(
                now is not then and (not isinstance(now, int) or now != then)
                for now, then in zip(context, self._context, strict=True)):
            self._ways.clear()
            self._count = 0
            self._context = context
        ordered = sorted([*track.events, *track.routes], key=_TIME)
        likes = tuple(map(_LIKE, ordered))
        if None in likes:
            likes = tuple([event.like or ALIKE(event) for event in ordered])
        way = self._ways.get(likes)
        if way is None:
            protocols = {event.protocol for event in ordered}
            alike = len(protocols) == 1 and not track.routes
            way = self._ways[likes] = _Way([(at, ask) for at, event in enumerate(ordered) if (ask := asks(event))],
                                           protocols.pop() if alike else None)
        marks = way.marks(ordered)
        if None in marks:
            return read()
        times = list(map(_TIME, ordered))
        key = *marks, *map(bool, map(_CONNTRACK, ordered)), *[ask(times[at]) for at, ask in way.asks]
        if key not in way.known:
            journey = read()
            way.known[key] = _template(journey, times)
            self._count += 1
            return journey
        template = way.known[key]
        return template.again(times, track) if template else read()


def _template(journey: Journey, times: list[int]) -> _Template | None:
    """None where a time is none of the events'."""
    for begun, first in enumerate(times):
        at = {time - first: index for index, time in enumerate(times)}
        ended = journey.end.t_ns
        if all(hop.t_ns in at for hop in journey.hops) and (ended is None or ended in at) and (
                not journey.hops or journey.hops[0].t_ns == 0):
            return _Template(journey, begun, tuple(at[hop.t_ns] for hop in journey.hops),
                             tuple(hop[1:] for hop in journey.hops), None if ended is None else at[ended], first)
    return None


@lru_cache(4096)  # the same packet at all its places
def _headers(protocol: int, data: bytes) -> bytes | None:
    """What the meaning of a packet depends on; None for one that may have one of its own."""
    if protocol == IPV4:
        at = (data[0] & 15) * 4
        number, ends = data[9], data[12:20]
        if (data[6] & 0x3F) | data[7]:  # a fragment
            return None
    elif protocol == IPV6:
        at, number, ends = 40, data[6], data[8:40]
    else:
        return None
    if number == TCP:
        transport = data[at:at + 4] + data[at + 13:at + 14]
    elif number == UDP:
        transport = data[at:at + 4]
    elif (number == ICMP and data[at] in (0, 8)) or (number == ICMPV6 and data[at] in (128, 129)):
        transport = data[at:at + 2]
    else:
        return None
    return bytes([at, number]) + ends + transport
