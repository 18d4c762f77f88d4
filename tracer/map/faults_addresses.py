"""Faults of addresses: the same twice, in two subnets, or with a MAC that is another's."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Iterator

from tracer.journey import sentences
from tracer.map.picture import shown_addresses
from tracer.map.scene import Scene, Seat, first_upper
from tracer.model.journey import Cause
from tracer.model.topology import Interface, LinkKey, Network

MAIN = 254


def mac_twice(scene: Scene) -> Iterator[Cause]:
    for (_bridge, mac), seats in _by_bridge(scene, lambda seat: [seat.link.mac] if seat.link.mac else []).items():
        names = (scene.name(seats[0].space), scene.name(seats[1].space))
        yield Cause("mac_twice", sentences.same_mac(names, str(mac), seats[0].bridge.name),
                    tuple(f"{scene.name(seat.space)} has {mac} (ip link)" for seat in seats),
                    "create one of them anew with another --mac-address, or without")


def address_twice(scene: Scene) -> Iterator[Cause]:
    for (_bridge, address), seats in _by_bridge(scene, lambda seat: shown_addresses(seat.link)).items():
        names = (scene.name(seats[0].space), scene.name(seats[1].space))
        found = next(one for one in shown_addresses(seats[0].link) if one == address)
        yield Cause("address_twice", sentences.same_address(names, found, seats[0].bridge.name),
                    tuple(f"{scene.name(seat.space)} has {address} (ip address)" for seat in seats),
                    "give one of them another address")


def _by_bridge(scene: Scene, keys: Callable[[Seat], Iterable[object]]) -> dict[tuple[LinkKey, object], list[Seat]]:
    """What several devices on one bridge have in common."""
    found: dict[tuple[LinkKey, object], list[Seat]] = {}
    for seat in scene.seats:
        for key in keys(seat):
            found.setdefault((LinkKey(seat.where.netns, seat.bridge.ifindex), key), []).append(seat)
    return {key: seats for key, seats in found.items() if len({seat.space.netns for seat in seats}) > 1}


def subnets_overlap(scene: Scene) -> Iterator[Cause]:
    """A row that is as specific as the bridge's own, or more so, takes packets that are for its containers."""
    host, told = scene.host, set()
    for link in (one for one in host.links.values() if one.kind == "bridge") if host else ():
        for own in (i for i in link.addresses if not i.ip.is_link_local):
            for row in host.routes if host else ():
                other = host.links.get(row.ifindex or 0) if host else None
                pair = frozenset((link.ifindex, row.ifindex or 0))
                if other is None or other is link or row.table != MAIN or row.kind != "unicast" or pair in told \
                        or not _takes(row.destination, own):
                    continue
                told.add(pair)
                yield Cause("subnets_overlap", f"{own.network} is the subnet of {link.name}, and a route to "
                            f"{row.destination} leads by {other.name}: packets for the same addresses can go only "
                            "one of the two ways.",
                            (f"{link.name} has {own} (ip address)", f"{row.destination} dev {other.name} (ip route)"),
                            "give one of the two another subnet: `docker network create --subnet`, or default-address-pools "
                            "in daemon.json")


def _takes(destination: Network, own: Interface) -> bool:
    network = own.network
    return destination.version == network.version and destination.prefixlen >= network.prefixlen and (
        destination.network_address in network)


def wrong_mac(scene: Scene) -> Iterator[Cause]:
    """A neighbour entry with another MAC than that of the address's owner on the same bridge."""
    owners = {(seat.where.netns, seat.bridge.ifindex, one): (seat.space, seat.link)
              for seat in scene.seats for one in shown_addresses(seat.link)}
    owners |= {(space.netns, bridge.ifindex, one): (space, bridge) for space, bridge in scene.bridges
               for one in shown_addresses(bridge)}
    devices = [(seat.space, seat.link, seat.where.netns, seat.bridge.ifindex) for seat in scene.seats]
    devices += [(space, bridge, space.netns, bridge.ifindex) for space, bridge in scene.bridges]
    for space, device, where, number in devices:
        for row in space.neighbors:
            owner = owners.get((where, number, row.address))
            if row.ifindex == device.ifindex and row.mac and owner and owner[1].mac and owner[1].mac != row.mac:
                name, whose = scene.name(space), scene.name(owner[0])
                yield Cause("wrong_mac", f"{first_upper(name)} sends what is for {row.address} to the MAC {row.mac}: its "
                            f"neighbour table says so, while {whose} has {owner[1].mac}.",
                            (f"{row.address} lladdr {row.mac} {row.state} (ip neigh of {name})",),
                            scene.run(space, f"ip neigh del {row.address} dev {shlex.quote(device.name)}"))
