"""What a frame of a trace file says to a person who reads it in Wireshark."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from ipaddress import ip_address
from typing import NamedTuple

from tracer.model.frame import IPV4, IPV6, TCP, UDP, Header, header, header_of
from tracer.model.gathering import Gathering
from tracer.model.layout import Event, Place
from tracer.model.probes import HOOKS, Machine, Trace
from tracer.model.topology import Topology

WITH_PORTS = (TCP, UDP)
FLOWS = 1 << 14  # journeys whose addresses are remembered
WALKS = 1 << 10  # base chains whose messages came, and whose event did not


class Flow(NamedTuple):
    """What NAT rewrites, as it is in the packet. No ports: empty."""

    source: bytes
    destination: bytes
    source_port: bytes
    destination_port: bytes


class Comments:
    """Remembers each journey's addresses, to see that they change, and what nftables' trace messages said of packets that
    are yet to be written."""

    def __init__(self) -> None:
        self._flows: OrderedDict[int, Flow] = OrderedDict()
        self._gathering = Gathering(WALKS)
        self._walks: OrderedDict[tuple[int, Header], list[list[Trace]]] = OrderedDict()

    def hear(self, traces: Iterable[Trace]) -> None:
        """Those of a batch, before its events."""
        for trace in traces:
            if begun := self._gathering.add(trace):
                key = (trace.netns, header_of(trace.protocol, trace.network, trace.transport))
                self._walks.setdefault(key, []).append(begun)
        while len(self._walks) > WALKS:
            self._walks.popitem(last=False)

    def remember(self, journey: int, flow: Flow) -> None:
        """What it had until now."""
        self._flows[journey] = flow

    def of(self, event: Event, machine: Machine, topology: Topology) -> list[str]:
        said = self._rules(event, topology) if self._walks and event.place in (Place.HOOK, Place.DROP) else []
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
                    self._flows.popitem(last=False)
        return said

    def _rules(self, event: Event, topology: Topology) -> list[str]:
        """What the packet met at this hook, or where it was dropped: a comment for each base chain."""
        key = (event.netns, header(event))
        here: dict[tuple[str, str, str], list[Trace]] = {}  # base chain -> its first walk: packets may look the same
        left = []
        for walk in self._walks.pop(key, ()):
            base = (walk[0].family, walk[0].table, walk[0].chain)
            if base not in here and (event.place == Place.DROP or _hook(walk[0], topology) == HOOKS[event.hook]):
                here[base] = walk
            else:
                left.append(walk)
        if left:
            self._walks[key] = left
        return [f"rules of {walk[0].family} {walk[0].table}: {' → '.join(map(_rule, walk))}" for walk in here.values()]


def _hook(trace: Trace, topology: Topology) -> str | None:
    namespace = topology.namespaces.get(trace.netns)
    return next((chain.hook for chain in (namespace.chains or () if namespace else ()) if not chain.legacy and (
        chain.family, chain.table, chain.name) == (trace.family, trace.table, trace.chain)), None)


def _rule(trace: Trace) -> str:
    if trace.kind != "rule":
        return f"{'policy' if trace.kind == 'policy' else 'end'} of {trace.chain}: {trace.verdict}"
    return f"{trace.text or f'{trace.chain}, handle {trace.handle}'}: {trace.verdict}"


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
