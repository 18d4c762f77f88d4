"""Events sorted into tracks: one track is one skb's life, from where it was first seen to where it was freed."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from tracer.journey.headers import IPV4, mac
from tracer.journey.routes import decides, reroutes
from tracer.journey.stack import SWITCHING, UP_TO_THE_HOST, own_frames
from tracer.model.layout import Event, Place
from tracer.model.probes import HOOKS, Batch
from tracer.model.topology import Topology

LOOKUPS = 16  # kept for packets that are yet to be seen, a CPU
LOOKUP_NS = 5_000_000  # from a lookup to its packet's first sight, on the same CPU


@dataclass(slots=True)
class Track:
    """One skb. Copies that a bridge made of it are tracks of their own, linked."""

    id: int  # the kernel's journey number
    events: list[Event]
    routes: list[Event] = field(default_factory=list)  # lookups that decided on its way
    ended: bool = False  # its end was seen
    lost: int = 0  # events of any packet that were lost while it lived
    parent: Track | None = None
    copies: list[Track] = field(default_factory=list)

    @property
    def begun(self) -> int:
        return self.events[0].time

    @property
    def seen(self) -> int:
        """When it was last seen, CLOCK_MONOTONIC ns."""
        return self.events[-1].time

    @property
    def content(self) -> tuple[int, bytes]:
        """What copies have in common, and what no two packets share that live at the same time."""
        return content(self.events[0])


def _goes_to(event: Event, lookup: Event) -> bool:
    """Is the packet's destination the one that was looked up?"""
    if event.protocol != lookup.protocol:
        return False
    v4 = event.protocol == IPV4
    return event.packet[16:20] == lookup.packet[16:20] if v4 else event.packet[24:40] == lookup.packet[16:32]


def device_name(event: Event) -> str:
    """The device's name at the time of the event."""
    return event.name.partition(b"\0")[0].decode(errors="replace")  # a renamed device leaves its old tail behind the NUL


def content(event: Event) -> tuple[int, bytes]:
    return event.protocol, event.packet[:event.captured]


class Tracks:
    """All tracks of a run, and what their frames taught the bridges."""

    def __init__(self, topology: Topology) -> None:
        self.topology = topology
        self.events = 0
        self.lost = 0
        self._live: dict[int, Track] = {}
        # (namespace, bridge, MAC) -> (port, when a frame from that MAC was first seen coming in there)
        self._lookups: dict[int, deque[Event]] = {}  # CPU -> route lookups of packets that are yet to be seen
        self._devices: dict[tuple[int, int], str] = {}  # (namespace, ifindex) -> name, as packets met them
        self._learned: dict[tuple[int, int, str], tuple[int, int]] = {}

    def feed(self, batch: Batch) -> list[Track]:
        """Take a batch in; the tracks that began in it."""
        begun = []
        for event in batch.events:
            self.events += 1
            if event.place == Place.ROUTE:
                self._route(event)
                continue
            self._devices[event.netns, event.ifindex] = device_name(event)
            if event.place == Place.RECEIVE:
                self._learn(event)
            track = self._live.get(event.journey)
            if track is None:
                track = self._live[event.journey] = Track(event.journey, [event])
                self._link(track)
                self._take_lookups(track)
                begun.append(track)
            else:
                track.events.append(event)
            if event.place in (Place.DROP, Place.CONSUME):
                track.ended = True
        if batch.lost:
            self.lost += batch.lost
            for track in self._live.values():
                if not track.ended or track in begun:
                    track.lost += batch.lost
        return begun

    def forget(self, track: Track) -> None:
        """Its story is told."""
        self._live.pop(track.id, None)

    @property
    def live(self) -> tuple[Track, ...]:
        return tuple(self._live.values())

    def peer_of(self, netns: int, ifindex: int) -> tuple[str, str] | None:
        """As Topology.peer, with the device's name from a packet that met it where the namespace was not read."""
        peer, link = self.topology.peer(netns, ifindex), self.topology.link(netns, ifindex)
        if peer is None or link is None or link.peer is None:
            return None
        return peer[0], self._devices.get((link.peer.netns, link.peer.ifindex), peer[1])

    def port_of(self, netns: int, bridge: int, address: str, before: int) -> int | None:
        """The port that the bridge knew this MAC behind at that time: its FDB at the start, or frames seen since."""
        learned = self._learned.get((netns, bridge, address))
        if learned and learned[1] < before:
            return learned[0]
        namespace = self.topology.namespaces.get(netns)
        return next((row.port for row in namespace.fdb if row.bridge == bridge and row.mac == address), None) \
            if namespace else None

    def _learn(self, event: Event) -> None:
        link = self.topology.link(event.netns, event.ifindex)
        if link and link.master:
            key = (event.netns, link.master, mac(event.ethernet[6:12]))
            known = self._learned.get(key)
            if known is None or known[0] != link.ifindex:
                self._learned[key] = (link.ifindex, event.time)

    def _route(self, event: Event) -> None:
        """A lookup is for the packet that its CPU is at, or for one that is just being made there."""
        if not decides(event):
            return
        track = self._live.get(event.journey)
        if track and (reroutes(event) or _goes_to(track.events[-1], event)):
            track.routes.append(event)
        else:
            self._lookups.setdefault(event.cpu, deque(maxlen=LOOKUPS)).append(event)

    def _take_lookups(self, track: Track) -> None:
        """A packet of this namespace's own: its route was looked up by the task that sent it, or in which the packet that
        it answers was delivered."""
        first = track.events[0]
        if first.place not in (Place.HOOK, Place.QUEUE) or track.parent:
            return
        for lookup in self._lookups.pop(first.cpu, ()):
            if lookup.caller == first.caller and first.time - lookup.time < LOOKUP_NS and _goes_to(first, lookup):
                track.routes.append(lookup)

    def _link(self, track: Track) -> None:
        """Is it a copy? Then it was first seen where bridges make them, and its original is alive."""
        first = track.events[0]
        frames = frozenset(own_frames(first.stack))
        if first.place == Place.HOOK:
            copied = HOOKS[first.hook] in ("forward", "postrouting")
        elif first.place == Place.QUEUE:
            copied = bool(frames & SWITCHING)
        else:
            copied = bool(frames & UP_TO_THE_HOST)
        if not copied:
            return
        for other in reversed(self._live.values()):
            if other is not track and other.parent is None and other.content == track.content and \
                    other.events[-1].netns == first.netns:
                track.parent = other
                other.copies.append(track)
                return
