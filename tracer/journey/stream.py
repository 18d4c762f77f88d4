"""The journeys of real traffic: each is told once nothing more can be learned about it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from operator import itemgetter

from tracer.journey.ends import Seen
from tracer.journey.headers import mac
from tracer.journey.teller import About, Teller
from tracer.journey.templates import Ask, Templates
from tracer.journey.tracks import DEVICES, DROP, FUNCTION, HOOK, QUEUE, Track
from tracer.model.journey import Journey
from tracer.model.layout import Event
from tracer.model.probes import HOOKS, Batch, Machine
from tracer.model.topology import LinkKey, Namespace, Topology

SETTLED_NS = 5_000_000  # from the end that was seen: copies and segments still come
TAKEN_NS = 200_000_000  # a socket may hold the packet for long: that it was not dropped by then is all that can be said
NEIGHBOR_NS = 4_000_000_000  # a neighbour's failure takes 3 s
NAMING_NS = 1_000_000_000  # how long a journey is kept back for the name of what it met
BEHIND_NS = 5_000_000_000  # the longest, where a busy machine leaves no time to read the network
DECIDED = (QUEUE, DROP, FUNCTION)  # where a bridge's decision may be told
DEVICE = itemgetter(*map(Event._fields.index, ("netns", "ifindex")))
LIKE = itemgetter(Event._fields.index("like"))
REPLIES = {3, 4}  # IP_CT_ESTABLISHED_REPLY, IP_CT_RELATED_REPLY


class Stream(Teller):
    def __init__(self, topology: Topology, machine: Callable[[], Machine]) -> None:
        super().__init__(topology, machine, chosen_rules=True)
        self._armed = 0
        self._templates = Templates()
        self._named: tuple[Topology | None, set[object]] = (None, set())  # devices that have a name in it, and Event.like
        self._nameless: dict[LinkKey, int] = {}  # -> when it was first met, ns

    def armed(self, now: int) -> None:
        """Since now, CLOCK_MONOTONIC in ns, netfilter is watched: what began before may lack hops."""
        self._armed = now

    def feed(self, batch: Batch) -> None:
        self._tracks.feed(batch)
        if self._machine().untraced is not None:  # rules are traced
            self._walks.feed(batch)

    def know(self, topology: Topology) -> None:
        """The network changed, or more of it was read."""
        self._know(topology)
        self._nameless = {key: met for key, met in self._nameless.items() if not self._has_name(key, topology)}

    def take(self, now: int, heard: int | None = None) -> list[Journey]:
        """The journeys that are over by now (CLOCK_MONOTONIC, ns), in the order in which they began. They are told once.

        `heard`: the topology has all that was announced until then, and later packets wait for more.
        """
        return self._tell_all([track for track in self._originals() if _is_over(track, now)
                               and not self._waits_for_names(track, now, heard)])

    def _waits_for_names(self, track: Track, now: int, heard: int | None) -> bool:
        """What just came is known only a moment after its first packet; a namespace that nobody made a name for stays
        without."""
        seen = _last_seen(track)
        if heard is not None and now - seen < BEHIND_NS:
            now = min(now, heard)  # as far as the network is known
            if now < seen:
                return True
        topology = self._at(track.begun)
        if topology is not self._named[0]:
            self._named = (topology, set())
        named = self._named[1]
        if not track.copies and named.issuperset(map(LIKE, track.events)):
            return False
        met = {DEVICE(event) for branch in (track, *track.copies) for event in branch.events} - named
        without = {key for key in met if not self._has_name(LinkKey(*key), topology)}
        if len(named) > DEVICES:
            named.clear()
        named |= met - without
        if not without:
            named |= set(map(LIKE, track.events)) - {None}
            return False
        return any(now - self._nameless.setdefault(LinkKey(*key), now) < NAMING_NS for key in without)

    def _tell(self, track: Track) -> list[Journey]:
        machine = self._machine()
        if track.copies or track.part or machine.untraced is not None:
            told = super()._tell(track)
        else:
            context = (machine, self._tracks.topology, len(self._tracks.tracking), self._tracks.paired)
            told = [self._templates.journey(track, context, self._known_port, lambda: super(Stream, self)._tell(track)[0])]
        whole = track.begun > self._armed and track.events[0].first  # else a file of a recording begins amid it
        return told if whole else [replace(journey, complete=False) for journey in told]

    def _concerns(self, track: Track) -> bool:
        """Namespaces of another engine, or another lab, are not of this network."""
        known = self._tracks.topology.namespaces
        return any(event.netns in known for branch in (track, *track.copies) for event in branch.events)

    def _about(self, track: Track) -> About:
        if track.packet.asked:
            return About("arp")
        if track.packet.quoted:
            return About("error")
        tracked = [event.conntrack_info for event in track.events if event.conntrack and event.place == HOOK]
        return About("packet" if not tracked else "request" if REPLIES.isdisjoint(tracked) else "reply")

    def _known_port(self, event: Event) -> Ask | None:
        """Where a bridge knew the destination of a frame that this device sends, or was to send."""
        link = self._tracks.topology.link(event.netns, event.ifindex) if event.place in DECIDED else None
        return partial(self._tracks.port_of, event.netns, link.master, mac(event.ethernet[:6])) \
            if link and link.master else None

    def _seen(self, about: About, netns: int, where: Namespace | None) -> Seen:
        return Seen("other", where=where)

    def _has_name(self, key: LinkKey, topology: Topology) -> bool:
        """The host's devices lead to others; those of others bring their names themselves."""
        if key.netns == topology.host and key.ifindex:
            link = topology.link(key.netns, key.ifindex)
            return link is not None and (link.kind != "veth" or self._tracks.peer_of(key.netns, key.ifindex) is not None)
        return not key.netns or key.netns in topology.names


def _last_seen(track: Track) -> int:
    seen = track.events[-1].time
    return max(seen, *(copy.seen for copy in track.copies)) if track.copies else seen


def _is_over(track: Track, now: int) -> bool:
    quiet = now - _last_seen(track)
    if quiet <= SETTLED_NS:
        return False
    if track.ended and all(copy.ended for copy in track.copies):
        return True
    if quiet <= TAKEN_NS:
        return False
    last = track.events[-1]
    waits = last.place == HOOK and HOOKS[last.hook] in ("output", "postrouting")  # for its neighbour's MAC
    return quiet > (NEIGHBOR_NS if waits else TAKEN_NS)
