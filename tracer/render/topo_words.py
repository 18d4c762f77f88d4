"""Names and phrases of the picture, without layout: its outputs share them."""

from __future__ import annotations

from tracer.model.picture import Bridge, Guest, Port, Uplink
from tracer.model.topology import Link, Published
from tracer.render.words import count

PORT_COLUMNS = ("who", "address", "MAC", "pair")


def device(link: Link) -> str:
    """As `ip link` begins its row: "5: veth1a2b3c4"."""
    return f"{link.ifindex}: {link.name}"


def addresses(link: Link, prefix: bool = True) -> str:
    """Those that somebody gave it: link-local ones of IPv6 are each device's."""
    return " ".join(str(i if prefix else i.ip) for i in link.addresses if not i.ip.is_link_local) or "no address"


def state(link: Link) -> str:
    """"" where all is well."""
    if not link.up:
        return "DOWN"
    return "" if link.carrier or link.kind == "bridge" else "NO CARRIER"  # a bridge without ports has none


def way_out(uplink: Uplink) -> str:
    gateways = ", ".join(map(str, uplink.gateways))
    said = f"default via {gateways}" if gateways else "no default route"
    guest = uplink.guest
    return said + (f"; a veth: {pair_end(guest)} of {who(guest)} is its other end" if guest else "")


def pair_end(guest: Guest) -> str:
    return device(guest.link) if guest.link else f"{guest.key.ifindex}: ?"


def who(guest: Guest) -> str:
    """"c3 + c4" of containers that share a namespace."""
    return " + ".join(guest.containers) or guest.node


def bridge_of(bridge: Bridge) -> str:
    """Whose it is: "Docker network web, internal"."""
    network = bridge.network
    if network is None:
        return "bridge" if bridge.node == "host" else f"bridge in {bridge.node}"
    traits = [("internal: no way out", network.internal), ("icc off", not network.icc),
              ("no masquerade", not network.masquerade and not network.internal)]
    return ", ".join([f"Docker network {network.name}", *(text for text, there in traits if there)])


def roles(bridge: Bridge) -> tuple[str, str]:
    """Its two identities, as labels."""
    return f"NIC to {'the host' if bridge.node == 'host' else bridge.node}", "switch to ports"


def as_nic(bridge: Bridge) -> str:
    return f"{addresses(bridge.link)}  {bridge.link.mac}  MTU {bridge.link.mtu}"


def as_switch(bridge: Bridge) -> str:
    macs = f"{count(bridge.learned, 'MAC')} learned" if bridge.learned else "no MAC learned"
    return f"{count(len(bridge.ports) + bridge.hidden, 'port')}, {macs}"


def port(one: Port) -> tuple[str, str, str, str]:
    """As PORT_COLUMNS has it."""
    guest = one.guest
    if guest is None:
        kind = "not read" if one.link.kind == "veth" else f"{one.link.kind or 'physical'} device"
        return kind, "", one.link.mac or "", device(one.link)
    link = guest.link
    four = [str(i.ip) for i in link.addresses if i.version == 4] if link else []
    return who(guest), ", ".join(four), (link.mac if link else None) or "", f"{pair_end(guest)} ⇄ {device(one.link)}"


def box_of_port(one: Port) -> list[str]:
    """The lines of a box for what is at the port, in drawings."""
    guest, address, mac, _pair = port(one)
    return [guest, *filter(None, ("  ".join(filter(None, (address, mac))), *(text for text, _ in below(one))))]


def box_of_bridge(bridge: Bridge) -> list[str]:
    return [device(bridge.link), bridge_of(bridge), f"NIC: {as_nic(bridge)}", f"switch: {as_switch(bridge)}"]


def box_of_uplink(uplink: Uplink) -> list[str]:
    return [device(uplink.link), addresses(uplink.link), way_out(uplink)]


def below(one: Port) -> list[tuple[str, bool]]:
    """Lines below it: IPv6 addresses, and published ports (True)."""
    guest = one.guest
    if guest is None:
        return []
    six = [str(i.ip) for i in guest.link.addresses if i.version == 6 and not i.ip.is_link_local] if guest.link else []
    lines = [(" ".join(six), False)] if six else []
    return [*lines, *([(published(guest.published), True)] if guest.published else [])]


def published(ports: tuple[Published, ...]) -> str:
    """"host's 8080 → 80/tcp, 127.0.0.1:9090 → 90/tcp": as `docker port` has them, IPv4 and IPv6 in one."""
    said = []
    for one in ports:
        at = f"{one.host_ip}:" if one.host_ip and not one.host_ip.is_unspecified else "host's "
        said.append(f"{at}{one.host_port} → {one.container_port}/{one.protocol}")
    return "published: " + ", ".join(dict.fromkeys(said))


def port_state(one: Port) -> str:
    """"" where all is well."""
    link, inner = one.link, one.guest.link if one.guest else None
    if not link.up or (inner and not inner.up):
        return f"{(link if not link.up else inner or link).name} DOWN"
    if link.port and link.port.state != "forwarding":
        return f"port {link.port.state}"
    return "" if link.carrier else "NO CARRIER"
