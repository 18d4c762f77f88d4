"""The addresses that take part in a packet's way, by the routes that each namespace on it would take."""

from __future__ import annotations

from collections.abc import Iterator

from tracer.model.topology import Address, Namespace, Route, Topology
from tracer.topology.place import Destination, Place
from tracer.topology.snapshot import route_get


def source_address(source: Place, destination: Destination) -> Address | None:
    """The address that the kernel puts into a packet from there to there; None where it has no route."""
    route = route_get(source.path, destination.address)
    return route.source if route else None


def addresses_on_the_way(source: Place, destination: Destination, sender: Address | None,
                         topology: Topology) -> set[Address]:
    """Both ends, and whoever may ask for a MAC address, or be asked for one, on the way there and back.

    `sender` is what source_address() said.
    At most some ten for IPv4; with IPv6, routers speak by link-local addresses, so those of all devices are in.
    """
    found: set[Address] = {destination.address} | ({sender} if sender else set())
    host = topology.namespaces.get(topology.host)
    places = [source.path, host.path if host else None, destination.place.path if destination.place else None]
    for path in dict.fromkeys(filter(None, places)):
        for goal in [destination.address, *([sender] if sender else [])]:
            route = route_get(path, goal)
            found.update(_of_route(route) if route else ())
    for namespace in topology.namespaces.values():
        found.update(_link_local(namespace, destination.address.version))
    return found


def _of_route(route: Route) -> Iterator[Address]:
    if route.gateway:
        yield route.gateway
    if route.source:
        yield route.source


def _link_local(namespace: Namespace, version: int) -> Iterator[Address]:
    return (interface.ip for link in namespace.links.values() for interface in link.addresses
            if version == 6 and interface.version == 6 and interface.ip.is_link_local)
