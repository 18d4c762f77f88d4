"""Packets of one flow take the same way: what the events of the first meant, the same events of the next mean as well, at
other times. Reading them anew costs several times as much.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

from tracer.journey.tracks import ROUTE, Track
from tracer.model.frame import ICMP, ICMPV6, IPV4, IPV6, TCP, UDP, frame
from tracer.model.journey import Hop, Journey
from tracer.model.layout import Event

KEPT = 1024


@dataclass(frozen=True, slots=True)
class _Template:
    journey: Journey
    begun: int  # its time is that of this event, of all in the order of time; so are the next two
    hops: tuple[tuple[int, tuple[Any, ...]], ...]  # when, and what else a hop has
    ended: int | None
    first: int  # the time of `begun` when it was made

    def again(self, number: int, times: Sequence[int], track: Track) -> Journey:
        begun, like, end = times[self.begun], self.journey, self.journey.end
        if self.ended is not None:
            end = end._replace(t_ns=times[self.ended] - begun)
        hops = tuple([tuple.__new__(Hop, (times[at] - begun, *rest)) for at, rest in self.hops])
        return Journey(number, track.packet, hops, end, like.kind, like.seq, like.source, like.target, like.parent,
                       like.wall_ns + begun - self.first, track.lost, track.lost == 0, frame=frame(track.events[0]))


class Templates:
    """Of what was read in one context: another one, another set of templates."""

    def __init__(self) -> None:
        self._known: dict[Hashable, _Template | None] = {}
        self._context: tuple[object, ...] = ()

    def journey(self, number: int, events: Sequence[Event], track: Track, context: tuple[object, ...], also: Hashable,
                read: Callable[[], Journey]) -> Journey:
        """What read() says, or would. `events`: all that it is read from; `context`: what else, compared by identity but for
        numbers; `also`: what else, compared by value."""
        if len(self._known) >= KEPT or len(context) != len(self._context) or any(
                now is not then and (not isinstance(now, int) or now != then)
                for now, then in zip(context, self._context, strict=True)):
            self._known.clear()
            self._context = context
        ordered = sorted(events, key=lambda event: event.time)
        marks = [_mark(event) for event in ordered]
        if None in marks:
            return read()
        key = (also, *marks)
        if key not in self._known:
            journey = read()
            self._known[key] = _template(journey, [event.time for event in ordered])
            return journey
        template = self._known[key]
        return template.again(number, [event.time for event in ordered], track) if template else read()


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
    place, data = event.place, event.packet
    if place == ROUTE:
        return event.netns, event.ifindex, event.name, event.protocol, data[:64], event.stack
    if event.protocol == IPV4:
        at = (data[0] & 15) * 4
        number, ends = data[9], data[12:20]
        if (data[6] & 0x3F) | data[7]:  # a fragment
            return None
    elif event.protocol == IPV6:
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
    return (place, event.netns, event.ifindex, event.out_ifindex, event.hook, event.slot, event.conntrack_info,
            event.conntrack != 0, event.reason, event.ethernet, event.name, at, number, ends, transport, event.stack,
            event.tuples)
