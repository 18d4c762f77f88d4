"""Statistics by flow in bounded memory, however long it runs and however many come by.

A flow is here all connections of one client to one service: a busy host has thousands of them a minute, each with a port of
its own, and no two different stories to tell. Both directions and both sides of a NAT are found by the connection's tuples.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Sequence, Set
from heapq import nlargest
from itertools import pairwise
from math import ceil

from tracer.model.journey import BRANCHES, Direction, Hop, Hops, Journey, Packet, Result, endpoint, of_way
from tracer.model.report import FlowSummary, Latency, LiveSummary, OneWay, Spot, Step

KEPT = 128  # flows, the busiest; up to twice as many until it is decided which
CONNECTIONS = 16384  # tuples whose flow is remembered
STEPS = 48  # different ones of a flow's direction
ROWS = 32  # journeys of a flow's direction whose times are kept until they are counted
BRIDGES = 64
_ECHO_REPLIES = 0, 129

# Protocol, source and its port, destination and its port. Where there are no ports, the client's side has a number instead:
# the ICMP identifier, or 0 for who asks for a MAC address.
_Tuple = tuple[str, str, int | None, str, int | None]
_Place = tuple[str, str | None, str]  # node, device, stage


class Flows:
    """What is told to add() is counted, and nothing of it kept but the latest times."""

    def __init__(self, kept: int = KEPT, connections: int = CONNECTIONS) -> None:
        self._kept, self._most_connections = kept, connections
        self._all = _Tally()
        self._flows: dict[tuple[str, str, str, int | None], _Flow] = {}
        # whose packets these are, and whether the client's; latest last
        self._known: OrderedDict[_Tuple, tuple[_Flow, bool]] = OrderedDict()
        self._copies = self._other_journeys = self._other_dropped = 0

    def add(self, journey: Journey) -> None:
        """Copies and parts are counted as such: their packet is their parent's."""
        if journey.kind in BRANCHES:
            self._copies += 1
            return
        flow, from_client = self._flow(journey)
        roles = _roles(journey.hops)
        flow.add(journey, from_client, roles)
        self._all.add(journey, roles)

    def talkers(self, most: int = 3) -> list[tuple[str, int]]:
        """The flows with the most journeys, and how many."""
        busiest = self._busiest(most)
        names = [flow.name for flow in busiest]
        return [(flow.name if names.count(flow.name) == 1 else f"{flow.name} {flow.proto}", flow.tally.journeys)
                for flow in busiest]

    def summary(self) -> LiveSummary:
        """What only the session knows (seconds, events, losses, share, notes) is left for it to fill in."""
        kept = self._busiest(self._kept)
        rest = [flow for flow in self._flows.values() if flow not in kept]
        tally = self._all
        return LiveSummary(tally.journeys, tally.delivered, dict(tally.drops.most_common()), dict(tally.ends), tally.roles(),
                           self._copies, tuple(flow.summary() for flow in kept),
                           self._other_journeys + sum(flow.tally.journeys for flow in rest),
                           self._other_dropped + sum(flow.tally.dropped for flow in rest))

    def _busiest(self, most: int) -> list[_Flow]:
        return nlargest(most, self._flows.values(), key=lambda flow: flow.tally.journeys)

    def _flow(self, journey: Journey) -> tuple[_Flow, bool]:
        """The journey's flow, and whether the client sent this packet. An ICMP error is about one of the flow's packets."""
        error = journey.packet.quoted
        own = _tuple(error or journey.packet)
        known = self._known.pop(own, None)
        if known is None or not known[0].kept:
            known = self._find(journey, own)
        self._known[own] = known
        if error is None and known[1] and not known[0].named:
            known[0].call(journey.source or own[1], journey.target or own[3], own[4])
        return known

    def _find(self, journey: Journey, own: _Tuple) -> tuple[_Flow, bool]:
        entries = [hop.entry for hop in journey.hops if hop.entry]
        from_client = _from_client(journey, own)
        if entries:
            from_client = _directed(own[0], entries[0].original, True) == own or (
                _directed(own[0], entries[0].reply, False) != own and from_client)
        tuples: dict[_Tuple, bool] = {own: from_client, _back(own): not from_client}
        for entry in entries:
            for one, client in ((entry.original, True), (entry.reply, False)):
                each = _directed(own[0], one, client)
                tuples |= {each: client, _back(each): not client}
        flow = next((known[0] for each in tuples if (known := self._known.get(each)) and known[0].kept), None)
        if flow is None:
            # as the client sent it: in the namespace nearest to the client
            asked = _directed(own[0], entries[0 if from_client else -1].original, True) if entries else \
                own if from_client else _back(own)
            key = (asked[0], asked[1], asked[3], asked[4])
            flow = self._flows.get(key) or self._new(key)
            flow.connections += 1
        for each, client in tuples.items():
            self._known[each] = flow, client
        while len(self._known) > self._most_connections:
            self._known.popitem(last=False)
        return flow, from_client

    def _new(self, key: tuple[str, str, str, int | None]) -> _Flow:
        if len(self._flows) >= 2 * self._kept:
            stay = set(map(id, self._busiest(self._kept)))
            for old, flow in list(self._flows.items()):
                if id(flow) not in stay:
                    flow.kept, flow.ways = False, {}
                    self._other_journeys += flow.tally.journeys
                    self._other_dropped += flow.tally.dropped
                    del self._flows[old]
        self._flows[key] = flow = _Flow(*key)
        return flow


class _Flow:
    def __init__(self, proto: str, client: str, service: str, port: int | None) -> None:
        self.proto, self.client, self.service, self.port = proto, client, service, port
        self.named = False  # by the nodes' names
        self.kept = True
        self.connections = 0
        self.tally = _Tally()
        self.ways = {True: _Way(), False: _Way()}

    @property
    def name(self) -> str:
        return f"{self.client} → {endpoint(self.service, self.port)}"

    def call(self, client: str, service: str, port: int | None) -> None:
        self.client, self.service, self.port, self.named = client, service, port, True

    def add(self, journey: Journey, from_client: bool, roles: Set[tuple[str, str]]) -> None:
        self.tally.add(journey, roles)
        if journey.packet.quoted is None:
            self.ways[from_client].add(journey)

    def summary(self) -> FlowSummary:
        tally = self.tally
        return FlowSummary(self.name, self.client, self.service, self.port, self.proto,
                           None if self.port is None else self.connections, tally.journeys, tally.delivered,
                           dict(tally.drops.most_common()), dict(tally.ends), tally.roles(), tally.incomplete,
                           self.ways[True].summary(), self.ways[False].summary())


class _Tally:
    def __init__(self) -> None:
        self.journeys = self.incomplete = 0
        self.ends: Counter[str] = Counter()
        self.drops: Counter[str] = Counter()
        self._bridges: dict[str, set[str]] = {}

    @property
    def delivered(self) -> int:
        return self.ends[Result.DELIVERED.value]

    @property
    def dropped(self) -> int:
        return self.ends[Result.DROPPED.value]

    def add(self, journey: Journey, roles: Set[tuple[str, str]]) -> None:
        """`roles`: bridges with what they were, as far as this packet saw."""
        self.journeys += 1
        self.incomplete += not journey.complete
        self.ends[journey.end.result.value] += 1
        if journey.end.result is Result.DROPPED:
            cause = next((cause.name for cause in journey.end.causes if not cause.remark), None)
            self.drops[cause or journey.end.reason or "no reason known"] += 1
        for bridge, role in roles:
            if bridge in self._bridges or len(self._bridges) < BRIDGES:
                self._bridges.setdefault(bridge, set()).add(role)

    def roles(self) -> dict[str, tuple[str, ...]]:
        return {name: tuple(sorted(roles)) for name, roles in sorted(self._bridges.items())}


class _Way:
    """One direction of a flow."""

    def __init__(self) -> None:
        self._journeys = self._left_out = 0
        self._latency = _Times()
        self._steps: dict[tuple[_Place, _Place], _Step] = {}
        self._durations: list[int] = []
        self._rows: dict[int, tuple[Sequence[Hop], list[list[int]]]] = {}  # one who went a way, and the times of all who did

    def add(self, journey: Journey) -> None:
        self._journeys += 1
        if journey.end.result is Result.DELIVERED:
            self._durations.append(journey.duration_ns)
        hops = journey.hops
        if isinstance(hops, Hops):
            self._rows.setdefault(id(hops.rest), (hops, []))[1].append(hops.times)
            if self._journeys % ROWS:
                return
        else:  # alone on its way
            self._rows[id(hops)] = hops, [[hop.t_ns for hop in hops]]
        self._count()

    def _count(self) -> None:
        """Many times of one way at once cost half."""
        self._latency.add(self._durations)
        for hops, rows in self._rows.values():
            timed = [(at, (hop.node, hop.device, hop.stage._value_)) for at, hop in enumerate(hops) if hop.timed]
            for (first, before), (second, after) in pairwise(timed):
                step = self._steps.get((before, after))
                if step is None:
                    if len(self._steps) >= STEPS:
                        self._left_out += len(rows)
                        continue
                    step = self._steps[before, after] = _Step()
                step.begins += sum([row[first] for row in rows])
                step.add([row[second] - row[first] for row in rows])
        self._durations, self._rows = [], {}

    def summary(self) -> OneWay:
        self._count()
        steps = sorted(self._steps.items(), key=lambda item: item[1].begins / item[1].count)
        return OneWay(self._journeys, self._latency.count, self._latency.summary(), tuple(
            Step(Spot(*before), Spot(*after), latency) for (before, after), step in steps
            if (latency := step.summary())), self._left_out)


class _Times:
    """A histogram whose buckets grow with the time: 8 to each doubling, so that a quantile is right to a sixteenth."""

    def __init__(self) -> None:
        self.count = 0
        self._buckets: Counter[int] = Counter()

    def add(self, times: list[int]) -> None:
        """In ns."""
        self.count += len(times)
        self._buckets.update([((shift := ns.bit_length() - 4) << 3) + (ns >> shift) if ns > 15 else max(ns, 0)
                              for ns in times])

    def summary(self) -> Latency | None:
        return Latency(self.count, self._quantile(0.5), self._quantile(0.99)) if self.count else None

    def _quantile(self, share: float) -> int:
        """The middle of the bucket in which it lies."""
        behind = ceil(share * self.count)
        for bucket in sorted(self._buckets):
            behind -= self._buckets[bucket]
            if behind <= 0:
                break
        shift = max((bucket >> 3) - 1, 0)
        return (bucket - (shift << 3) << shift) + (1 << shift >> 1)


class _Step(_Times):
    """From one hop to the next."""

    def __init__(self) -> None:
        super().__init__()
        self.begins = 0  # sum of the times since the first hop, for the order


@of_way
def _roles(hops: Sequence[Hop]) -> set[tuple[str, str]]:
    """Bridges with what they were, as far as this packet saw."""
    return {(hop.bridge, hop.role.value) for hop in hops if hop.role and hop.bridge}


def _tuple(packet: Packet) -> _Tuple:
    if packet.asked is not None:  # ARP and neighbour discovery, as if the question were sent to whom it is about
        asks = ("arp" if packet.proto == "arp" else "ndp", packet.asking or packet.src, 0, packet.asked, None)
        return asks if packet.told is None else _back(asks)
    if packet.icmp_id is not None:
        client = packet.icmp_type not in _ECHO_REPLIES
        return (packet.proto, packet.src, packet.icmp_id if client else None, packet.dst, None if client else packet.icmp_id)
    return packet.proto, packet.src, packet.sport, packet.dst, packet.dport


def _directed(proto: str, one: Direction, client: bool) -> _Tuple:
    if one.icmp_id is not None:
        return proto, one.src, one.icmp_id if client else None, one.dst, None if client else one.icmp_id
    return proto, one.src, one.sport, one.dst, one.dport


def _back(one: _Tuple) -> _Tuple:
    return one[0], one[3], one[4], one[1], one[2]


def _from_client(journey: Journey, own: _Tuple) -> bool:
    """Where no conntrack entry says so: by what only a client sends, else the side with the lower port serves."""
    packet = journey.packet.quoted or journey.packet
    if packet is journey.packet and journey.kind in ("request", "reply"):
        return journey.kind == "request"
    if packet.asked is not None:
        return packet.told is None
    if packet.icmp_type is not None:
        return packet.icmp_type not in _ECHO_REPLIES
    if packet.tcp_flags and "SYN" in packet.tcp_flags:
        return "ACK" not in packet.tcp_flags
    return packet.sport is None or packet.dport is None or packet.sport >= packet.dport
