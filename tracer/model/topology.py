"""What a host's network looks like at one moment: namespaces, devices, tables, containers.

Everything is keyed by the number of a network namespace (netns_number), and devices by (number, ifindex): an ifindex or a
name alone says nothing, since each namespace counts from 1 and calls its device `eth0`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network

Address = IPv4Address | IPv6Address
Interface = IPv4Interface | IPv6Interface
Network = IPv4Network | IPv6Network


def netns_number(cookie: int, inode: int) -> int:
    """What tells a namespace from every other one, those that ended too: the kernel gives the inode of one that ended to the
    next one that is made, a cookie never again. `cookie`: 0 where the kernel does not tell it."""
    return (cookie & 0xFFFFFFFF) << 32 | inode


def inode(netns: int) -> int:
    """What people know the namespace by: `lsns`, /proc/PID/ns/net."""
    return netns & 0xFFFFFFFF


def has_cookie(netns: int) -> bool:
    return netns > 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class LinkKey:
    """A device anywhere on the machine."""

    netns: int  # number of its network namespace
    ifindex: int


@dataclass(frozen=True, slots=True)
class BridgePort:
    """What a bridge has set for one of its ports (`bridge -d link`)."""

    state: str  # of the spanning tree: "disabled", "listening", "learning", "forwarding", "blocking"
    hairpin: bool  # a frame may leave by the port that it came by
    isolated: bool  # frames between isolated ports are not forwarded
    flood: bool = True  # frames for a MAC that the bridge does not know leave by it, too
    mcast_flood: bool = True
    bcast_flood: bool = True


@dataclass(frozen=True, slots=True)
class Link:
    """One row of `ip link`, with its addresses."""

    ifindex: int
    name: str
    kind: str | None  # IFLA_INFO_KIND: "veth", "bridge", "macvlan", ...; None for a physical device and for lo
    mac: str | None  # lower case, colons
    mtu: int  # bytes
    up: bool  # IFF_UP
    loopback: bool  # IFF_LOOPBACK
    master: int | None  # ifindex of the bridge that it is a port of, in the same namespace
    peer: LinkKey | None  # the other end of a veth pair; None also where its namespace could not be found
    addresses: tuple[Interface, ...] = ()
    carrier: bool = True  # False: no cable, no port that is up, or the other end of the veth pair is down
    operstate: str = "unknown"  # in the words of `ip link`, lower case: "up", "down", "lowerlayerdown", "dormant", ...
    port: BridgePort | None = None  # of a bridge's port


@dataclass(frozen=True, slots=True)
class FdbEntry:
    """One row of a bridge's forwarding database (`bridge fdb show br BRIDGE`)."""

    mac: str
    bridge: int  # ifindex
    port: int  # ifindex; equal to bridge for the bridge's own address
    local: bool  # the address of a port or of the bridge itself: frames for it go up to the host
    # s since a frame came from it; beside the entry, not of it: two readings of one entry are equal. None: it was not read
    age: float | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Neighbor:
    """One row of `ip neigh`."""

    address: Address
    ifindex: int
    mac: str | None
    state: str  # as iproute2 prints it: "REACHABLE", "STALE", "FAILED", ...


@dataclass(frozen=True, slots=True)
class Listener:
    """A socket that waits for connections or datagrams (`ss -lntu`)."""

    protocol: str  # "tcp", "udp"
    address: Address  # 0.0.0.0 or :: takes all
    port: int


@dataclass(frozen=True, slots=True)
class Route:
    """One row of `ip route show table all`, without anycast."""

    destination: Network
    gateway: Address | None
    ifindex: int | None
    table: int  # 254 main, 255 local
    kind: str  # "unicast", "local", "broadcast", "unreachable", "blackhole", ...
    source: Address | None  # preferred source address (RTA_PREFSRC)
    metric: int


@dataclass(frozen=True, slots=True)
class PolicyRule:
    """One row of `ip rule` that leads to a table, or refuses."""

    version: int  # IP: 4 or 6
    priority: int
    table: int  # 0: it refuses
    words: str  # as `ip rule` writes it, without the priority: "from 172.17.0.0/16 lookup 100"
    source: Network | None = None  # None: any
    destination: Network | None = None
    inverted: bool = False  # "not": for all packets that do not meet all of its conditions

    @property
    def effect(self) -> str:
        return "asks another table first" if self.table else "may refuse it first"

    def fits(self, source: Address | None, destination: Address) -> bool:
        """By its addresses; it may have other conditions. `source` None: not known."""
        return self.inverted or ((self.destination is None or destination in self.destination) and (
            self.source is None or (source is not None and source in self.source)))


IPTABLES_TABLES = ("raw", "mangle", "nat", "filter", "security")


@dataclass(frozen=True, slots=True)
class BaseChain:
    """A chain that is registered at a netfilter hook, of nftables (iptables-nft too) or of iptables-legacy."""

    family: str  # "ip", "ip6", "inet", "bridge", "netdev"
    table: str  # "filter", "nat", ...
    name: str  # "FORWARD"; for a legacy table, its built-in chain
    hook: str  # "prerouting", "input", "forward", "output", "postrouting"; of netdev, and inet: "ingress", "egress"
    priority: int
    legacy: bool = False
    kind: str = "filter"  # nftables' type: "filter", "nat" (asked for a connection's first packet alone), "route"
    devices: tuple[str, ...] = ()  # that a chain at ingress or egress belongs to


@dataclass(frozen=True)
class Namespace:
    """One network namespace. `path` opens it (setns); it stays valid as long as what it names."""

    netns: int  # number
    name: str  # "host", a container's name, or a named namespace's name
    path: str
    links: Mapping[int, Link] = field(default_factory=dict)  # by ifindex
    fdb: tuple[FdbEntry, ...] = ()
    neighbors: tuple[Neighbor, ...] = ()
    routes: tuple[Route, ...] = ()
    rules: tuple[PolicyRule, ...] = ()
    chains: tuple[BaseChain, ...] | None = None  # None: could not be read
    sysctls: Mapping[str, str] = field(default_factory=dict)  # of those that decide a packet's way, as `sysctl` names them
    listeners: tuple[Listener, ...] | None = None  # None: were not or could not be read

    def by_name(self, device: str) -> Link | None:
        return next((link for link in self.links.values() if link.name == device), None)

    def owner_of(self, address: Address) -> Link | None:
        """The device that has this address."""
        return next((link for link in self.links.values() if any(i.ip == address for i in link.addresses)), None)

    def has(self, address: str) -> bool:
        """Does a device of it have this address? Loopback addresses are everybody's, and so nobody's."""
        return address in self._own

    @cached_property
    def _own(self) -> frozenset[str]:
        return frozenset(str(i.ip) for link in self.links.values() for i in link.addresses if not i.is_loopback)

    def addresses(self, version: int) -> tuple[tuple[Link, Interface], ...]:
        """Each address of IP version 4 or 6 with its device; loopback and IPv6 link-local ones left out."""
        return tuple((link, i) for link in self.links.values() if not link.loopback for i in link.addresses
                     if i.version == version and not i.ip.is_link_local)


@dataclass(frozen=True, slots=True)
class Attachment:
    """A container's end on one of its engine's networks."""

    network: str  # the engine's name of the network: "bridge", "web", ...
    addresses: tuple[Address, ...]
    mac: str | None


@dataclass(frozen=True, slots=True)
class Published:
    """A container's port that its engine publishes at the host (`docker port`)."""

    protocol: str  # "tcp", "udp", "sctp"
    container_port: int
    host_ip: Address | None  # None: all of the host's addresses, in an engine that names none
    host_port: int


@dataclass(frozen=True, slots=True)
class EngineNetwork:
    """A network as its engine describes it (`docker network inspect`)."""

    id: str  # whole
    name: str  # "bridge", "web", ...
    driver: str  # "bridge", "macvlan", "ipvlan", "overlay", "host", "null", ...
    device: str | None  # the bridge's name on the host; None where the driver has none, or the engine does not tell
    subnets: tuple[Network, ...] = ()
    gateways: tuple[Address, ...] = ()  # Docker leaves out what it chose by itself for some networks
    internal: bool = False
    icc: bool = True  # do containers on it reach each other?
    masquerade: bool = True  # do packets from it leave with the host's address?
    parent: str | None = None  # the host's device beneath macvlan or ipvlan


@dataclass(frozen=True, slots=True)
class Container:
    id: str  # whole
    name: str  # without the leading slash
    pid: int  # 0 when it is not running
    state: str  # the engine's word: "running", "exited", "paused", ...
    network_mode: str  # HostConfig.NetworkMode: "bridge", "host", "none", "container:<id>", a network's name
    attachments: tuple[Attachment, ...] = ()
    ports: tuple[Published, ...] = ()


@dataclass(frozen=True, slots=True)
class FormerLink:
    """A device of the host as it was."""

    link: Link
    until: int  # CLOCK_MONOTONIC ns, when it was heard that it is no more, or another
    gone: bool = True


@dataclass(frozen=True)
class Topology:
    """A snapshot. Namespaces that nobody asked for may be missing; `names` still knows them where it can.

    What ended a moment ago is still in it.
    """

    host: int  # number of the namespace that is called `host`
    namespaces: Mapping[int, Namespace]
    names: Mapping[int, str] = field(default_factory=dict)  # also of namespaces that were not read
    containers: tuple[Container, ...] = ()
    networks: tuple[EngineNetwork, ...] = ()
    former: tuple[FormerLink, ...] = ()  # in the order of their ends
    client: str = "docker"  # the command of the engine whose containers these are: "docker", "podman"

    def at(self, when: int) -> Topology:
        """The network of a packet that was seen at `when` (CLOCK_MONOTONIC, ns): with the host's devices of that time."""
        if not self.former:
            return self
        host = self.namespaces[self.host]
        links = dict(host.links)
        for before in self.former:
            if before.gone:
                links.pop(before.link.ifindex, None)
        links |= {before.link.ifindex: before.link for before in reversed(self.former) if before.until >= when}
        return replace(self, namespaces={**self.namespaces, self.host: replace(host, links=links)}, former=())

    def changes(self) -> list[int]:
        """The times between which at() says the same, in order."""
        return sorted({former.until + 1 for former in self.former})

    def node(self, netns: int) -> str:
        """The namespace's name, or `netns:INODE` for one that has none."""
        if netns == self.host:
            return "host"
        return self.names.get(netns) or f"netns:{inode(netns)}"

    def owner(self, address: str) -> int | None:
        """The namespace that has this address."""
        return self._owners.get(address)

    @cached_property
    def _owners(self) -> dict[str, int]:
        """The first of several counts: the host, what hangs on its devices, and others."""
        found: dict[str, int] = {}
        for namespace in sorted(self.namespaces.values(), key=lambda n: (n.netns != self.host, not any(
                link.peer and link.peer.netns == self.host for link in n.links.values()))):
            for address in namespace._own:
                found.setdefault(address, namespace.netns)
        return found

    def link(self, netns: int, ifindex: int) -> Link | None:
        namespace = self.namespaces.get(netns)
        return namespace.links.get(ifindex) if namespace else None

    def peer(self, netns: int, ifindex: int) -> tuple[str, str] | None:
        """(node, device) of the other end of a veth pair; a device that was not read is `if` and its ifindex."""
        link = self.link(netns, ifindex)
        if link is None or link.peer is None:
            return None
        other = self.link(link.peer.netns, link.peer.ifindex)
        return self.node(link.peer.netns), other.name if other else f"if{link.peer.ifindex}"

    def bridge(self, netns: int, ifindex: int) -> Link | None:
        """The bridge that this device is a port of, or the device itself where it is a bridge."""
        link = self.link(netns, ifindex)
        if link and link.kind == "bridge":
            return link
        return self.link(netns, link.master) if link and link.master else None
