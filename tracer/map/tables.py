"""The tables that people collect before they debug: bridges, links and neighbours."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from tracer.map.picture import ALL, Choice, draw, shown_addresses, who
from tracer.map.view import View
from tracer.model.picture import Bridge, Guest, Row, Table
from tracer.model.topology import Link, Namespace, Neighbor, Topology

# As `ip neigh` names them.
NEIGHBOR_STATES = {
    "REACHABLE": "confirmed lately", "PERMANENT": "set by hand: it never changes by itself",
    "STALE": "not confirmed lately: used as it is, and asked anew when it is",
    "DELAY": "in use, about to be confirmed", "PROBE": "being asked anew",
    "INCOMPLETE": "being asked for: packets wait", "FAILED": "nobody answered: packets for it are dropped",
}


def bridges(topology: Topology, choice: Choice = ALL) -> list[Table]:
    view, drawn = View(topology), draw(topology, choice).bridges
    return [
        Table("bridges", "Bridges",
              "A bridge is a switch to its ports, and a NIC with an address to the host.",
              "brctl show, or: ip -d link show type bridge",
              ("bridge", "network", "address", "MAC", "MTU", "ports", "state"), tuple(map(_bridge, drawn))),
        Table("ports", "Ports", "Frames pass from port to port. Only forwarding ports take part; a frame leaves by the port "
              "that it came by only where hairpin is on; isolated ports do not reach each other.", "bridge -d link",
              ("bridge", "port", "state", "hairpin", "isolated", "other end"), tuple(_ports(drawn))),
        Table("fdb", "MAC addresses", "Behind which port a bridge has learned a MAC, and how long ago it last came from "
              "there. Frames for one that is not here go to all ports; local ones are for the host itself.",
              "brctl showmacs BRIDGE, or: bridge -s fdb show br BRIDGE",
              ("bridge", "MAC", "port", "age", "whose"), tuple(_fdb(view, drawn)))]


def _bridge(bridge: Bridge) -> Row:
    link = bridge.link
    addresses = " ".join(str(i) for i in link.addresses if not i.ip.is_link_local)
    return Row((_on(bridge), bridge.network.name if bridge.network else "–", addresses or "–", link.mac or "–",
                str(link.mtu), str(len(bridge.ports) + bridge.hidden), "up" if link.up else "DOWN"), "" if link.up else "!")


def _on(bridge: Bridge) -> str:
    return bridge.link.name if bridge.node == "host" else f"{bridge.node} {bridge.link.name}"


def _ports(drawn: Iterable[Bridge]) -> Iterator[Row]:
    for bridge in drawn:
        for port in bridge.ports:
            own = port.link.port
            hairpin, isolated = (_on_off(own.hairpin), _on_off(own.isolated)) if own else ("?", "?")
            state = own.state if own else "?"
            state = "DOWN" if not port.link.up else state if port.link.carrier else f"{state}, NO CARRIER"
            yield Row((_on(bridge), f"{port.link.ifindex}: {port.link.name}", state, hairpin, isolated,
                       _end(port.guest)), "" if state in ("forwarding", "?") else "!")


def _on_off(value: bool) -> str:
    return "on" if value else "off"


def _end(guest: Guest | None) -> str:
    if guest is None:
        return "–"
    device = f"{guest.link.ifindex}: {guest.link.name}" if guest.link else str(guest.key.ifindex)
    return f"{device} of {who(guest)}"


def _fdb(view: View, drawn: Iterable[Bridge]) -> Iterator[Row]:
    for bridge in drawn:
        space = view.topology.namespaces[bridge.netns]
        shown = {port.link.ifindex for port in bridge.ports} | {bridge.link.ifindex}
        for entry in sorted(space.fdb, key=lambda e: (e.local, e.port, e.mac)):
            if entry.bridge != bridge.link.ifindex or entry.port not in shown:
                continue
            port = space.links.get(entry.port)
            age = "local" if entry.local else "?" if entry.age is None else f"{entry.age:.0f} s"
            yield Row((_on(bridge), entry.mac, port.name if port else str(entry.port), age,
                       "the bridge's port" if entry.local else owner_of_mac(view, entry.mac)))


def owner_of_mac(view: View, mac: str) -> str:
    """"eth0 of c1"; "–" where nobody known has it."""
    found = [f"{link.name} of {view.topology.node(space.netns)}" for space in view.spaces for link in space.links.values()
             if link.mac == mac and not link.loopback]
    return ", ".join(found) or "–"


# links ------------------------------------------------------------------------------------------------------------------


def links(topology: Topology, choice: Choice = ALL) -> list[Table]:
    view, picture = View(topology), draw(topology, choice)
    chosen = {port.link.ifindex for bridge in picture.bridges if bridge.netns == topology.host for port in bridge.ports}
    rows = []
    host = view.host
    for link in sorted(host.links.values(), key=lambda one: one.ifindex) if host else ():
        if link.loopback or (not choice.whole and link.ifindex not in chosen):
            continue
        rows.append(_pair(view, link))
    rows += [_inner(view, space, link) for space in view.spaces if space is not host for link in space.links.values()
             if not link.loopback and link.peer is None and choice.network is None
             and choice.container in (None, topology.node(space.netns))]
    return [Table("links", "Links", "A veth pair is a cable between two namespaces: what goes in at one end comes out at "
                  "the other. @N is the other end's number, as `ip link` writes it after the name.",
                  "ip -d link; in a container: nsenter -t PID -n ip -d link; ethtool -S VETH shows the peer's number",
                  ("host", "", "container", "device", "MTU", "state", "address", "MAC"), tuple(rows))]


def _pair(view: View, link: Link) -> Row:
    guest = view.guest(link)
    inner = guest.link if guest else None
    name = f"{link.ifindex}: {link.name}" + (f"@{link.peer.ifindex}" if link.peer else "")
    if guest is None or inner is None:
        return Row((name, "", _kind(link), "", str(link.mtu), _state(link), _addresses(link), link.mac or "–"), _bad(link))
    mtu = str(link.mtu) if link.mtu == inner.mtu else f"{link.mtu}, inside {inner.mtu}"
    state = _state(link) if _state(link) == _state(inner) else f"{_state(link)}, inside {_state(inner)}"
    return Row((name, "⇄", who(guest), f"{inner.ifindex}: {inner.name}@{link.ifindex}", mtu, state, _addresses(inner),
                inner.mac or "–"), _bad(link) or _bad(inner) or ("!" if link.mtu != inner.mtu else ""))


def _inner(view: View, space: Namespace, link: Link) -> Row:
    return Row(("", "", view.topology.node(space.netns), f"{link.ifindex}: {link.name}", str(link.mtu), _state(link),
                _addresses(link), link.mac or "–"), _bad(link))


def _kind(link: Link) -> str:
    return {"veth": "to a namespace not read", None: "physical"}.get(link.kind, link.kind or "")


def _state(link: Link) -> str:
    return "DOWN" if not link.up else "up" if link.carrier or link.kind == "bridge" else "NO CARRIER"


def _bad(link: Link) -> str:
    return "" if _state(link) == "up" else "!"


def _addresses(link: Link) -> str:
    return " ".join(map(str, shown_addresses(link))) or "–"


# neighbours -------------------------------------------------------------------------------------------------------------


def neighbors(topology: Topology, choice: Choice = ALL) -> list[Table]:
    view = View(topology)
    rows = []
    for space in view.spaces:
        name = topology.node(space.netns)
        if choice.container not in (None, name):
            continue
        rows += [_neighbor(view, space, name, row) for row in sorted(space.neighbors, key=lambda n: (
            n.address.version, int(n.address))) if not row.address.is_multicast]
    return [Table("neighbors", "Neighbours", "Each namespace keeps the MAC addresses that it was told for IP addresses "
                  "(ARP, and neighbour discovery in IPv6). A packet needs one before it can leave.",
                  "ip neigh, arp -n; in a container: nsenter -t PID -n ip neigh",
                  ("in", "IP address", "whose", "MAC", "state", "by"), tuple(rows), tuple(
                      f"{state}: {meaning}." for state, meaning in NEIGHBOR_STATES.items() if any(
                          row.cells[4] == state for row in rows)))]


def _neighbor(view: View, space: Namespace, name: str, row: Neighbor) -> Row:
    device = space.links.get(row.ifindex)
    owners = [(other, link) for other in view.spaces for link in other.links.values()
              if any(i.ip == row.address for i in link.addresses) and not link.loopback]
    right = [one for one in owners if one[1].mac == row.mac] or owners
    whose = ", ".join(f"{view.topology.node(space.netns)}" for space, _ in right) or "–"
    wrong = bool(row.mac and owners and not row.address.is_link_local and right[0][1].mac != row.mac)
    bad = wrong or row.state in ("FAILED", "INCOMPLETE")
    cells = name, str(row.address), whose, row.mac or "–", row.state, device.name if device else "–"
    return Row(cells, "!" if bad else "", f"its owner has another MAC, {right[0][1].mac}: what is sent there gets lost"
               if wrong else "")
