"""The hooks that a packet from one place to another comes by, by the present tables, as far as rules need to know it."""

from __future__ import annotations

from dataclasses import dataclass, replace

from tracer.journey.case import rows
from tracer.map.matching import Packet
from tracer.map.view import View
from tracer.model.topology import Address, Link, Namespace, Topology


@dataclass(frozen=True, slots=True)
class Stop:
    """A namespace on the way."""

    space: Namespace
    name: str
    sentence: str  # why it is on the way
    hooks: tuple[Packet, ...]
    translated: tuple[Packet, ...] = ()  # hooks that it meets only if a rule gives it another destination


@dataclass(frozen=True, slots=True)
class Passage:
    title: str
    stops: tuple[Stop, ...]
    problem: str | None = None  # why it ends before the destination


@dataclass(frozen=True, slots=True)
class Trip:
    """What is sent: from a namespace to an address."""

    source: Namespace
    address: Address
    proto: str | None = None
    port: int | None = None


def passage(topology: Topology, trip: Trip, title: str) -> Passage:
    view, host = View(topology), View(topology).host
    row = next(iter(rows(trip.source, trip.address)), None)
    link = trip.source.links.get(row.ifindex or 0) if row else None
    name = topology.node(trip.source.netns)
    if host is None or row is None or link is None or row.kind not in ("unicast", "local"):
        return Passage(title, (), f"{name} has no route to {trip.address}")
    sender = row.source or next((i.ip for i in link.addresses if i.version == trip.address.version), None)
    maker = _Maker(trip, sender)
    if row.kind == "local":
        hooks = (*maker.hooks(("output", "postrouting"), "", "lo"), *maker.hooks(("prerouting", "input"), "lo", "", True))
        return Passage(title, (Stop(trip.source, name, "which has the address itself", hooks),))
    stops = [Stop(trip.source, name, "where it starts", maker.hooks(("output", "postrouting"), "", link.name))]
    target = topology.namespaces.get(topology.owner(str(trip.address)) or 0)
    inner = target.owner_of(trip.address) if target else None
    if trip.source is not host:
        on = view.bridge_of(link)
        port = topology.link(link.peer.netns, link.peer.ifindex) if link.peer else None
        middle = None
        if on and on[0] is host:
            middle = _switched(maker, host, on[1], view, inner) if row.gateway is None and inner else None
            middle = middle or _routed(maker, host, on[1].name, trip.address)
        elif port and link.peer and link.peer.netns == host.netns and port.master is None:
            middle = _routed(maker, host, port.name, trip.address)
        else:
            return Passage(title, tuple(stops), f"{link.name} of {name} leads to no bridge of the host and not to the host")
        if middle is None:
            return Passage(title, tuple(stops), f"the host has no route to {trip.address}")
        stops.append(middle)
    if target and inner and target is not host:
        stops.append(Stop(target, topology.node(target.netns), "where it arrives",
                          maker.hooks(("prerouting", "input"), inner.name, "", True, changed=True)))
    return Passage(title, tuple(stops))


@dataclass(frozen=True, slots=True)
class _Maker:
    trip: Trip
    sender: Address | None

    def hooks(self, names: tuple[str, ...], came: str, goes: str, local: bool | None = False, *, level: int = 3,
              changed: bool = False) -> tuple[Packet, ...]:
        """What a hook does not know yet is anything: the way out before routing. `changed`: NAT on the way may have given it
        another source."""
        trip = self.trip
        return tuple(Packet(name, trip.address.version, None if changed else self.sender, trip.address,
                            "" if name in ("output", "postrouting") and not came else came,
                            "" if name in ("prerouting", "input") else goes, trip.proto, trip.port, local, level=level)
                     for name in names)


def _switched(maker: _Maker, host: Namespace, bridge: Link, view: View, inner: Link) -> Stop | None:
    """Both on one bridge: the host's IP rules see it only through br_netfilter."""
    on = view.bridge_of(inner)
    if on is None or on[1] is not bridge:
        return None
    name = f"net.bridge.bridge-nf-call-ip{'6' if maker.trip.address.version == 6 else ''}tables"
    filtered = host.sysctls.get(name) == "1"
    hooks: list[Packet] = []
    for hook in ("prerouting", "forward", "postrouting"):
        hooks += maker.hooks((hook,), bridge.name, bridge.name, level=2)
        hooks += maker.hooks((hook,), bridge.name, bridge.name) if filtered else ()
    said = f"whose {bridge.name} switches it, and br_netfilter shows it to iptables" if filtered else \
        f"whose {bridge.name} switches it: iptables never sees it ({name} is not 1)"
    return Stop(host, "the host", said, tuple(_anywhere(hook) if hook.level == 2 else hook for hook in hooks))


def _anywhere(packet: Packet) -> Packet:
    """At the bridge's own hooks devices are its ports."""
    return replace(packet, came=None, goes=None, level=2)


def _routed(maker: _Maker, host: Namespace, came: str, goal: Address) -> Stop | None:
    level_2 = tuple(_anywhere(one) for one in maker.hooks(("prerouting", "input"), came, "", level=2))
    if host.owner_of(goal):
        elsewhere = (replace(one, dst=None, goes=None, local=None)
                     for one in maker.hooks(("forward", "postrouting"), came, ""))
        return Stop(host, "the host", "which has the address", (
            *level_2, *maker.hooks(("prerouting", "input"), came, "", True)), tuple(elsewhere))
    row = next(iter(rows(host, goal)), None)
    out = host.links.get(row.ifindex or 0) if row else None
    if row is None or out is None or row.kind != "unicast":
        return None
    return Stop(host, "the host", f"which routes it from {came} to {out.name}", (
        *level_2, *maker.hooks(("prerouting", "forward", "postrouting"), came, out.name)))
