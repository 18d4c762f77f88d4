"""Events sorted into tracks: one track is one skb's life, from where it was first seen to where it was freed."""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass, field
from functools import lru_cache

from tracer.journey.headers import decode, mac
from tracer.journey.routes import decides, makes_another, reroutes
from tracer.journey.stack import SWITCHING, UP_TO_THE_HOST, own_frames
from tracer.model.frame import ETHERNET_BYTES, FRAGMENT, IPV4, IPV6, TCP, transport
from tracer.model.journey import Packet
from tracer.model.layout import Event, Function, Place
from tracer.model.probes import HOOKS, Batch
from tracer.model.topology import LinkKey, Topology

TOLD = 4096  # journeys whose late events are remembered as such
AGEING_NS = 300_000_000_000  # a bridge forgets a MAC after 300 s (ageing_time)
QUEUE, RECEIVE, HOOK, ROUTE, DROP, CONSUME, FUNCTION = map(int, (  # an enum, and its attributes, take their time
    Place.QUEUE, Place.RECEIVE, Place.HOOK, Place.ROUTE, Place.DROP, Place.CONSUME, Place.FUNCTION))
ENDS = (DROP, CONSUME)
LARGE = 64  # packets beyond their device's MTU that are remembered, for the segments that they are cut into
DEVICES = 4096  # that packets met, before those of namespaces that are gone are forgotten
LOOKUPS = 16  # kept for packets that are yet to be seen, a CPU
LOOKUP_NS = 1_000_000_000  # from a lookup to its packet's first sight, on the same CPU, which may be busy


@dataclass(slots=True, eq=False)
class Track:
    """One packet's life: one skb, or several in a row where it was fragmented or put together again. Copies that a bridge
    made of it are tracks of their own, linked."""

    id: int  # the kernel's journey number
    number: int  # counts from 1 in the order of first sight
    packet: Packet  # its headers at first sight
    events: list[Event]
    routes: list[Event] = field(default_factory=list)  # lookups that decided on its way
    ended: bool = False  # its end was seen
    lost: int = 0  # events of any packet that were lost while it lived
    parent: Track | None = None  # what it is a copy of, which may be a copy
    part: bool = False  # of its parent, which was cut: a segment behind the first
    copies: list[Track] = field(default_factory=list)  # of an original: all, those of copies too
    ids: list[int] = field(default_factory=list)  # the kernel's numbers of all its skbs, the present one last

    @property
    def origin(self) -> Track | None:
        """The original that it is a copy of; None for an original."""
        return (self.parent.origin or self.parent) if self.parent else None

    def before(self) -> list[Event]:
        """The way of the packet until this copy of it was made."""
        return [*self.parent.before(), *(e for e in self.parent.events if e.time < self.begun)] if self.parent else []

    @property
    def begun(self) -> int:
        return self.events[0].time

    @property
    def seen(self) -> int:
        """When it was last seen, CLOCK_MONOTONIC ns."""
        return self.events[-1].time


def _goes_to(event: Event, lookup: Event) -> bool:
    """Is the packet's destination the one that was looked up?"""
    if event.protocol != lookup.protocol:
        return False
    v4 = event.protocol == IPV4
    return event.packet[16:20] == lookup.packet[16:20] if v4 else event.packet[24:40] == lookup.packet[16:32]


def device_name(event: Event) -> str:
    """The device's name at the time of the event."""
    return _text(event.name)


@lru_cache(4096)
def _text(name: bytes) -> str:
    return name.partition(b"\0")[0].decode(errors="replace")  # a renamed device leaves its old tail behind the NUL


def content(event: Event) -> tuple[int, bytes]:
    """What a copy has in common with its original at that moment."""
    return event.protocol, event.packet[:event.captured]


def _thread(event: Event) -> tuple[int, bytes] | None:
    """What the whole and its first fragment have in common, whatever NAT does: IP id, transport, its first 8 bytes less
    the checksum. None for what is never fragmented."""
    data = event.packet[:event.captured]
    v4 = event.protocol == IPV4
    if event.protocol not in (IPV4, IPV6) or len(data) < (28 if v4 else 56):
        return None
    number, at = transport(event.protocol, data)
    return event.protocol, (data[4:6] if v4 else b"") + bytes([number]) + data[at:at + 2] + data[at + 4:at + 8]


def _is_part(event: Event) -> bool:
    """Is it a fragment?"""
    data = event.packet
    return bool(int.from_bytes(data[6:8], "big") & 0x3FFF) if event.protocol == IPV4 else \
        event.protocol == IPV6 and data[6] == FRAGMENT


def is_taken(event: Event) -> bool:
    """Does a socket, or its protocol, take the packet here?"""
    return event.place == FUNCTION and event.hook in (Function.SOCKET, Function.PROTOCOL)


def _stretch(event: Event) -> tuple[tuple[int, bytes], int, int] | None:
    """Of a TCP segment: its connection and direction as it looks there, the sequence number, and bytes of payload."""
    data = event.packet[:event.captured]
    v4 = event.protocol == IPV4
    at = (data[0] & 15) * 4 if v4 and data else 40
    if event.protocol not in (IPV4, IPV6) or len(data) < at + 20 or data[9 if v4 else 6] != TCP:
        return None
    frame = ETHERNET_BYTES if event.place == QUEUE else 0
    ends = data[12:20] if v4 else data[8:40]
    return (event.protocol, ends + data[at:at + 4]), int.from_bytes(data[at + 4:at + 8], "big"), \
        event.length - frame - at - (data[at + 12] >> 4) * 4


class Tracks:
    """All tracks of a run, and what their frames taught the bridges."""

    def __init__(self, topology: Topology) -> None:
        self.topology = topology
        self.events = 0
        self.lost = 0
        self.tracking: set[int] = set()  # namespaces in which a packet had a conntrack entry
        self.paired = 0  # how often a veth pair was learned
        self._begun = 0
        self._live: dict[int, Track] = {}  # by the kernel's journey number; a track of several skbs is there for each
        self._large: deque[Track] = deque(maxlen=LARGE)
        self._told: OrderedDict[int, None] = OrderedDict()  # numbers of journeys whose late events begin no new ones
        self._lookups: dict[int, deque[Event]] = {}  # CPU -> route lookups of packets that are yet to be seen
        self._devices: dict[tuple[int, int], bytes] = {}  # (namespace, ifindex) -> Event.name, as packets met them
        self._fresh: set[tuple[int, int]] = set()  # those that were first met of late
        self._met: set[object] = set()  # Event.like of those whose device has the name that is known
        self._pairs: dict[tuple[int, int], tuple[int, int]] = {}  # where a packet that a device sent came in, and back
        # (namespace, bridge, MAC) -> (port, when frames from that MAC were first and last seen coming in there)
        self._learned: dict[tuple[int, int, str], tuple[int, int, int]] = {}

    def know(self, topology: Topology) -> None:
        """The network changed, or more of it was read."""
        self.topology = topology
        if len(self._devices) > DEVICES:  # of namespaces that came and went
            self.tracking &= topology.names.keys()
            self._devices = {key: name for key, name in self._devices.items() if key[0] in topology.names}
            self._fresh &= self._devices.keys()
            self._met.clear()
            self._pairs = {key: peer for key, peer in self._pairs.items() if key[0] in topology.names}
            self._learned = {key: port for key, port in self._learned.items() if key[0] in topology.names}

    def fresh(self) -> set[LinkKey]:
        """Devices that packets were seen at for the first time since the last call."""
        found, self._fresh = self._fresh, set()
        return {LinkKey(*key) for key in found if all(key)}

    def feed(self, batch: Batch) -> None:
        begun = []
        live, devices, met = self._live, self._devices, self._met
        self.events += len(batch.events)
        for event in batch.events:
            place, like = event.place, event.like
            if place == ROUTE:
                self._route(event)
                continue
            if like not in met:
                device = event.netns, event.ifindex
                if devices.get(device) != event.name:
                    if device not in devices:
                        self._fresh.add(device)
                    devices[device] = event.name
                    met.clear()
                if len(met) >= DEVICES:
                    met.clear()
                if like:
                    met.add(like)
            if place == HOOK and event.conntrack:
                self.tracking.add(event.netns)
            elif place == RECEIVE:
                self._learn(event)
            track = live.get(event.journey)
            if track is None:
                if event.journey not in self._told:
                    begun += self._begin(event)
                continue
            if place not in ENDS:
                track.ended = False
                if place == RECEIVE:
                    if not batch.lost:
                        self._pair(track, event)
                elif place == QUEUE and track.parent is None and self._is_large(event) and track not in self._large:
                    self._large.append(track)
            elif event.journey != track.ids[-1]:
                continue  # a fragment, or what fragments were put together to: the packet goes on in another skb
            else:
                track.ended = True
            track.events.append(event)
        if batch.lost:
            self.lost += batch.lost
            for track in live.values():
                if not track.ended or track in begun:
                    track.lost += batch.lost

    def _begin(self, event: Event) -> list[Track]:
        """A journey's first event: a new packet, a copy of one, or one going on in another skb."""
        original = self._original_of(event)
        part = False
        if original is None:
            whole = self._whole_of(event)
            segmented = None if whole else self._segmented(event)
            if segmented:
                original, first = segmented
                part = not first
                whole = original if first else None
            if whole:
                whole.events.append(event)
                whole.ids.append(event.journey)
                whole.ended = False
                self._live[event.journey] = whole
                return []
        self._begun += 1
        packet = decode(event.protocol, event.packet[:event.captured])
        track = Track(event.journey, self._begun, packet, [event], parent=original, part=part, ids=[event.journey],
                      ended=event.place in ENDS)
        self._live[event.journey] = track
        if original:
            (original.origin or original).copies.append(track)
        else:
            self._take_lookups(track)
        return [track]

    def _whole_of(self, event: Event) -> Track | None:
        """The packet that this is the first fragment of, or whose fragments were put together to this."""
        inside = event.place in ENDS or is_taken(event) or (event.place == HOOK and HOOKS[event.hook] != "output")
        thread = _thread(event) if _is_part(event) or inside else None
        if thread is None:
            return None
        for other in reversed(self._live.values()):
            last = other.events[-1]
            if event.protocol == IPV6 and FRAGMENT not in (event.packet[6], last.packet[6]):
                continue  # IPv6 has no id: two segments of one connection may have the same sequence number
            if _thread(last) == thread and last.packet[2:8] != event.packet[2:8] and (
                    other.ended or last.place in (HOOK, QUEUE)) and other.parent is None:
                return other
        return None

    def number(self, journey: int) -> int | None:
        track = self._live.get(journey)
        return track.number if track else None

    def _segmented(self, event: Event) -> tuple[Track, bool] | None:
        """The large packet (GSO) that this is a segment of, cut where a device cannot take it whole; and is it the first?
        The kernel frees the whole, and its segments are others."""
        mine = _stretch(event) if event.place == RECEIVE and self._large else None
        for other in reversed(self._large) if mine else ():
            last = next(e for e in reversed(other.events) if e.place == QUEUE)
            its = _stretch(last) if other.ended or len(other.ids) > 1 else None
            if mine and its and mine[0] == its[0] and mine[2] < its[2] and (mine[1] - its[1]) % 2**32 < its[2]:
                return other, mine[1] == its[1]
        return None

    def _is_large(self, event: Event) -> bool:
        link = self.topology.link(event.netns, event.ifindex)
        return link is not None and event.length > link.mtu + ETHERNET_BYTES

    def forget(self, track: Track) -> None:
        """Its story is told."""
        if track in self._large:
            self._large.remove(track)
        for number in track.ids:
            self._live.pop(number, None)
            self._told[number] = None
        while len(self._told) > TOLD:
            self._told.popitem(last=False)

    @property
    def live(self) -> list[Track]:
        return [track for number, track in self._live.items() if number == track.id]

    def peer_of(self, netns: int, ifindex: int) -> tuple[str, str] | None:
        """As Topology.peer; where packets crossed the pair, as they showed it: a veth pair is set up in steps."""
        link = self.topology.link(netns, ifindex)
        if link is None or link.kind != "veth":
            return None
        other = self._pairs.get((netns, ifindex))
        if other is None and link.peer:
            other = link.peer.netns, link.peer.ifindex
        if other is None:
            return None
        there = self.topology.link(*other)
        return self.topology.node(other[0]), there.name if there else _text(self._devices.get(other, b"")) or f"if{other[1]}"

    def port_of(self, netns: int, bridge: int, address: str, before: int) -> tuple[int, str] | None:
        """The port behind which the bridge should know this MAC, and from where that is known: its FDB as it was "read",
        or "learned" from frames that were seen since. The kernel does not tell which row it used."""
        learned = self._learned.get((netns, bridge, address))
        if learned and learned[1] < before < learned[2] + AGEING_NS:
            return learned[0], "learned"
        namespace = self.topology.namespaces.get(netns)
        rows = (row.port for row in namespace.fdb if row.bridge == bridge and row.mac == address) if namespace else ()
        return next(((port, "read") for port in rows), None)

    def _pair(self, track: Track, event: Event) -> None:
        """What a veth device sends, its peer receives next. So do other devices: who asks knows that it is one."""
        before = track.events[-1]
        if before.place == QUEUE and before.netns != event.netns and not track.lost:
            sent, received = (before.netns, before.ifindex), (event.netns, event.ifindex)
            if self._pairs.get(sent) != received or self._pairs.get(received) != sent:
                self._pairs[sent], self._pairs[received] = received, sent
                self.paired += any(link.kind == "veth" for end in (sent, received) if (link := self.topology.link(*end)))

    def _learn(self, event: Event) -> None:
        link = self.topology.link(event.netns, event.ifindex)
        if link and link.master:
            key = (event.netns, link.master, mac(event.ethernet[6:12]))
            known = self._learned.get(key)
            first = known[1] if known and known[0] == link.ifindex else event.time
            self._learned[key] = (link.ifindex, first, event.time)

    def _route(self, event: Event) -> None:
        """A lookup is for the packet that its CPU is at, or for one that is just being made there."""
        if not decides(event):
            return
        track = self._live.get(event.journey)
        if track and (reroutes(event) or (not makes_another(event) and _goes_to(track.events[-1], event))):
            track.routes.append(event)
        elif makes_another(event):
            self._lookups.setdefault(event.cpu, deque(maxlen=LOOKUPS)).append(event)

    def _take_lookups(self, track: Track) -> None:
        """A packet of this namespace's own: its route was looked up by the task that sent it, or in which the packet that
        it answers was delivered."""
        first = track.events[0]
        if first.place not in (HOOK, QUEUE) or track.parent:
            return
        recent = [lookup for lookup in self._lookups.pop(first.cpu, ()) if first.time - lookup.time < LOOKUP_NS]
        mine = [lookup for lookup in recent if lookup.caller == first.caller and _goes_to(first, lookup)]
        track.routes += mine
        if others := [lookup for lookup in recent if lookup not in mine]:  # their packets come later
            self._lookups[first.cpu] = deque(others, LOOKUPS)

    def _original_of(self, first: Event) -> Track | None:
        """The packet that this is a copy of: it was first seen where bridges make them, and its original is alive."""
        if first.place == HOOK:
            copied = HOOKS[first.hook] in ("forward", "postrouting")
        elif first.place == FUNCTION:
            copied = first.hook == Function.FORWARD
        else:
            copied = not (SWITCHING if first.place == QUEUE else UP_TO_THE_HOST).isdisjoint(own_frames(first.stack))
        if not copied:
            return None
        # a copy that a bridge has just sent is no original; one that came to another bridge is
        return next((other for other in reversed(self._live.values())
                     if (other.parent is None or not (other.ended or other.events[-1].place == QUEUE))
                     and content(other.events[-1]) == content(first) and other.events[-1].netns == first.netns), None)
