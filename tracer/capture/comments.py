"""What a frame of a trace file says to a person who reads it in Wireshark."""

from __future__ import annotations

from ipaddress import ip_address
from typing import NamedTuple

from tracer.model.frame import IPV4, IPV6, TCP, UDP
from tracer.model.layout import Event, Place
from tracer.model.probes import Machine

WITH_PORTS = (TCP, UDP)
FLOWS = 1 << 14  # journeys whose addresses are remembered


class Flow(NamedTuple):
    """What NAT rewrites, as it is in the packet. No ports: empty."""

    source: bytes
    destination: bytes
    source_port: bytes
    destination_port: bytes


class Comments:
    """Remembers each journey's addresses, to see that they change."""

    def __init__(self) -> None:
        self._flows: dict[int, Flow] = {}

    def remember(self, journey: int, flow: Flow) -> None:
        """What it had until now."""
        self._flows[journey] = flow

    def of(self, event: Event, machine: Machine) -> list[str]:
        said = []
        if event.place == Place.DROP:
            said.append(f"drop reason: {machine.reasons.get(event.reason, event.reason)}")
            if event.stack:
                said.append(f"kernel stack: {' < '.join(event.stack)}")
        elif flow := flow_of(event.protocol, event.captured, event.packet):
            before = self._flows.get(event.journey)
            if before != flow:
                self._flows[event.journey] = flow
                if before:
                    said += _rewritten(before, flow)
                elif len(self._flows) > FLOWS:
                    del self._flows[next(iter(self._flows))]
        return said


def flow_of(protocol: int, captured: int, packet: bytes) -> Flow | None:
    if protocol == IPV4 and captured >= 20:
        source, destination, behind = packet[12:16], packet[16:20], (packet[0] & 15) * 4
        ports = packet[9] in WITH_PORTS and not packet[7] and not packet[6] & 0x1F  # else a fragment without them
    elif protocol == IPV6 and captured >= 40:
        source, destination, behind = packet[8:24], packet[24:40], 40
        ports = packet[6] in WITH_PORTS
    else:
        return None
    if not ports or captured < behind + 4:
        return Flow(source, destination, b"", b"")
    return Flow(source, destination, packet[behind:behind + 2], packet[behind + 2:behind + 4])


def _rewritten(before: Flow, after: Flow) -> list[str]:
    ends = (("source", before.source, before.source_port, after.source, after.source_port),
            ("destination", before.destination, before.destination_port, after.destination, after.destination_port))
    return [f"{what} rewritten: {_end(address, port)} → {_end(other, other_port)}"
            for what, address, port, other, other_port in ends
            if address != other or (port and other_port and port != other_port)]


def _end(address: bytes, port: bytes) -> str:
    shown = str(ip_address(address))
    return f"{shown} port {int.from_bytes(port, 'big')}" if port else shown
