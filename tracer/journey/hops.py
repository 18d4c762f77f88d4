"""Events to hops: what each place meant to the packet."""

from __future__ import annotations

from collections.abc import Sequence

from tracer.journey.conntrack import entry
from tracer.journey.headers import decode, mac
from tracer.journey.routes import choice, parse, sentence
from tracer.journey.stack import FROM_A_PORT, FROM_THE_HOST, SWITCHING, UP_TO_THE_HOST, own_frames
from tracer.journey.tracks import Tracks, device_name
from tracer.journey.walks import Walks
from tracer.model.frame import IPV4, IPV6
from tracer.model.journey import Hop, Rewrite, Role, Stage, Table
from tracer.model.layout import HOOK_BEGINS, HOOK_ENDS, HOOK_TABLE, Event, Function, Place
from tracer.model.probes import HOOKS, HookPoint, Machine
from tracer.model.topology import Link, LinkKey, Namespace, Topology

NOTHING = Rewrite()
INNERMOST = 8  # functions of a stack
NUD_VALID = 0xDE  # include/net/neighbour.h: the states in which a neighbour has a MAC
BROADCAST = "ff:ff:ff:ff:ff:ff"
# enum ip_conntrack_info, in the words of iptables' --ctstate
CONNTRACK = {0: "ESTABLISHED", 1: "RELATED", 2: "NEW", 3: "ESTABLISHED", 4: "RELATED", 7: "UNTRACKED"}


class HopReader:
    """Turns the events of one packet into its hops."""

    def __init__(self, tracks: Tracks, machine: Machine, flooded: set[LinkKey], walks: Walks) -> None:
        self._tracks = tracks
        self._topology: Topology = tracks.topology
        self._machine = machine
        self._walks = walks
        self._flooded = flooded  # bridges that sent copies of this packet out by several ports
        self._observed: LinkKey | None = None  # the bridge that the packet is in, once its decision was seen itself
        self._hops: list[Hop] = []
        self._start = self._netns = self.begun = 0  # begun: time of the first hop, after read()

    def read(self, events: Sequence[Event], routes: Sequence[Event] = ()) -> list[Hop]:
        """`routes`: the lookups for this packet; they belong between its events by time."""
        first = events[0]
        every = events
        places = [event for event in events if event.place != Place.CONSUME and (
            event.place != Place.DROP or frozenset(own_frames(event.stack)) & SWITCHING)]
        ordered = sorted((*places, *routes), key=lambda event: event.time)
        events = []
        for event in ordered:
            while events and events[-1].place == event.place == Place.ROUTE and _asked_again(events[-1], event):
                events.pop()
            at = len(events)
            while at and event.place == Place.HOOK and events[at - 1].place == Place.ROUTE:
                at -= 1
            # DNAT in OUTPUT looks the route up in the midst of the hook
            in_its_midst = at and event.place == Place.HOOK and _same_hook(event, events[at - 1])
            events.insert(at if in_its_midst else len(events), event)
        self.begun = self._start = events[0].time if events else first.time
        self._netns = first.netns
        at = 0
        while at < len(events):
            event = events[at]
            at += 1
            if event.place == Place.ROUTE:
                self._route(event)
            elif event.place == Place.DROP or (event.place, event.hook) == (Place.FUNCTION, Function.FORWARD):
                # the function that sends a packet out by a port, or the drop of one on its way there
                bridge = self._topology.bridge(event.netns, event.ifindex)
                if bridge:
                    self._decided(event, bridge)
            elif event.place == Place.QUEUE:
                self._queue(event)
            elif event.place == Place.RECEIVE:
                self._receive(event)
            elif (event.place, event.hook) == (Place.FUNCTION, Function.LOCAL):
                bridge = self._topology.bridge(event.netns, event.ifindex)
                if bridge:
                    self._local(event, bridge)
            elif (event.place, event.hook) == (Place.FUNCTION, Function.NEIGHBOR):
                self._neighbor(event)
            elif event.place == Place.HOOK:
                group = [event]
                while at < len(events) and _same_hook(events[at], group[-1]):
                    group.append(events[at])
                    at += 1
                self._hook(group, [*events[at:], every[-1]])
        linked = {netns for netns, _hook, _slot in self._machine.hook_points}
        return self._walks.at_devices(every, self._hops, self._topology, linked)

    def _add(self, event: Event, stage: Stage, detail: str, *, role: Role | None = None, bridge: Link | None = None,
             inferred: bool = False, at: int | None = None) -> None:
        hop = Hop(event.time - self._start, event.netns, self._topology.node(event.netns), device_name(event),
                  event.ifindex, stage, role, bridge.name if bridge else None, detail=detail, inferred=inferred)
        self._hops.insert(len(self._hops) if at is None else at, hop)

    def _queue(self, event: Event) -> None:
        link = self._topology.link(event.netns, event.ifindex)
        bridge = self._topology.bridge(event.netns, event.ifindex)
        if link and bridge and link.ifindex == bridge.ifindex:
            if frozenset(own_frames(event.stack)) & FROM_A_PORT:
                return  # br_netfilter looks up a MAC by the bridge's own transmission, and takes the frame back from it
            self._add(event, Stage.EGRESS, f"as a NIC: {self._node(event)} sends through {bridge.name}", role=Role.NIC,
                      bridge=bridge)
            return
        if bridge:
            self._decided(event, bridge)
        peer = self._tracks.peer_of(event.netns, event.ifindex)
        if bridge:
            words = f"peer of {':'.join(peer)}" if peer else "out by this port"
        elif device_name(event) == "lo":
            words = f"never leaves {self._node(event)}"
        else:
            words = f"leaves {self._node(event)}"
        self._add(event, Stage.EGRESS, words, bridge=bridge)

    def _decided(self, event: Event, bridge: Link) -> None:
        """The bridge chose this port: seen itself, proven by the stack, or concluded from the devices before."""
        if self._is_known(event, bridge):
            return
        seen = event.place == Place.FUNCTION
        frames = frozenset(own_frames(event.stack))
        inferred = not (seen or frames & SWITCHING)
        previous = self._hops[-1] if self._hops else None
        if inferred and not (previous and previous.netns == event.netns and previous.bridge == bridge.name):
            return
        address = mac(event.ethernet[0:6])
        known = self._tracks.port_of(event.netns, bridge.ifindex, address, event.time)
        if int(address[:2], 16) & 1:
            stage, words = Stage.L2_FLOOD, f"to every port ({_group(address)})"
        elif LinkKey(event.netns, bridge.ifindex) in self._flooded:
            stage, words = Stage.L2_FLOOD, f"to every port (no fdb row for {address})"
        elif event.netns in self._topology.namespaces and (known is None or known[0] != event.ifindex) and not (
                seen and "br_flood" in self._machine.attached):
            # a lone copy: that the bridge did not know the port follows from its table alone
            inferred = True
            stage, words = Stage.L2_FLOOD, f"to the only other port (no fdb row for {address} was read)"
        else:
            peer = self._tracks.peer_of(event.netns, event.ifindex)
            if known and (known[0] == event.ifindex or not seen):
                row = f"fdb {known[1]}: {address} dev {device_name(event)}"
            else:
                row = "by a row of its fdb that was not read" if seen else "its fdb could not be read"
            stage, words = Stage.L2_FORWARD, f"to the port of {peer[0] if peer else device_name(event)} ({row})"
        if not (seen or frames & SWITCHING):
            words += "; concluded from the devices, no stack was seen"
        # netfilter's FORWARD and POSTROUTING run after the decision, inside __br_forward
        from_a_port = bool(frames & FROM_A_PORT) or not frames & FROM_THE_HOST
        at = len(self._hops)
        while not seen and at and self._hops[at - 1].stage in (Stage.FORWARD, Stage.POSTROUTING) and \
                self._hops[at - 1].netns == event.netns and from_a_port:
            at -= 1
        if from_a_port and at:
            before = self._hops[at - 1]
            if before.stage is Stage.EGRESS and (before.netns, before.ifindex) == (event.netns, bridge.ifindex):
                at -= 1  # as in _queue(), after the MAC was asked for
                del self._hops[at]
            asked = next((hop for hop in reversed(self._hops[:at]) if hop.stage is not Stage.NEIGHBOR), None)
            if asked and asked.stage is Stage.ROUTE and asked.netns == event.netns:
                words += "; br_netfilter's NAT gave it that MAC, so it stays on the bridge"
        if from_a_port and _unfiltered(self._topology.namespaces.get(event.netns), event.protocol):
            words += "; br_netfilter is not loaded: iptables does not see bridged packets"
        when = self._hops[at].t_ns if at < len(self._hops) else event.time - self._start
        self._hops.insert(at, Hop(when, event.netns, self._node(event), bridge.name, bridge.ifindex, stage, Role.SWITCH,
                                  bridge.name, detail=f"as a SWITCH: {words}", inferred=inferred, timed=seen))

    def _is_known(self, event: Event, bridge: Link) -> bool:
        """Was the decision that shows here seen itself, as a function of the bridge began?"""
        here, before = LinkKey(event.netns, bridge.ifindex), self._observed
        self._observed = here if event.place == Place.FUNCTION else None
        return event.place != Place.FUNCTION and before == here

    def _local(self, event: Event, bridge: Link) -> None:
        """The bridge hands the packet up to its own device."""
        if self._is_known(event, bridge):
            return
        address = mac(event.ethernet[0:6])
        if int(address[:2], 16) & 1:
            words = f"as a NIC: a {_group(address)} goes up to the host too"
        elif address == bridge.mac:
            words = f"as a NIC: the frame is for {bridge.name}'s own MAC, up to the host's IP layer"
        else:
            words = "as a NIC: up to the host's IP layer"
        itself = event.place == Place.FUNCTION  # the device is the port then
        seen = itself or frozenset(own_frames(event.stack)) & UP_TO_THE_HOST
        self._add(event, Stage.L2_LOCAL, words, role=Role.NIC, bridge=bridge, inferred=not seen)
        if itself:
            self._hops[-1] = self._hops[-1]._replace(device=bridge.name, ifindex=bridge.ifindex)

    def _receive(self, event: Event) -> None:
        link = self._topology.link(event.netns, event.ifindex)
        bridge = self._topology.bridge(event.netns, event.ifindex)
        if link and bridge and link.ifindex == bridge.ifindex:
            self._local(event, bridge)
            return
        peer = self._tracks.peer_of(event.netns, event.ifindex)
        if bridge:
            words = f"peer of {':'.join(peer)}, port of {bridge.name}" if peer else f"port of {bridge.name}"
        elif device_name(event) == "lo":
            words = "loopback"
        else:
            words = f"enters {self._node(event)}"
        self._add(event, Stage.INGRESS, words, bridge=bridge)

    def _route(self, event: Event) -> None:
        lookup = parse(event)
        netns = event.netns or (self._hops[-1].netns if self._hops else self._netns)
        device = device_name(event) or None
        route = choice(lookup, device, event.ifindex, self._topology.namespaces.get(netns))
        local = route.kind == "local"
        self._hops.append(Hop(event.time - self._start, netns, self._topology.node(netns), None if local else device,
                              None if local else event.ifindex or None, Stage.ROUTE, route=route,
                              detail=sentence(route, lookup)))

    def _neighbor(self, event: Event) -> None:
        if event.slot & NUD_VALID:
            return  # it goes on at once
        route = next((hop.route for hop in reversed(self._hops) if hop.route and hop.netns == event.netns), None)
        to = route and (route.gateway or decode(event.protocol, event.packet[:event.captured]).dst)
        self._add(event, Stage.NEIGHBOR, f"waits: the MAC of {to or 'its next hop'} is not known")

    def _hook(self, group: list[Event], behind: list[Event]) -> None:
        """`behind`: what was seen of the packet afterwards, and its last event."""
        first, last = group[0], group[-1]
        bridge = self._topology.bridge(first.netns, first.ifindex)
        points = [point for e in group if (point := self._machine.hook_points.get((e.netns, HOOKS[e.hook], e.slot)))
                  or not HOOK_TABLE <= e.slot < HOOK_ENDS]  # of a table that is told with others there is none
        stopped_at, missed = self._tables_behind(last), ""
        if HOOK_BEGINS <= last.slot < HOOK_ENDS and _went_on(behind):
            if HOOKS[first.hook] == "prerouting" and self._hops and self._hops[-1].stage is Stage.L2_LOCAL and any(
                    (hop.stage, hop.netns) == (Stage.PREROUTING, first.netns) for hop in self._hops):
                return  # br_netfilter had it pass in the bridge, and takes it past the hook here (ip_sabotage_in)
            stopped_at, missed = (), "its end was not seen: a rule queued the packet, or its event was missed"
        conntrack = None
        if any(point and point.conntrack for point in points):
            if last.conntrack or last.conntrack_info == 7:
                conntrack = CONNTRACK.get(last.conntrack_info)
            elif last.netns in self._tracks.tracking:  # others have an entry here, this one got none
                conntrack = "INVALID"
        before, after = decode(first.protocol, first.packet[:first.captured]), \
            decode(last.protocol, last.packet[:last.captured])
        rewrite = None if before is after else Rewrite(
            (before.src, after.src) if before.src != after.src else None,
            (before.dst, after.dst) if before.dst != after.dst else None,
            (before.sport, after.sport) if before.sport and after.sport and before.sport != after.sport else None,
            (before.dport, after.dport) if before.dport and after.dport and before.dport != after.dport else None)
        out = self._topology.link(first.netns, first.out_ifindex) if first.out_ifindex else None
        hop = Hop(first.time - self._start, first.netns, self._node(first), device_name(first), first.ifindex,
                  Stage(HOOKS[first.hook]), None, bridge.name if bridge and bridge.ifindex == first.ifindex else None,
                  tables=_tables(points, last.protocol), stopped_at=stopped_at, conntrack=conntrack,
                  entry=entry(last.tuples),
                  rewrite=rewrite if rewrite != NOTHING else None,
                  detail=", ".join(filter(None, (f"to {out.name}" if out and out.ifindex != first.ifindex else "", missed))))
        rules, unknown = self._walks.at_hook(group, hop, self._topology, self._machine.untraced)
        self._hops.append(hop._replace(rules=rules, rules_unknown=unknown) if rules or unknown else hop)

    def _tables_behind(self, event: Event) -> tuple[Table, ...]:
        """The tables between this netfilter link and the next one, which was not reached."""
        ends = HOOK_ENDS if event.slot >= HOOK_BEGINS else event.slot + 1
        for slot in range(event.slot + 1, ends + 1):
            if point := self._machine.hook_points.get((event.netns, HOOKS[event.hook], slot)):
                return _of_version(point.tables or (), event.protocol)
        return ()

    def _node(self, event: Event) -> str:
        return self._topology.node(event.netns)


def _asked_again(event: Event, behind: Event) -> bool:
    """A table without a row: policy rules, or IPv6's local table, led on to the next. And for an ICMPv6 error the kernel
    asks the same two or three times, until its source is chosen."""
    one, other = parse(event), parse(behind)
    return bool(one.error) or (event.netns, event.ifindex, one.destination, one.gateway, one.table) == (
        behind.netns, behind.ifindex, other.destination, other.gateway, other.table)


def _same_hook(a: Event, b: Event) -> bool:
    """Are these two links at one traversal of one hook? A packet that meets the hook again begins at slot 0 again."""
    return (a.place, a.netns, a.hook, a.family) == (b.place, b.netns, b.hook, b.family) and a.slot > b.slot


def _went_on(behind: list[Event]) -> bool:
    """Was the packet seen again behind a hook, at a device, another hook or a function, or dropped outside of netfilter? Who
    drops it in a hook is called by nf_hook_slow(), or is that. Far out that may stand as well: br_netfilter has the packet
    go on inside."""
    frames = own_frames(behind[-1].stack) if behind[-1].place == Place.DROP else ()
    return any(event.place not in (Place.DROP, Place.ROUTE) for event in behind[:-1]) or (
        bool(frames) and "nf_hook_slow" not in frames[:INNERMOST])


def _of_version(tables: tuple[Table, ...], protocol: int) -> tuple[Table, ...]:
    """A link serves both versions of IP where both are followed."""
    return tuple(table for table in tables if table.family != ("ip6" if protocol == IPV4 else "ip"))


def _tables(points: list[HookPoint | None], protocol: int) -> tuple[Table, ...] | None:
    """The tables that were passed; None where they are not known."""
    if any(point is None or point.tables is None for point in points):
        return None
    return tuple(table for point in points if point for table in _of_version(point.tables or (), protocol))


def _unfiltered(namespace: Namespace | None, protocol: int) -> bool:
    """Are there rules for forwarded packets of this kind, which those that a bridge switches do not meet since the module
    that would show them is not loaded? Its settings are missing then."""
    families = {IPV4: ("ip", "inet"), IPV6: ("ip6", "inet")}.get(protocol, ())
    return namespace is not None and bool(namespace.sysctls) and \
        not any(name.startswith("net.bridge.") for name in namespace.sysctls) and \
        any(chain.hook == "forward" and chain.family in families for chain in namespace.chains or ())


def _group(address: str) -> str:
    return "broadcast" if address == BROADCAST else "multicast"
