"""The journeys of test packets: which probe each belongs to, and when all is known of it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection
from dataclasses import replace

from tracer.journey.ends import Seen
from tracer.journey.headers import decode
from tracer.journey.meaning import meaning
from tracer.journey.teller import About, Teller
from tracer.journey.tracks import Track
from tracer.model.journey import End, Journey, Result
from tracer.model.layout import Event, Place
from tracer.model.probes import Machine
from tracer.model.selection import Selection
from tracer.model.topology import Namespace, Topology

GRACE_NS = 20_000_000
SENT = 1024  # probes whose time is remembered
LATE_NS = 10_000_000_000


class Assembler(Teller):
    """Tells the journeys of one probe at a time."""

    def __init__(self, selection: Selection, topology: Topology, machine: Callable[[], Machine],
                 target: int | None) -> None:
        super().__init__(topology, machine)
        self._selection = selection
        self._target = target  # namespace of the destination
        self._answered: set[int] = set()
        self._visited: set[int] = set()  # namespaces that probes and answers were seen in
        self._sent: deque[tuple[int, int]] = deque(maxlen=SENT)  # (CLOCK_MONOTONIC ns, seq), the newest last

    def know(self, topology: Topology, target: int | None) -> None:
        """The network changed, or more of it was read."""
        self._know(topology)
        self._target = target

    def sent(self, seq: int, when: int) -> None:
        """A probe is on its way. `when`: CLOCK_MONOTONIC, ns, just before."""
        self._sent.append((when, seq))

    def answered(self, seq: int) -> None:
        """The sender's socket has the answer to this probe."""
        self._answered.add(seq)

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

    def _about(self, track: Track) -> About:
        """As meaning(), with the probe's whole number: the newest with that key that was sent by then, or of all where the
        packet does not tell."""
        what = meaning(track, self._selection)
        if what.kind == "arp":
            return About(what.kind, None)
        return About(what.kind, next((seq for when, seq in reversed(self._sent) if when <= track.begun
                                      and what.key in (None, self._selection.key(seq))), None))

    def _concerns(self, track: Track) -> bool:
        """A lookup between the same addresses may be that of another network, which the run's packets never see."""
        netns = track.events[0].netns
        return self._about(track).kind != "arp" or netns in (self._tracks.topology.host, self._target) or any(
            netns in {event.netns for event in other.events} for other in self._tracks.live
            if self._about(other).kind != "arp") or netns in self._visited

    def _tell_all(self, tracks: list[Track]) -> list[Journey]:
        for track in tracks:
            if self._about(track).kind != "arp":
                self._visited.update(event.netns for event in track.events)
        return self._linked(super()._tell_all(tracks))

    def _linked(self, journeys: list[Journey]) -> list[Journey]:
        """A proxy's own packets are due to the request that it took in. That they are for this one among its clients'
        follows from the time alone."""
        relayed = {j.seq: j.id for j in journeys if j.end.result is Result.RELAYED}
        return [replace(j, parent=relayed.get(j.seq)) if j.kind in ("relay", "relay_reply") else j for j in journeys]

    def _seen(self, about: About, netns: int, where: Namespace | None) -> Seen:
        return Seen(about.kind, about.seq in self._answered if about.seq is not None else None,
                    self._began("reply", about, netns), self._began("error", about, netns), where)

    def _goal(self, track: Track) -> int | None:
        if self._target is not None and self._about(track).kind == "request":
            return self._target
        return super()._goal(track)

    def _ended(self, end: End, about: About, last: Event, netns: int) -> End:
        """Was it delivered to the proxy that listens there? The proxy's is the namespace of the destination, and a packet
        that a rule translated is not for it."""
        relay, topology = self._selection.relay, self._tracks.topology
        packet = decode(last.protocol, last.packet[:last.captured])
        if about.kind != "request" or relay is None or netns != self._target or packet.dport != self._selection.port:
            return end
        behind = topology.owner(str(relay.address))
        whom = f"{topology.node(behind)} ({relay.address})" if behind else str(relay.address)
        return end._replace(result=Result.RELAYED, detail=(
            f"{relay.program} (pid {relay.pid}) takes it, and connects to {whom} port {relay.port} by itself; which of its "
            "packets are for this probe follows from the time alone"))

    def _began(self, kind: str, what: About, netns: int) -> bool:
        """Was a packet of this kind about this request seen to start in this namespace?"""
        return what.kind == "request" and any(
            self._about(t) == About(kind, what.seq) and t.events[0].netns == netns for t in self._originals())
