"""Packets of one flow take the same way: what the events of the first meant, the same events of the next mean as well, at
other times. Reading them anew costs several times as much.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from operator import itemgetter
from typing import Any

from tracer.journey.tracks import ROUTE, Track
from tracer.model.frame import ICMP, ICMPV6, IPV4, IPV6, TCP, UDP, frame
from tracer.model.journey import End, Hop, Hops, Journey
from tracer.model.layout import Event

KEPT = 1024
_new = tuple.__new__  # without the arguments' names, which take their time
_TIME = itemgetter(Event._fields.index("time"))
_OF_LOOKUP = itemgetter(*map(Event._fields.index, ("netns", "ifindex", "name", "protocol", "stack")))
_OF_PACKET = itemgetter(*map(Event._fields.index, (
    "place", "netns", "ifindex", "out_ifindex", "hook", "slot", "conntrack_info", "reason", "ethernet", "name", "stack",
    "tuples")))


@dataclass(frozen=True, slots=True, eq=False)
class _Template:
    journey: Journey
    begun: int  # its time is that of this event, of all in the order of time; so are the next two
    hops: tuple[tuple[int, tuple[Any, ...]], ...]  # when, and what else a hop has
    ended: int | None
    first: int  # the time of `begun` when it was made

    def again(self, times: Sequence[int], track: Track) -> Journey:
        begun, like, end = times[self.begun], self.journey, self.journey.end
        if self.ended is not None:
            end = _new(End, (*end[:-1], times[self.ended] - begun))
        hops = Hops([_new(Hop, (times[at] - begun, *rest)) for at, rest in self.hops])
        hops.like = self
        return Journey(track.number, track.packet, hops, end, like.kind, like.seq, like.source, like.target, like.parent,
                       like.wall_ns + begun - self.first, track.lost, track.lost == 0, frame=frame(track.events[0]))


class Templates:
    """Of what was read in one context: another one, another set of templates."""

    def __init__(self) -> None:
        self._known: dict[Hashable, _Template | None] = {}
        self._context: tuple[object, ...] = ()

    def journey(self, track: Track, context: tuple[object, ...], also: Hashable, read: Callable[[], Journey]) -> Journey:
        """What read() says of this packet that has no copies, or would. `context`: what it reads besides, compared by
        identity but for numbers; `also`: what else, compared by value."""
        if len(self._known) >= KEPT or len(context) != len(self._context) or any(
                now is not then and (not isinstance(now, int) or now != then)
                for now, then in zip(context, self._context, strict=True)):
            self._known.clear()
            self._context = context
        ordered = sorted([*track.events, *track.routes], key=_TIME)
        key = (also, *map(_mark, ordered))
        if None in key:
            return read()
        times = [event[0] for event in ordered]
        if key not in self._known:
            journey = read()
            self._known[key] = _template(journey, times)
            return journey
        template = self._known[key]
        return template.again(times, track) if template else read()


def _template(journey: Journey, times: list[int]) -> _Template | None:
    """None where a time is none of the events'."""
    for begun, first in enumerate(times):
        at = {time - first: index for index, time in enumerate(times)}
        ended = journey.end.t_ns
        if all(hop.t_ns in at for hop in journey.hops) and (ended is None or ended in at) and (
                not journey.hops or journey.hops[0].t_ns == 0):
            hops = tuple((at[hop.t_ns], hop[1:]) for hop in journey.hops)
            return _Template(journey, begun, hops, None if ended is None else at[ended], first)
    return None


def _mark(event: Event) -> Hashable | None:
    """All of an event that its meaning depends on; None for a packet that may have one of its own."""
    if event.place == ROUTE:
        return _OF_LOOKUP(event), event.packet[:64]
    headers = _headers(event.protocol, event.packet)
    return headers and (_OF_PACKET(event), event.conntrack != 0, headers)


@lru_cache(4096)  # the same packet at all its places
def _headers(protocol: int, data: bytes) -> tuple[int, int, bytes, bytes] | None:
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
    return at, number, ends, transport
