"""Tracks to journeys: what each is to the probe, copies put in their place, ends concluded."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace

from tracer.journey.ends import Seen, conclude
from tracer.journey.headers import decode, is_question
from tracer.journey.hops import HopReader
from tracer.journey.meaning import meaning
from tracer.journey.tracks import Track, Tracks
from tracer.journey.walks import Walks, stopped_by
from tracer.model.journey import End, Hop, Journey, Result, Stage
from tracer.model.layout import Event, Place
from tracer.model.probes import Batch, Machine, Missing
from tracer.model.selection import Selection
from tracer.model.topology import LinkKey, Topology

GRACE_NS = 20_000_000
SENT = 1024  # probes whose time is remembered
LATE_NS = 10_000_000_000


@dataclass(frozen=True, slots=True)
class About:
    """What a packet is to the run, and which probe it belongs to."""

    kind: str  # Journey.kind
    seq: int | None


class Assembler:
    """Collects events and tells journeys, one probe at a time.

    `machine` is asked anew each time, since the namespaces that are watched grow in number.
    """

    def __init__(self, selection: Selection, topology: Topology, machine: Callable[[], Machine],
                 target: int | None) -> None:
        self._selection = selection
        self._machine = machine
        self._target = target  # namespace of the destination
        self._tracks = Tracks(topology)
        self._walks = Walks()
        self._answered: set[int] = set()
        self._visited: set[int] = set()  # namespaces that probes and answers were seen in
        self._sent: deque[tuple[int, int]] = deque(maxlen=SENT)  # (CLOCK_MONOTONIC ns, seq), the newest last

    @property
    def events(self) -> int:
        return self._tracks.events

    @property
    def lost(self) -> int:
        return self._tracks.lost

    @property
    def missing(self) -> tuple[Missing, ...]:
        return self._machine().missing

    @property
    def topology(self) -> Topology:
        return self._tracks.topology

    def number(self, journey: int) -> int | None:
        """Journey.id of one of the kernel's journeys that is not told yet."""
        return self._tracks.number(journey)

    def know(self, topology: Topology, target: int | None) -> None:
        """The network changed, or more of it was read."""
        self._tracks.topology = topology
        self._target = target

    def feed(self, batch: Batch) -> None:
        self._tracks.feed(batch)
        self._walks.feed(batch)

    def sent(self, seq: int, when: int) -> None:
        """A probe is on its way. `when`: CLOCK_MONOTONIC, ns, just before."""
        self._sent.append((when, seq))

    def answered(self, seq: int) -> None:
        """The sender's socket has the answer to this probe."""
        self._answered.add(seq)

    def unknown(self) -> set[LinkKey]:
        """Devices that packets were seen at and that the topology does not have."""
        return {LinkKey(event.netns, event.ifindex) for track in self._tracks.live if self._concerns(track)
                for event in track.events if event.netns and event.ifindex
                and self._tracks.topology.link(event.netns, event.ifindex) is None}

    def settled(self, seq: int, now: int) -> bool:
        """Can nothing more be learned about this probe? Its packets all ended, and the answer is in or cannot come.

        `now`: CLOCK_MONOTONIC, ns. A drop is followed by an ICMP error, or is not, and a socket may hold a datagram for
        long: that takes a moment to know.
        """
        mine = [(self._about(t), t) for t in self._originals() if self._about(t).seq == seq]
        kinds = {about.kind for about, _track in mine}
        branches = [t for _about, track in mine for t in (track, *track.copies)]
        quiet = bool(branches) and now - max(t.seen for t in branches) > GRACE_NS
        if seq in self._answered:
            if "reply" not in kinds or (self._selection.relay and not quiet):
                return False
            return quiet or all(t.ended for t in branches)
        return quiet and all(t.ended and t.events[-1].place == Place.DROP for about, track in mine
                             if about.kind != "error" for t in (track, *track.copies))

    def take(self, seq: int) -> list[Journey]:
        """The journeys of one probe, and of the neighbour lookups so far: in the order in which they began. They are
        told once."""
        mine = [t for t in self._originals() if self._about(t).seq == seq
                or (self._about(t).kind == "arp" and t.ended and all(copy.ended for copy in t.copies))]
        told = self._tell_all(mine)
        self._answered.discard(seq)
        return told

    def late(self, waiting: Collection[int], now: int) -> list[Journey]:
        """What came after its probe was told, and what nobody heard of for long. `waiting`: probes yet to be told."""
        return self._tell_all([t for t in self._originals() if self._about(t).seq not in waiting
                               and (now - t.seen > LATE_NS or (t.ended and self._about(t).kind != "arp"))])

    def rest(self) -> list[Journey]:
        """All that was not told yet."""
        return self._tell_all(self._originals())

    def _about(self, track: Track) -> About:
        """As meaning(), with the probe's whole number: the newest with that key that was sent by then, or of all where the
        packet does not tell."""
        what = meaning(track, self._selection)
        if what.kind == "arp":
            return About(what.kind, None)
        return About(what.kind, next((seq for when, seq in reversed(self._sent) if when <= track.begun
                                      and what.key in (None, self._selection.key(seq))), None))

    def _originals(self) -> list[Track]:
        return [track for track in self._tracks.live if track.parent is None]

    def _concerns(self, track: Track) -> bool:
        """A lookup between the same addresses may be that of another network, which the run's packets never see."""
        netns = track.events[0].netns
        return self._about(track).kind != "arp" or netns in (self._tracks.topology.host, self._target) or any(
            netns in {event.netns for event in other.events} for other in self._tracks.live
            if self._about(other).kind != "arp") or netns in self._visited

    def _tell_all(self, tracks: list[Track]) -> list[Journey]:
        told = []
        for track in tracks:
            if self._concerns(track):
                if self._about(track).kind != "arp":
                    self._visited.update(event.netns for event in track.events)
                told += self._tell(track)
            else:
                self._tracks.forget(track)
        return self._linked(told)

    def _linked(self, journeys: list[Journey]) -> list[Journey]:
        """A proxy's own packets are due to the request that it took in. That they are for this one among its clients'
        follows from the time alone."""
        relayed = {j.seq: j.id for j in journeys if j.end.result is Result.RELAYED}
        return [replace(j, parent=relayed.get(j.seq)) if j.kind in ("relay", "relay_reply") else j for j in journeys]

    def _tell(self, track: Track) -> list[Journey]:
        """One packet: its main way, which may lead through a copy that a bridge made, and the other branches: copies, and
        segments that it was cut into."""
        self._tracks.forget(track)
        for copy in track.copies:
            self._tracks.forget(copy)
        branches = [track, *track.copies]
        main = next((b for b in branches if not b.part and self._reached(b)), track)
        number = track.number
        ports = {port for branch in branches for port in self._ports(branch)}
        flooded = {bridge for bridge, _port in ports if len({p for b, p in ports if b == bridge}) > 1}
        shared = main.before()
        routes = main.routes if main is track else [*(e for e in track.routes if e.time < main.begun), *main.routes]
        journeys = [self._journey(number, [*shared, *main.events], routes, track, flooded, None)]
        for branch in branches:
            if branch is not main:
                events = [e for e in branch.events if e not in shared]
                if events:
                    own = branch.number if branch is not track else main.number
                    others = [e for e in branch.routes if e not in routes]
                    journeys.append(self._journey(own, events, others, branch if branch.part else track, flooded, number))
        return journeys

    def _ports(self, track: Track) -> set[tuple[LinkKey, int]]:
        """The bridges and their ports that it went out by."""
        topology = self._tracks.topology
        return {(LinkKey(e.netns, link.master), e.ifindex) for e in track.events if e.place == Place.QUEUE
                and (link := topology.link(e.netns, e.ifindex)) is not None and link.master is not None}

    def _reached(self, track: Track) -> bool:
        """Did this branch get to where the packet was meant to go?"""
        last, goal = track.events[-1], self._goal(track)
        return last.netns == goal and last.place in (Place.CONSUME, Place.DROP)

    def _goal(self, track: Track) -> int | None:
        """The namespace that the packet is meant for; None where nobody known has its destination address."""
        packet = track.packet
        address = packet.dst
        if packet.asked and packet.asking:
            address = packet.asked if is_question(packet) else packet.asking
        if self._target is not None and self._about(track).kind == "request":
            return self._target
        return self._tracks.topology.owner(address)

    def _journey(self, number: int, events: list[Event], routes: list[Event], track: Track, flooded: set[LinkKey],
                 parent: int | None) -> Journey:
        machine, topology = self._machine(), self._tracks.topology
        what = self._about(track)
        reader = HopReader(self._tracks, machine, flooded, self._walks)
        hops = reader.read(events, routes)
        begun = reader.begun
        netns = next((e.netns for e in reversed(events) if e.netns), 0)  # a socket's skb has lost its device
        seen = Seen(what.kind, what.seq in self._answered if what.seq is not None else None,
                    self._began("reply", what, netns), self._began("error", what, netns), topology.namespaces.get(netns))
        end = conclude(events, begun, hops, topology, machine, seen)
        end = replace(end, rule=stopped_by(end, hops))
        if end.result is Result.DELIVERED:
            hops.append(Hop(end.t_ns or 0, netns, end.node or "", None, None, Stage.DELIVER, detail=end.detail,
                            inferred=end.inferred))
            if what.kind == "request":
                end = self._relayed(end, events[-1], netns)
        goal = self._goal(track)
        if not any(e.ethernet[0] & 1 for e in events):  # else it is for all who take it, or for nobody
            arrived = seen.where and seen.where.has(decode(events[-1].protocol, events[-1].packet).dst)
            goal = netns if arrived or end.result in (Result.DELIVERED, Result.RELAYED) else goal
        return Journey(
            id=number, packet=track.packet, hops=tuple(hops), end=end, kind="part" if track.part else
            "copy" if parent else what.kind, seq=what.seq, source=topology.node(track.events[0].netns),
            target=topology.node(goal) if goal else None, parent=parent,
            wall_ns=begun + machine.clock_offset_ns, lost_events=track.lost,
            complete=track.lost == 0)

    def _relayed(self, end: End, last: Event, netns: int) -> End:
        """Was it delivered to the proxy that listens there? The proxy's is the namespace of the destination, and a packet
        that a rule translated is not for it."""
        relay, topology = self._selection.relay, self._tracks.topology
        packet = decode(last.protocol, last.packet[:last.captured])
        if relay is None or netns != self._target or packet.dport != self._selection.port:
            return end
        behind = topology.owner(str(relay.address))
        whom = f"{topology.node(behind)} ({relay.address})" if behind else str(relay.address)
        return replace(end, result=Result.RELAYED, detail=(
            f"{relay.program} (pid {relay.pid}) takes it, and connects to {whom} port {relay.port} by itself; which of its "
            "packets are for this probe follows from the time alone"))

    def _began(self, kind: str, what: About, netns: int) -> bool:
        """Was a packet of this kind about this request seen to start in this namespace?"""
        return what.kind == "request" and any(
            self._about(t) == About(kind, what.seq) and t.events[0].netns == netns for t in self._originals())
