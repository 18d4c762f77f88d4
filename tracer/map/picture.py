"""Draws the picture: bridges with their ports and what hangs on them, ways out, and what has no bridge.

A namespace that no veth pair connects with the host, and that no container lives in, is another network: it is left out.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from tracer.map.view import View
from tracer.model.picture import Alone, Bridge, Fact, Guest, Picture, Port, Uplink
from tracer.model.topology import Address, Container, Link, Namespace, Topology

WITHOUT_BRIDGE = ("macvlan", "ipvlan")
RUNS = ("running", "paused")


@dataclass(frozen=True, slots=True)
class Choice:
    """What of it is drawn. A container alone, a network alone, or both: that container on that network."""

    network: str | None = None  # the engine's name or id, or the bridge's name
    container: str | None = None

    @property
    def whole(self) -> bool:
        return self.network is None and self.container is None


ALL = Choice()


def draw(topology: Topology, choice: Choice = ALL) -> Picture:
    view = View(topology)
    bridges = [bridge for namespace in view.spaces for link in namespace.links.values() if link.kind == "bridge"
               and (bridge := _bridge(view, namespace, link, choice))]
    host = view.host
    uplinks = [_uplink(view, host, link) for link in host.links.values() if _leads_out(view, host, link)] if host else []
    uplinks.sort(key=lambda up: (not up.gateways, up.link.ifindex))
    alone = [*_containers(view), *_veths(view)] if choice.whole else [
        one for one in _containers(view) if choice.container in (None, one.name)
        and (choice.network is None or choice.network in view.networks_of(one.name))]
    return Picture(tuple(_facts(view)), tuple(uplinks), tuple(bridges), tuple(alone))


def known(topology: Topology, choice: Choice) -> tuple[bool, list[str]]:
    """Does the network have what was chosen, and which names are there?"""
    view = View(topology)
    if choice.container is not None:
        names = {*(c.name for c in topology.containers), *(view.topology.node(n.netns) for n in view.spaces)} - {"host"}
        if choice.container not in names:
            return False, sorted(names)
    if choice.network is None:
        return True, []
    bridges = {link.name for n in view.spaces for link in n.links.values() if link.kind == "bridge"}
    names = {n.name for n in topology.networks} | (bridges - {n.device for n in topology.networks})
    ids = {n.id for n in topology.networks} | bridges
    return choice.network in names | ids, sorted(names)


# bridges ----------------------------------------------------------------------------------------------------------------


def _bridge(view: View, namespace: Namespace, link: Link, choice: Choice) -> Bridge | None:
    network = view.network(namespace, link)
    if choice.network is not None and choice.network not in (link.name, *((network.name, network.id) if network else ())):
        return None
    learned: dict[int, list[str]] = {}
    for entry in namespace.fdb:
        if entry.bridge == link.ifindex and not entry.local:
            learned.setdefault(entry.port, []).append(entry.mac)
    ports = [Port(port, view.guest(port), tuple(learned.get(port.ifindex, ())))
             for port in view.ports(namespace, link)]
    chosen = [port for port in ports if choice.container is None or (
        port.guest and choice.container in (port.guest.node, *port.guest.containers))]
    if choice.container is not None and not chosen and view.topology.node(namespace.netns) != choice.container:
        return None
    chosen.sort(key=_order)
    return Bridge(view.topology.node(namespace.netns), namespace.netns, link, network, tuple(chosen),
                  len(ports) - len(chosen), sum(map(len, learned.values())))


def _order(port: Port) -> tuple[bool, tuple[tuple[int, int], ...], int]:
    """By address, as people count their containers; what has none last."""
    link = port.guest.link if port.guest else None
    addresses = tuple((one.version, int(one)) for one in shown_addresses(link))
    return not addresses, addresses[:1], port.link.ifindex


def shown_addresses(link: Link | None) -> list[Address]:
    """Those that somebody gave it: each device has a link-local one of IPv6."""
    return [i.ip for i in link.addresses if not i.ip.is_link_local] if link else []


# ways out ---------------------------------------------------------------------------------------------------------------


def _leads_out(view: View, host: Namespace, link: Link) -> bool:
    if link.loopback or link.kind == "bridge" or link.master is not None:
        return False
    return bool(shown_addresses(link)) or any(row.ifindex == link.ifindex and row.destination.prefixlen == 0
                                              for row in host.routes)


def _uplink(view: View, host: Namespace, link: Link) -> Uplink:
    gateways = dict.fromkeys(row.gateway for row in host.routes if row.ifindex == link.ifindex and row.gateway
                             and row.destination.prefixlen == 0 and not row.gateway.is_link_local)
    return Uplink(link, tuple(gateways), view.guest(link))


# without a bridge ---------------------------------------------------------------------------------------------------------


def _containers(view: View) -> Iterable[Alone]:
    for container in sorted(view.topology.containers, key=lambda c: (c.state not in RUNS, c.name)):
        found = _alone(view, container)
        if found:
            yield found


def _alone(view: View, container: Container) -> Alone | None:
    """None: it hangs on a bridge, or lives with one that does."""
    name, mode = container.name, container.network_mode
    networks = [end.network for end in container.attachments]
    if container.state not in RUNS:
        on = f"; when it starts, it joins {', '.join(networks)}" if networks and mode != "host" else ""
        return Alone(name, "stopped", f"is not running ({container.state}): it has no network now{on}")
    if mode == "host":
        return Alone(name, "host", "shares the host's network: to the network it is the host; no veth, no bridge, no NAT")
    owner, space = view.owner(container), view.space_of(container)
    if owner is not container and _alone(view, owner):
        return Alone(name, "shared", f"shares the network of {owner.name}: the same devices, addresses and ports")
    if space is None:
        return Alone(name, "unread", "runs, but its network was not read")
    links = tuple(link for link in space.links.values() if not link.loopback)
    if any(view.is_port(link.peer) for link in links):
        return None
    for link in links:
        if link.kind in WITHOUT_BRIDGE:
            parent = next((n.parent for n in view.topology.networks if n.name in networks and n.parent), None)
            on = f" on {parent}" if parent else ""
            return Alone(name, link.kind or "", f"{link.kind}{on}: its frames go straight to the wire, past any bridge and "
                         "the host's iptables; the host itself cannot reach it by that device", links)
    if any(link.kind == "veth" for link in links):
        return None  # the host's end tells
    return Alone(name, "none", "has no network but lo: nothing gets in or out", links)


def _veths(view: View) -> Iterable[Alone]:
    """Pairs between the host and a namespace that hang on no bridge and are no way out."""
    host = view.host
    for link in host.links.values() if host else ():
        guest = view.guest(link)
        if host is None or guest is None or link.master is not None or shown_addresses(link):
            continue
        routed = view.routed(host, link)
        inner = guest.link.name if guest.link else f"if{guest.key.ifindex}"
        yield Alone(link.name, "routed" if routed else "unbridged", f"leads to {inner} of {who(guest)}, " + (
            "without a bridge: the host has routes by it" if routed else "but is on no bridge and has no route: a dead end"),
            (link,))


def who(guest: Guest) -> str:
    """"c3 + c4" of containers that share a namespace."""
    return " + ".join(guest.containers) or guest.node


# the host's settings ------------------------------------------------------------------------------------------------------


def _facts(view: View) -> Iterable[Fact]:
    host = view.host
    if host is None:
        return
    four, six = (host.sysctls.get(name) for name in ("net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"))
    if four is not None:
        yield Fact("forwarding", f"IPv4 {_on(four)}, IPv6 {_on(six)}", four == "1")
    called = host.sysctls.get("net.bridge.bridge-nf-call-iptables")
    yield Fact("br_netfilter", "on: iptables sees what bridges switch" if called == "1" else
               f"{'off' if called else 'not loaded'}: iptables does not see what bridges switch")
    if host.chains is not None:
        yield Fact("firewall", ", ".join(view.backends()) or "no rules")


def _on(value: str | None) -> str:
    return "on" if value == "1" else "off"
