"""The recorded network of tests/functional/networks.py, to be changed into one with a fault, and as each output shows it."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from typing import Any

from rich.console import Console

from tests.unit.recording import Network, load_network
from tracer.cli.topo_source import Source
from tracer.map.picture import ALL, Choice
from tracer.model.picture import Picture, Table
from tracer.model.ruleset import Ruleset
from tracer.model.topology import Link, Namespace, Topology
from tracer.render.topo_tables import TopoTables
from tracer.render.topo_text import TopoText


@cache
def network() -> Network:
    return load_network()


def source(topology: Topology | None = None, rulesets: Mapping[int, Ruleset] | None = None) -> Source:
    read = {ruleset.netns: ruleset for ruleset in network().rulesets}
    return Source(topology or network().topology, rulesets=read if rulesets is None else rulesets)


def space(topology: Topology, name: str) -> Namespace:
    return next(n for n in topology.namespaces.values() if topology.node(n.netns) == name)


def changed(name: str, topology: Topology | None = None, **changes: Any) -> Topology:
    """With this namespace otherwise."""
    topology = topology or network().topology
    old = space(topology, name)
    return replace(topology, namespaces={**topology.namespaces, old.netns: replace(old, **changes)})


def relinked(where: str, device: str, topology: Topology | None = None, /, **changes: Any) -> Topology:
    """With this device of the namespace otherwise."""
    topology = topology or network().topology
    old = space(topology, where)
    link = old.by_name(device)
    assert link is not None
    return changed(where, topology, links={**old.links, link.ifindex: replace(link, **changes)})


def port_of(name: str, topology: Topology | None = None) -> Link:
    """The host's end of a container's eth0."""
    topology = topology or network().topology
    eth0 = space(topology, name).by_name("eth0")
    assert eth0 is not None
    assert eth0.peer is not None
    return topology.namespaces[eth0.peer.netns].links[eth0.peer.ifindex]


def draw(choice: Choice = ALL, topology: Topology | None = None) -> Picture:
    return source(topology).picture(choice)


def lines(picture: Picture, width: int | None = 80) -> list[str]:
    stream = io.StringIO()
    TopoText(console(stream, width)).show(picture)
    return stream.getvalue().splitlines()


def table_lines(tables: list[Table], width: int | None = 80) -> list[str]:
    stream = io.StringIO()
    TopoTables(console(stream, width)).show(tables)
    return stream.getvalue().splitlines()


def console(stream: io.StringIO, width: int | None) -> Console:
    """A terminal of this width; None: a pipe."""
    return Console(file=stream, width=width or 80, force_terminal=width is not None, no_color=True, color_system=None)
