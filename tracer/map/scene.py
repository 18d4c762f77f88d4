"""The network with all that findings are looked for in."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from tracer.map.picture import shown_addresses
from tracer.map.view import View
from tracer.model.ruleset import Ruleset
from tracer.model.topology import BaseChain, EngineNetwork, Link, Namespace, Topology


@dataclass(frozen=True, slots=True)
class Seat:
    """A device of a namespace that hangs on a bridge by a veth pair."""

    space: Namespace
    link: Link
    where: Namespace  # of the bridge
    port: Link
    bridge: Link


@dataclass(frozen=True)
class Scene:
    view: View
    ruleset: Ruleset | None  # of the host; None: it was not read

    @property
    def topology(self) -> Topology:
        return self.view.topology

    @property
    def host(self) -> Namespace | None:
        return self.view.host

    @cached_property
    def seats(self) -> tuple[Seat, ...]:
        found = []
        for space in self.view.spaces:
            for link in space.links.values():
                port = self.topology.link(link.peer.netns, link.peer.ifindex) if link.peer else None
                on = self.view.bridge_of(link)
                if on and port:
                    found.append(Seat(space, link, on[0], port, on[1]))
        return tuple(found)

    @cached_property
    def bridges(self) -> tuple[tuple[Namespace, Link], ...]:
        """Those on which something hangs."""
        used = {(seat.where.netns, seat.bridge.ifindex): (seat.where, seat.bridge) for seat in self.seats}
        return tuple(used.values())

    def name(self, space: Namespace) -> str:
        """For a sentence."""
        return "the host" if space.netns == self.topology.host else self.topology.node(space.netns)

    def run(self, space: Namespace, command: str) -> str:
        return command if space.netns == self.topology.host else f"nsenter --net={shlex.quote(space.path)} {command}"

    def network(self, space: Namespace, bridge: Link) -> EngineNetwork | None:
        return self.view.network(space, bridge)

    def chains(self, hook: str, family: str) -> Iterator[BaseChain]:
        return (c for c in (self.host.chains if self.host else None) or () if (c.hook, c.family) == (hook, family))


def first_upper(text: str) -> str:
    return f"The {text[4:]}" if text.startswith("the ") else text


def has_version(bridge: Link, version: int) -> bool:
    """Has somebody given it an address of this IP version?"""
    return any(one.version == version for one in shown_addresses(bridge))
