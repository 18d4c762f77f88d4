"""One journey with all that its causes are looked for in."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from ipaddress import ip_address

from tracer.journey.headers import is_question
from tracer.journey.reasons import UNSAID
from tracer.model.journey import Hop, Journey, Packet, Result, RouteChoice, Rule, Stage
from tracer.model.probes import Missing
from tracer.model.topology import Address, Container, EngineNetwork, Link, LinkKey, Namespace, Published, Route, Topology

USUAL_TABLES = (253, 254, 255)  # default, main, local


@dataclass(frozen=True)
class Case:
    journey: Journey
    others: tuple[Journey, ...]  # of the same probe, and the neighbour lookups of that time
    topology: Topology
    silent: bool  # the probe is over, and the sender got no answer
    missing: tuple[Missing, ...] = ()  # probes

    @property
    def dropped(self) -> bool:
        return self.journey.end.result is Result.DROPPED

    @property
    def lost(self) -> bool:
        """It did not arrive, or nothing tells that it did."""
        return self.dropped or (self.silent and self.journey.end.result is Result.UNKNOWN)

    @property
    def delivered(self) -> bool:
        return self.journey.end.result is Result.DELIVERED

    @property
    def request(self) -> bool:
        return self.journey.kind == "request"

    @property
    def rule(self) -> Rule | None:
        return self.journey.end.rule

    def by(self, *reasons: str, functions: tuple[str, ...] = ()) -> bool:
        """Was it dropped for one of these reasons, or, where the kernel gave none, in one of these functions?"""
        end = self.journey.end
        return self.dropped and (end.reason in reasons or (
            end.function in functions and end.reason in UNSAID))

    # places ------------------------------------------------------------------------------------------------------------

    @cached_property
    def space(self) -> Namespace | None:
        """The namespace in which it ended."""
        end, hops = self.journey.end, self.journey.hops
        if hops and (end.node is None or hops[-1].node == end.node):
            return self.topology.namespaces.get(hops[-1].netns)
        return next((n for n in self.topology.namespaces.values() if self.topology.node(n.netns) == end.node), None)

    @property
    def host(self) -> Namespace | None:
        return self.topology.namespaces.get(self.topology.host)

    @property
    def at_host(self) -> bool:
        return self.space is not None and self.space is self.host

    @cached_property
    def source(self) -> Namespace | None:
        """The namespace that it was first seen in."""
        return self.topology.namespaces.get(self.journey.hops[0].netns) if self.journey.hops else None

    @cached_property
    def target(self) -> Namespace | None:
        """The namespace that has the destination, after translation."""
        return self.having(self.packet.dst)

    def having(self, address: str) -> Namespace | None:
        owner = self.topology.owner(address)
        return self.topology.namespaces.get(owner) if owner is not None else None

    def reached(self, namespace: Namespace) -> bool:
        return any(hop.netns == namespace.netns for hop in self.journey.hops)

    def name(self, namespace: Namespace) -> str:
        """For a sentence."""
        return "the host" if namespace.netns == self.topology.host else self.topology.node(namespace.netns)

    def titled(self, namespace: Namespace) -> str:
        """"c1 (network bridge)"."""
        networks = self.networks(namespace)
        word = "network" if len(networks) == 1 else "networks"
        return f"{self.name(namespace)} ({word} {', '.join(networks)})" if networks else self.name(namespace)

    def run(self, namespace: Namespace, command: str, *words: str) -> str:
        """The command, to be pasted into a shell of the host, that does this in the namespace. `words` stand for its {}:
        names of devices are anybody's choice, and a shell must not read more in them."""
        command = command.format(*map(shlex.quote, words)) if words else command
        return command if namespace.netns == self.topology.host else f"nsenter --net={shlex.quote(namespace.path)} {command}"

    # the engine's view -------------------------------------------------------------------------------------------------

    def container(self, namespace: Namespace) -> Container | None:
        name = self.name(namespace)
        return next((c for c in self.topology.containers if c.name == name and c.network_mode != "host"), None)

    def networks(self, namespace: Namespace) -> tuple[str, ...]:
        container = self.container(namespace)
        return tuple(a.network for a in container.attachments) if container else ()

    def network(self, device: str | None) -> EngineNetwork | None:
        """The engine's network whose bridge this device of the host is."""
        return next((n for n in self.topology.networks if n.device == device), None) if device else None

    def published(self, port: int | None, protocol: str) -> Iterator[tuple[Container, Published]]:
        """Containers that run and publish something at this port of the host."""
        return ((c, p) for c in self.topology.containers if c.state in ("running", "paused")
                for p in c.ports if p.host_port == port and p.protocol == protocol)

    # the way -----------------------------------------------------------------------------------------------------------

    @cached_property
    def packet(self) -> Packet:
        """Its headers as they were at the end."""
        packet = self.journey.packet
        for rewrite in (hop.rewrite for hop in self.journey.hops if hop.rewrite):
            packet = packet._replace(src=rewrite.src[1] if rewrite.src else packet.src,
                                     dst=rewrite.dst[1] if rewrite.dst else packet.dst,
                                     sport=rewrite.sport[1] if rewrite.sport else packet.sport,
                                     dport=rewrite.dport[1] if rewrite.dport else packet.dport)
        return packet

    @property
    def version(self) -> int:
        return self.journey.packet.family or 4

    @property
    def last(self) -> Hop | None:
        return self.journey.hops[-1] if self.journey.hops else None

    @property
    def stage(self) -> Stage | None:
        return self.journey.end.stage

    @property
    def device(self) -> Link | None:
        """The device at which it ended."""
        name = self.journey.end.device
        return self.space.by_name(name) if self.space and name else None

    @cached_property
    def route_hop(self) -> Hop | None:
        """The last route lookup where it ended."""
        last = self.last
        return next((h for h in reversed(self.journey.hops) if h.route and last and h.netns == last.netns), None)

    @property
    def route(self) -> RouteChoice | None:
        return self.route_hop.route if self.route_hop else None

    @cached_property
    def came_by(self) -> str | None:
        """The device that brought it to where it ended, as IP sees it: a bridge, not its port."""
        last = self.last
        hops = [h for h in self.journey.hops if last and h.netns == last.netns]
        return next((h.bridge or h.device for h in hops if h.stage in (Stage.INGRESS, Stage.L2_LOCAL)), None)

    @cached_property
    def goes_by(self) -> str | None:
        """The device that it was to leave that place by, as IP sees it."""
        if self.switched:
            return self.came_by
        return self.route.device if self.route else None

    @cached_property
    def switched(self) -> bool:
        """Did a bridge pass it from port to port where it ended, without IP?"""
        last = self.last
        here = [h for h in self.journey.hops if last and h.netns == last.netns]
        return any(h.stage in (Stage.L2_FORWARD, Stage.L2_FLOOD) for h in here) and not any(h.route for h in here)

    @cached_property
    def next_hop(self) -> str:
        """The address whose MAC the last lookup asks for."""
        return (self.route.gateway if self.route else None) or self.packet.dst

    def outer(self, link: Link | None) -> tuple[Namespace, Link] | None:
        """The other end of a container's veth pair."""
        if link is None or link.peer is None:
            return None
        namespace, found = self.topology.namespaces.get(link.peer.netns), self.topology.link(*_key(link.peer))
        return (namespace, found) if namespace and found else None

    def bridge_of(self, namespace: Namespace, link: Link | None) -> tuple[Namespace, Link] | None:
        """The bridge that this device of a container hangs on, and where it is."""
        port = self.outer(link)
        bridge = port[0].links.get(port[1].master) if port and port[1].master else None
        return (port[0], bridge) if port and bridge else None

    # the others --------------------------------------------------------------------------------------------------------

    def of_kind(self, kind: str) -> list[Journey]:
        """Of the same probe. Real traffic has none, and what was told at the same time may belong to another flow."""
        return [j for j in self.others if j.kind == kind and j.seq == self.journey.seq is not None]

    @property
    def replies(self) -> list[Journey]:
        return self.of_kind("reply")

    @property
    def errors(self) -> list[Journey]:
        """ICMP errors about it."""
        return self.of_kind("error")

    def questions(self, address: str) -> list[Journey]:
        """Lookups of this address's MAC."""
        return [j for j in self.others if j.kind == "arp" and j.packet.asked == address and is_question(j.packet)]

    def told(self, address: str) -> bool:
        """Was somebody told this address's MAC?"""
        return any(j.kind == "arp" and j.packet.asked == address and not is_question(j.packet) for j in self.others)

    # what was read -----------------------------------------------------------------------------------------------------

    def sysctl(self, namespace: Namespace | None, name: str) -> str | None:
        return namespace.sysctls.get(name) if namespace else None

    def no_way(self, namespace: Namespace, address: str) -> bool:
        """Its tables were read, are all that count, and have no row for this address."""
        if not namespace.routes or any(rule.table not in USUAL_TABLES for rule in namespace.rules):
            return False
        goal = parsed(address)
        return goal is not None and not any(row.kind in ("unicast", "local") for row in rows(namespace, goal)[:1])


def rows(namespace: Namespace, address: Address) -> list[Route]:
    """Of the usual tables, those that hold the address, the most specific first."""
    found = [row for row in namespace.routes if row.table in USUAL_TABLES and address in row.destination]
    return sorted(found, key=lambda row: (row.table != 255, -row.destination.prefixlen, row.metric))


@lru_cache(4096)
def parsed(address: str) -> Address | None:
    try:
        return ip_address(address)
    except ValueError:
        return None


def _key(key: LinkKey) -> tuple[int, int]:
    return key.netns, key.ifindex
