"""Faults of bridges, their ports and the sizes that they take."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

from tracer.journey import sentences
from tracer.map.picture import shown_addresses
from tracer.map.scene import Scene, has_version
from tracer.model.journey import Cause

MAIN = 254


# bridges and ports ------------------------------------------------------------------------------------------------------


def bridge_down(scene: Scene) -> Iterator[Cause]:
    for space, bridge in scene.bridges:
        if not bridge.up:
            yield Cause("bridge_down", sentences.bridge_down(bridge, scene.name(space)),
                        (f"{bridge.name}: state down (ip link)",),
                        scene.run(space, f"ip link set {shlex.quote(bridge.name)} up"))


def bridge_without_address(scene: Scene) -> Iterator[Cause]:
    for space, bridge in scene.bridges:
        network = scene.network(space, bridge)
        for gateway in network.gateways if network and not network.internal else ():
            if bridge.up and not has_version(bridge, gateway.version):
                subnet = next((s for s in network.subnets if gateway in s), None) if network else None
                yield Cause("bridge_without_address", sentences.no_bridge_address(
                    bridge, scene.name(space), gateway.version, str(gateway)), (f"{bridge.name}: no address (ip address)",),
                    f"ip address add {gateway}/{subnet.prefixlen if subnet else 'PREFIX'} dev {shlex.quote(bridge.name)}")


def port_down(scene: Scene) -> Iterator[Cause]:
    for seat in scene.seats:
        for space, link in ((seat.where, seat.port), (seat.space, seat.link)):
            if not link.up:
                yield Cause("port_down", sentences.link_down(link, scene.name(space), scene.name(seat.space)),
                            (f"{link.name}: state down (ip link)",),
                            scene.run(space, f"ip link set {shlex.quote(link.name)} up"))


def port_blocked(scene: Scene) -> Iterator[Cause]:
    for seat in scene.seats:
        link = seat.port
        if link.up and link.carrier and link.port and link.port.state not in ("forwarding", "disabled"):
            yield Cause("port_blocked", sentences.port_blocked(link),
                        (f"{link.name}: state {link.port.state} (bridge link)",),
                        scene.run(seat.where, f"bridge link set dev {shlex.quote(link.name)} state 3"))


def veth_without_bridge(scene: Scene) -> Iterator[Cause]:
    host = scene.host
    for link in host.links.values() if host else ():
        guest = scene.view.guest(link)
        if host is None or guest is None or guest.key.netns == host.netns or link.master is not None \
                or shown_addresses(link) or scene.view.routed(host, link):
            continue
        networks = [n for n in scene.topology.networks if any(
            n.name == end.network for c in scene.topology.containers if c.name in guest.containers for end in c.attachments)
            and n.device]
        mend = f"ip link set {shlex.quote(link.name)} master {shlex.quote(networks[0].device or '')}" if networks else None
        yield Cause("veth_without_bridge", f"{link.name}, the host's end of {guest.node}'s veth pair, is on no bridge and "
                    f"has no route: what {guest.node} sends ends there.",
                    (f"{link.name}: no master, no address (ip link, ip address)",), mend)


# sizes ------------------------------------------------------------------------------------------------------------------


def mtu_unequal(scene: Scene) -> Iterator[Cause]:
    for seat in scene.seats:
        inner, outer = seat.link.mtu, seat.port.mtu
        if inner != outer:
            big, small = ((seat.space, seat.link), (seat.where, seat.port))[::1 if inner > outer else -1]
            yield Cause("mtu_unequal", f"{small[1].name} of {scene.name(small[0])} takes no more than {small[1].mtu}, and "
                        f"its other end {big[1].name} of {scene.name(big[0])} sends up to {big[1].mtu}: what does not fit "
                        "is dropped, and nobody is told.", (f"MTU of {big[1].name}: {big[1].mtu}",
                                                         f"MTU of {small[1].name}: {small[1].mtu}"),
                        scene.run(small[0], f"ip link set {shlex.quote(small[1].name)} mtu {big[1].mtu}"))
    yield from _between_ports(scene)
    yield from _to_the_uplink(scene)


def _between_ports(scene: Scene) -> Iterator[Cause]:
    for space, bridge in scene.bridges:
        seats = [seat for seat in scene.seats if seat.where is space and seat.bridge is bridge
                 and seat.link.mtu == seat.port.mtu]
        sizes = sorted({seat.port.mtu for seat in seats})
        if len(sizes) > 1:
            small = [scene.name(seat.space) for seat in seats if seat.port.mtu == sizes[0]]
            others = " and others" if small[3:] else ""
            yield Cause("mtu_unequal", f"Ports of {bridge.name} have MTUs from {sizes[0]} to {sizes[-1]}: larger frames to "
                        f"{', '.join(small[:3])}{others} are dropped, and nobody is told.",
                        tuple(f"MTU of {seat.port.name} ({scene.name(seat.space)}): {seat.port.mtu}" for seat in seats),
                        "give all of them one MTU, in their namespaces and on the host")


def _to_the_uplink(scene: Scene) -> Iterator[Cause]:
    host = scene.host
    for row in host.routes if host else ():
        out = host.links.get(row.ifindex or 0) if host else None
        if out is None or row.destination.prefixlen or row.destination.version != 4 or row.table != MAIN:
            continue
        large = [bridge for space, bridge in scene.bridges if space is host and bridge.mtu > out.mtu]
        if large:
            names = ", ".join(link.name for link in large)
            yield Cause("mtu_unequal", f"{out.name}, the way out, takes no more than {out.mtu}, and containers on {names} "
                        f"send up to {max(link.mtu for link in large)}: connections hang where the ICMP error is lost.",
                        (f"MTU of {out.name}: {out.mtu}", *(f"MTU of {link.name}: {link.mtu}" for link in large)),
                        f"give the containers' network the MTU {out.mtu} (`docker network create -o "
                        f"com.docker.network.driver.mtu={out.mtu}`; for docker0, \"mtu\": {out.mtu} in daemon.json)")
            return
