"""The way that a connection's first packet should take by the present tables, in the tracer's words. Nothing is sent.

Told is what follows surely. Where something decides that the tables do not tell (Unsure), the way ends there and says so.
Not looked at: tc filters, XDP, IPsec, the size of the packet, and whether a program listens where it arrives.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from tracer.journey.case import USUAL_TABLES, rows
from tracer.journey.causes import explain
from tracer.journey.owners import owner
from tracer.journey.routes import Lookup, choice, sentence
from tracer.map.deciding import Decision, Unsure, decide
from tracer.map.matching import Packet as Known
from tracer.map.passage import Trip
from tracer.map.view import View
from tracer.model.journey import End, Hop, Journey, Packet, Result, Role, Rule, Stage
from tracer.model.ruleset import Ruleset
from tracer.model.topology import Address, Link, Namespace, Route, Topology

_HOPS = 64  # a loop is no way
_ICMP = {4: ("icmp", 8), 6: ("icmpv6", 128)}


def expected(topology: Topology, rules_of: Callable[[Namespace], Ruleset], trip: Trip) -> Journey:
    """`trip` without a protocol is an echo request. `rules_of` is asked for the namespaces on the way alone. The end is
    `unknown` where the tables do not tell, with why."""
    return _Traveller(topology, rules_of, trip).travel()


class _Ended(Exception):
    def __init__(self, end: End) -> None:
        self.end = end


@dataclass(slots=True)
class _Traveller:
    topology: Topology
    rules_of: Callable[[Namespace], Ruleset]
    trip: Trip
    read: dict[int, Ruleset] = field(default_factory=dict)  # by namespace
    hops: list[Hop] = field(default_factory=list)
    sender: Address | None = None
    src: Address | None = None  # as NAT has left it, as are the next two
    dst: Address | None = None
    port: int | None = None

    def travel(self) -> Journey:
        self.dst, self.port = self.trip.address, self.trip.port
        proto, kind = _ICMP[self.trip.address.version]
        try:
            self._send(self.trip.source)
            raise AssertionError("a way ends by _Ended")
        except _Ended as done:
            end = done.end
        except Unsure as why:
            end = End(Result.UNKNOWN, detail=str(why))
        packet = Packet(self.trip.address.version, self.trip.proto or proto, str(self.sender or "?"), str(self.trip.address),
                        0, dport=self.trip.port, icmp_type=None if self.trip.proto else kind)
        target = self.topology.owner(str(self.trip.address))
        journey = Journey(1, packet, tuple(self.hops), end, "request", 1, self.topology.node(self.trip.source.netns),
                          self.topology.node(target) if target is not None else None)
        silent = {1} if end.result is Result.DROPPED else set()
        return explain([journey], self.topology, silent)[0]

    # IP ----------------------------------------------------------------------------------------------------------------

    def _send(self, space: Namespace) -> None:
        row, link = self._route(space)
        if row.kind == "local" or link is None:
            raise Unsure(f"{self.dst} is an address of {self._name(space)} itself: the packet never leaves")
        self.src = self.sender = row.source or self._only_address(link)
        if self.src is None:
            raise Unsure(f"which address of {self._name(space)} it is sent from is not told by the route")
        before = self.dst
        self._hook(space, Stage.OUTPUT, "", link.name, link.name)
        if self.dst != before:
            raise Unsure("a rule at OUTPUT changes its destination, and so its route")
        self._hook(space, Stage.POSTROUTING, "", link.name, link.name, out=link)
        self._leave(space, link, row.gateway)

    def _receive(self, space: Namespace, device: Link, *, asked: bool = False) -> None:
        """At the namespace's IP layer. `asked`: PREROUTING has been passed, by a bridge."""
        if not asked:
            self._hook(space, Stage.PREROUTING, device.name, "", device.name)
        self._reverse_path(space, device)
        row, link = self._route(space, came=device)
        if row.kind == "local":
            self._hook(space, Stage.INPUT, device.name, "", device.name)
            self._add(space, None, Stage.DELIVER, detail=self._arrived(space))
            raise _Ended(End(Result.DELIVERED, self._name(space), device.name, Stage.DELIVER))
        assert link is not None
        self._hook(space, Stage.FORWARD, device.name, link.name, device.name, detail=f"to {link.name}")
        self._hook(space, Stage.POSTROUTING, device.name, link.name, device.name, out=link, detail=f"to {link.name}")
        self._leave(space, link, row.gateway)

    def _arrived(self, space: Namespace) -> str:
        if self.trip.proto:
            return f"whether a program listens on {self.trip.proto} port {self.port} is not looked at"
        setting = "net.ipv6.icmp.echo_ignore_all" if self.trip.address.version == 6 else "net.ipv4.icmp_echo_ignore_all"
        return f"{setting} is 1: no answer" if space.sysctls.get(setting) == "1" else "ICMP echo, to be answered"

    def _route(self, space: Namespace, came: Link | None = None) -> tuple[Route, Link | None]:
        assert self.dst is not None
        name, version = self._name(space), self.dst.version
        if other := next((r for r in space.rules if r.version == version and r.table not in USUAL_TABLES), None):
            raise Unsure(f"`ip rule` of {name} {other.effect}: {other.words}")
        found = rows(space, self.dst)
        best = next(iter(found), None)
        if best is None or best.kind not in ("unicast", "local"):
            self._add(space, None, Stage.ROUTE, detail=f"no route to {self.dst}" if best is None else f"{best.kind} row")
            raise Unsure(f"{name} has no route to {self.dst}")
        if any(row is not best and (row.table, row.destination, row.metric) == (best.table, best.destination, best.metric)
               for row in found):
            raise Unsure(f"{name} has several equal routes to {self.dst}")
        link = space.links.get(best.ifindex or 0)
        lookup = Lookup(None, self.dst, best.gateway, best.table, 0, 0)
        chosen = choice(lookup, link.name if link else None, best.ifindex or 0, space)
        local = best.kind == "local"
        self._add(space, None if local else link, Stage.ROUTE, detail=sentence(chosen, lookup))
        self.hops[-1] = self.hops[-1]._replace(route=chosen)
        if came and not local and self._forwards(space, came) is False:
            raise _Ended(End(Result.DROPPED, name, came.name, Stage.ROUTE, "IP_INADDRERRORS",
                             "it does not forward", function="ip_error"))
        if not local and (link is None or not link.up):
            raise Unsure(f"the device of the route {best.destination} in {name} is not there or down")
        return best, link

    def _forwards(self, space: Namespace, came: Link) -> bool | None:
        version = self.trip.address.version
        name = "net.ipv6.conf.all.forwarding" if version == 6 else f"net.ipv4.conf.{came.name.replace('.', '/')}.forwarding"
        value = space.sysctls.get(name)
        if value is None:
            raise Unsure(f"{name} of {self._name(space)} was not read")
        return value != "0"

    def _reverse_path(self, space: Namespace, device: Link) -> None:
        if self.src is None or self.src.version == 6:
            return
        values = [space.sysctls.get(f"net.ipv4.conf.{name}.rp_filter") for name in ("all", device.name.replace(".", "/"))]
        row = next(iter(rows(space, self.src)), None)
        if "1" in values and "2" not in values and (row is None or row.ifindex != device.ifindex):
            raise _Ended(End(Result.DROPPED, self._name(space), device.name, Stage.ROUTE, "IP_RPFILTER",
                             "the reverse path filter expects it on another device"))

    # devices -----------------------------------------------------------------------------------------------------------

    def _leave(self, space: Namespace, link: Link, gateway: Address | None) -> None:
        """Out of the IP layer: to a bridge of the namespace, a veth pair, or the wire."""
        goal = gateway or self.dst
        assert goal is not None
        known = next((n for n in space.neighbors if n.address == goal and n.ifindex == link.ifindex and n.mac), None)
        self._answered(space, link, goal, known.mac if known else None)
        if link.kind == "bridge":
            self._add(space, link, Stage.EGRESS, Role.NIC, link,
                      detail=f"as a NIC: {self._name(space)} sends through {link.name}")
            self._switch(space, link, goal, came=None)
        self._add(space, link, Stage.EGRESS, detail=f"leaves {self._name(space)}")
        self._cross(space, link, goal)

    def _answered(self, space: Namespace, link: Link, goal: Address, mac: str | None) -> None:
        """Unsure where nobody would tell the goal's MAC: the packet waits for it, and never leaves."""
        bridge, where = (link, space) if link.kind == "bridge" else (None, space)
        if link.peer:
            inner = self.topology.link(link.peer.netns, link.peer.ifindex)
            if inner is None:
                raise Unsure(f"{self.topology.node(link.peer.netns)} was not read")
            where = self.topology.namespaces[link.peer.netns]
            bridge = where.links.get(inner.master) if inner.master else None
            for at, one in ((space, link), (where, inner)):
                self._usable(at, one)
            if bridge is None:
                if not any(i.ip == goal for i in inner.addresses) and mac != inner.mac:
                    raise Unsure(f"{inner.name} of {self._name(where)} does not have {goal}: nobody known answers for it")
                return
        if bridge:
            self._usable(where, bridge)
            if not any(i.ip == goal for i in bridge.addresses):
                port, inner, there = self._seat(where, bridge, goal)
                self._usable(where, port)
                self._usable(there, inner)
                bridge = inner
            if mac is not None and mac != bridge.mac:
                raise Unsure(f"the neighbour table of {self._name(space)} has {mac} for {goal}, and {bridge.name} has "
                             f"{bridge.mac}")

    def _cross(self, space: Namespace, link: Link, goal: Address) -> None:
        """Through a veth pair into the other namespace."""
        if link.peer is None:
            if link.kind is not None:
                raise Unsure(f"{link.name} of {self._name(space)} is a {link.kind}, and where that leads is not known")
            raise _Ended(End(Result.LEFT, self._name(space), link.name, Stage.EGRESS, detail=f"leaves by {link.name}"))
        there = self.topology.namespaces.get(link.peer.netns)
        inner = self.topology.link(link.peer.netns, link.peer.ifindex)
        if there is None or inner is None:
            raise Unsure(f"{self.topology.node(link.peer.netns)} was not read")
        bridge = there.links.get(inner.master) if inner.master else None
        if bridge is None:
            self._add(there, inner, Stage.INGRESS, detail=f"enters {self._name(there)}")
            self._receive(there, inner)
            return
        self._add(there, inner, Stage.INGRESS, bridge=bridge,
                  detail=f"peer of {self._name(space)}:{link.name}, port of {bridge.name}")
        self._switch(there, bridge, goal, came=inner)

    def _switch(self, space: Namespace, bridge: Link, goal: Address, came: Link | None) -> None:
        """A bridge's decision. Whoever has the goal's address on this bridge gets the frame."""
        name = f"net.bridge.bridge-nf-call-ip{'6' if self.trip.address.version == 6 else ''}tables"
        filtered = came is not None and space.sysctls.get(name) == "1"
        before = self.dst
        if filtered:
            self._hook(space, Stage.PREROUTING, bridge.name, "", bridge.name)
        if came is not None and any(i.ip == goal for i in bridge.addresses):
            whose = "the host" if space.netns == self.topology.host else self._name(space)
            self._add(space, bridge, Stage.L2_LOCAL, Role.NIC, bridge,
                      detail=f"as a NIC: the frame is for {bridge.name}'s own MAC, up to {whose}'s IP layer")
            self._receive(space, bridge, asked=filtered)
        if self.dst != before:
            raise Unsure(f"a rule changes the destination of what {bridge.name} switches")
        port, inner, there = self._seat(space, bridge, goal)
        if port is came:
            raise Unsure(f"the frame would leave {bridge.name} by the port that it came by")
        if came and came.port and port.port and came.port.isolated and port.port.isolated:
            raise Unsure(f"{came.name} and {port.name} are isolated ports: {bridge.name} passes nothing between them")
        self._add(space, bridge, Stage.L2_FORWARD, Role.SWITCH, bridge,
                  detail=f"as a SWITCH: to the port of {self._name(there)}")
        if filtered:
            self._hook(space, Stage.FORWARD, bridge.name, bridge.name, bridge.name)
            self._hook(space, Stage.POSTROUTING, bridge.name, bridge.name, bridge.name, out=bridge)
        self._add(space, port, Stage.EGRESS, bridge=bridge, detail=f"peer of {self._name(there)}:{inner.name}")
        self._add(there, inner, Stage.INGRESS, detail=f"enters {self._name(there)}")
        self._receive(there, inner)

    def _seat(self, space: Namespace, bridge: Link, goal: Address) -> tuple[Link, Link, Namespace]:
        """(port, device, namespace) of the only one on this bridge that has the address."""
        found: list[tuple[Link, Link, Namespace]] = []
        unread = ""
        for port in View(self.topology).ports(space, bridge):
            inner = self.topology.link(port.peer.netns, port.peer.ifindex) if port.peer else None
            if inner is None or port.peer is None:
                unread = f", and what is behind {port.name} is not known"
            elif any(i.ip == goal for i in inner.addresses):
                found.append((port, inner, self.topology.namespaces[port.peer.netns]))
        if len(found) != 1:
            who = "several devices have" if found else "nobody known has"
            raise Unsure(f"on {bridge.name} {who} {goal}{unread}")
        return found[0]

    def _usable(self, space: Namespace, link: Link) -> None:
        state = link.port.state if link.port else "forwarding"
        if not link.up or (not link.carrier and link.kind != "bridge") or state != "forwarding":
            why = "is down" if not link.up else "has no carrier" if not link.carrier else f"is in the state {state}"
            raise Unsure(f"{link.name} of {self._name(space)} {why}")

    # hops --------------------------------------------------------------------------------------------------------------

    def _hook(self, space: Namespace, stage: Stage, came: str, goes: str, device: str, *, out: Link | None = None,
              detail: str = "") -> None:
        assert self.dst is not None
        masquerade = self._only_address(out) if out else None
        if any(c.family in ("bridge", "netdev") for c in space.chains or ()):
            raise Unsure(f"{self._name(space)} has rules of nftables' families bridge or netdev, which are not told here")
        proto = self.trip.proto or _ICMP[self.dst.version][0]
        known = Known(stage.value, self.dst.version, self.src, self.dst, came, goes, proto, self.port,
                      space.owner_of(self.dst) is not None, state="NEW")
        decision = decide(space, self._rules(space), known, masquerade, self._owner)
        link = space.by_name(device)
        self._add(space, link, stage, bridge=link if link and link.kind == "bridge" else None, detail=detail,
                  decision=decision)
        self.src, self.dst, self.port = decision.packet.src, decision.packet.dst, decision.packet.dport
        if decision.rule:
            raise _Ended(End(Result.DROPPED, self._name(space), device, stage, "NETFILTER_DROP", rule=decision.rule))

    def _only_address(self, link: Link) -> Address | None:
        """Of several, the kernel chooses by rules of its own."""
        found = [i.ip for i in link.addresses if i.version == self.trip.address.version and not i.ip.is_link_local]
        return found[0] if len(found) == 1 else None

    def _rules(self, space: Namespace) -> Ruleset:
        if space.netns not in self.read:
            self.read[space.netns] = self.rules_of(space)
        return self.read[space.netns]

    def _owner(self, rule: Rule) -> str | None:
        return owner(rule, self.topology)

    def _add(self, space: Namespace, link: Link | None, stage: Stage, role: Role | None = None,
             bridge: Link | None = None, *, detail: str = "", decision: Decision | None = None) -> None:
        if len(self.hops) >= _HOPS:
            raise Unsure("the routes lead in a circle")
        self.hops.append(Hop(
            0, space.netns, self._name(space), link.name if link else None, link.ifindex if link else None, stage, role,
            bridge.name if bridge else None, decision.passed if decision else (),
            (decision.stopped,) if decision and decision.stopped else (), decision.rules if decision else (),
            rewrite=decision.rewrite if decision else None, detail=detail, timed=False))

    def _name(self, space: Namespace) -> str:
        return self.topology.node(space.netns)
