"""Questions that the picture, the tables and the findings ask of a snapshot."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

from tracer.model.picture import Guest
from tracer.model.topology import IPTABLES_TABLES, Container, EngineNetwork, Link, LinkKey, Namespace, Topology


class View:
    def __init__(self, topology: Topology) -> None:
        self.topology = topology

    @property
    def host(self) -> Namespace | None:
        return self.topology.namespaces.get(self.topology.host)

    @cached_property
    def spaces(self) -> tuple[Namespace, ...]:
        """The host, what veth pairs connect with it, and the containers; in this order, each once."""
        found: dict[int, Namespace] = {}
        next_ones = [self.topology.host]
        while next_ones:
            number = next_ones.pop(0)
            space = self.topology.namespaces.get(number)
            if space is None or number in found:
                continue
            found[number] = space
            next_ones += [link.peer.netns for link in space.links.values() if link.peer]
        for space in self.topology.namespaces.values():
            if self.topology.node(space.netns) in self._by_name:
                found.setdefault(space.netns, space)
        return tuple(found.values())

    # containers -------------------------------------------------------------------------------------------------------

    @cached_property
    def _by_name(self) -> dict[str, Container]:
        return {c.name: c for c in self.topology.containers if c.network_mode != "host"}

    @cached_property
    def _spaces_by_name(self) -> dict[str, Namespace]:
        return {self.topology.node(n.netns): n for n in self.topology.namespaces.values() if n.netns != self.topology.host}

    def owner(self, container: Container) -> Container:
        """The container whose network it has: itself, but for --network container:OTHER."""
        scheme, _, word = container.network_mode.partition(":")
        return next((c for c in self.topology.containers if scheme == "container" and word and word in (c.id, c.name)),
                    container)

    def space_of(self, container: Container) -> Namespace | None:
        return self._spaces_by_name.get(container.name) or self._spaces_by_name.get(self.owner(container).name)

    @cached_property
    def _together(self) -> dict[str, list[Container]]:
        """By the owner's name: those that share its namespace, itself first."""
        found: dict[str, list[Container]] = {}
        for container in self.topology.containers:
            owner = self.owner(container)
            if container.state in ("running", "paused") and container.network_mode != "host":
                at = found.setdefault(owner.name, [])
                at.insert(0 if owner is container else len(at), container)
        return found

    def inhabitants(self, node: str) -> list[Container]:
        """Containers that live in the namespace of this name, the one it was made for first."""
        named = self._by_name.get(node)
        return self._together.get(self.owner(named).name, [named]) if named else []

    def networks_of(self, name: str) -> tuple[str, ...]:
        """Names and ids of the engine's networks that the container is on."""
        container = next((c for c in self.topology.containers if c.name == name), None)
        names = {end.network for end in container.attachments} if container else set()
        return (*names, *(n.id for n in self.topology.networks if n.name in names))

    # devices ----------------------------------------------------------------------------------------------------------

    def network(self, namespace: Namespace, bridge: Link) -> EngineNetwork | None:
        """The engine's network whose bridge this is."""
        if namespace.netns != self.topology.host:
            return None
        return next((n for n in self.topology.networks if n.device == bridge.name), None)

    def ports(self, namespace: Namespace, bridge: Link) -> Iterator[Link]:
        return (link for link in namespace.links.values() if link.master == bridge.ifindex)

    def guest(self, link: Link) -> Guest | None:
        """Who is at the other end of this veth."""
        if link.kind != "veth" or link.peer is None:
            return None
        node = self.topology.node(link.peer.netns)
        lives = self.inhabitants(node)
        ports = dict.fromkeys(port for container in lives for port in container.ports)
        return Guest(node, self.topology.link(link.peer.netns, link.peer.ifindex), link.peer,
                     tuple(c.name for c in lives), tuple(ports))

    def is_port(self, key: LinkKey | None) -> bool:
        """Is this device a bridge's port?"""
        link = self.topology.link(key.netns, key.ifindex) if key else None
        return link is not None and link.master is not None

    def bridge_of(self, link: Link) -> tuple[Namespace, Link] | None:
        """The bridge that this device of a container hangs on, and the namespace that it is in."""
        port = self.topology.link(link.peer.netns, link.peer.ifindex) if link.peer else None
        if port is None or port.master is None or link.peer is None:
            return None
        space = self.topology.namespaces[link.peer.netns]
        bridge = space.links.get(port.master)
        return (space, bridge) if bridge else None

    def routed(self, namespace: Namespace, link: Link) -> bool:
        """Does a route lead there, other than those that each device has by itself?"""
        return any(row.ifindex == link.ifindex and row.kind == "unicast" and not row.destination.is_multicast
                   and not row.destination.is_link_local for row in namespace.routes)

    def backends(self) -> list[str]:
        """What fills the host's firewall: "iptables-nft", "iptables-legacy", "nftables"."""
        chains = (self.host.chains if self.host else None) or ()
        found = []
        for chain in chains:
            ours = chain.family in ("ip", "ip6") and chain.table in IPTABLES_TABLES and chain.name == chain.hook.upper()
            found.append("iptables-legacy" if chain.legacy else "iptables-nft" if ours else f"nftables ({chain.table})")
        return sorted(set(found))
