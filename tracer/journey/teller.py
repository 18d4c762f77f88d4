"""From tracks to journeys: copies put in their place, hops read, ends concluded. What a packet is to the run, the kinds of
runs say: see assemble.py and stream.py."""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass

from tracer.journey.ends import Seen, conclude
from tracer.journey.headers import decode, is_question
from tracer.journey.hops import HopReader
from tracer.journey.tracks import ENDS, QUEUE, Track, Tracks, is_taken
from tracer.journey.walks import Walks, stopped_by
from tracer.model.frame import frame
from tracer.model.journey import End, Hop, Journey, Result, Stage
from tracer.model.layout import Event, Function, Place
from tracer.model.probes import Batch, Machine, Missing
from tracer.model.topology import LinkKey, Namespace, Topology


@dataclass(frozen=True, slots=True)
class About:
    """What a packet is to the run, and which probe it belongs to."""

    kind: str  # Journey.kind
    seq: int | None = None


class Teller(ABC):
    """Collects events and tells journeys.

    `machine` is asked anew each time, since the namespaces that are watched grow in number.
    """

    def __init__(self, topology: Topology, machine: Callable[[], Machine], chosen_rules: bool = False) -> None:
        self._machine = machine
        self._tracks = Tracks(topology)
        self._know(topology)
        self._walks = Walks(chosen_rules)

    @abstractmethod
    def _about(self, track: Track) -> About: ...

    def _concerns(self, track: Track) -> bool:
        """Is it to be told?"""
        return True

    @abstractmethod
    def _seen(self, about: About, netns: int, where: Namespace | None) -> Seen:
        """What else is known of a packet that ended in this namespace."""

    def _ended(self, end: End, about: About, last: Event, netns: int) -> End:
        """What the run knows of the end of a packet that was delivered."""
        return end

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

    def _know(self, topology: Topology) -> None:
        self._tracks.know(topology)
        self._now = topology
        self._changes = topology.changes()
        self._versions: dict[int, Topology] = {}  # as it was before each of these

    def _at(self, when: int) -> Topology:
        """The network as it was at `when`: names go from one namespace to another."""
        at = bisect_right(self._changes, when)
        if at not in self._versions:
            self._versions[at] = self._now.at(when)
        return self._versions[at]

    def number(self, journey: int) -> int | None:
        """Journey.id of one of the kernel's journeys that is not told yet."""
        return self._tracks.number(journey)

    def feed(self, batch: Batch) -> None:
        self._tracks.feed(batch)
        self._walks.feed(batch)

    def fresh(self) -> set[LinkKey]:
        """As unknown(), once packets were seen at a device for the first time since the last call; else nothing."""
        return self.unknown() if self._tracks.fresh() else set()

    def unknown(self) -> set[LinkKey]:
        """Devices that packets were seen at and that the topology does not have."""
        return {LinkKey(event.netns, event.ifindex) for track in self._tracks.live if self._concerns(track)
                for event in track.events if event.netns and event.ifindex
                and self._at(track.begun).link(event.netns, event.ifindex) is None}

    def rest(self) -> list[Journey]:
        """All that was not told yet."""
        return self._tell_all(self._originals())

    def _originals(self) -> list[Track]:
        return [track for track in self._tracks.live if track.parent is None]

    def _tell_all(self, tracks: list[Track]) -> list[Journey]:
        told = []
        for track in tracks:
            concerns = self._concerns(track)
            self._tracks.forget(track)
            if concerns:
                self._tracks.topology = self._at(track.begun)
                told += self._tell(track)
        self._tracks.topology = self._now
        return told

    def _tell(self, track: Track) -> list[Journey]:
        """One packet: its main way, which may lead through a copy that a bridge made, and the other branches: copies, and
        segments that it was cut into."""
        for copy in track.copies:
            self._tracks.forget(copy)
        branches = [track, *track.copies]
        main = next((b for b in branches if not b.part and self._reached(b)), track)
        number = track.number
        ports = {port for branch in branches for port in self._ports(branch)}
        flooded = {bridge for bridge, _port in ports if len({p for b, p in ports if b == bridge}) > 1}
        flooded |= {LinkKey(e.netns, bridge.ifindex) for branch in branches for e in branch.events
                    if (e.place, e.hook) == (Place.FUNCTION, Function.FLOOD)
                    and (bridge := self._tracks.topology.bridge(e.netns, e.ifindex))}
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
        return {(LinkKey(e.netns, link.master), e.ifindex) for e in track.events if e.place == QUEUE
                and (link := topology.link(e.netns, e.ifindex)) is not None and link.master is not None}

    def _reached(self, track: Track) -> bool:
        """Did this branch get to where the packet was meant to go?"""
        last = track.events[-1]
        return _where(track.events) == self._goal(track) and (last.place in ENDS or is_taken(last))

    def _goal(self, track: Track) -> int | None:
        """The namespace that the packet is meant for; None where nobody known has its destination address."""
        packet = track.packet
        address = packet.dst
        if packet.asked and packet.asking:
            address = packet.asked if is_question(packet) else packet.asking
        return self._tracks.topology.owner(address)

    def _journey(self, number: int, events: list[Event], routes: list[Event], track: Track, flooded: set[LinkKey],
                 parent: int | None) -> Journey:
        machine, topology = self._machine(), self._tracks.topology
        what = self._about(track)
        reader = HopReader(self._tracks, machine, flooded, self._walks)
        hops = reader.read(events, routes)
        begun = reader.begun
        netns = _where(events)
        seen = self._seen(what, netns, topology.namespaces.get(netns))
        end = conclude(events, begun, hops, topology, machine, seen)
        end = end._replace(rule=stopped_by(end, hops))
        if end.result is Result.DELIVERED:
            hops.append(Hop(end.t_ns or 0, netns, end.node or "", None, None, Stage.DELIVER, detail=end.detail,
                            inferred=end.inferred))
            end = self._ended(end, what, events[-1], netns)
        goal = self._goal(track)
        if not any(e.ethernet[0] & 1 for e in events):  # else it is for all who take it, or for nobody
            arrived = seen.where and seen.where.has(decode(events[-1].protocol, events[-1].packet).dst)
            goal = netns if arrived or end.result in (Result.DELIVERED, Result.RELAYED) else goal
        return Journey(
            id=number, packet=track.packet, hops=tuple(hops), end=end, kind="part" if track.part else
            "copy" if parent else what.kind, seq=what.seq, source=topology.node(track.events[0].netns),
            target=topology.node(goal) if goal else None, parent=parent,
            wall_ns=begun + machine.clock_offset_ns, lost_events=track.lost,
            complete=track.lost == 0, frame=frame(track.events[0]))


def _where(events: list[Event]) -> int:
    """The namespace in which the packet was last seen: a socket's skb has lost its device."""
    return next((event.netns for event in reversed(events) if event.netns), 0)
