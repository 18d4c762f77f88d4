"""UDP probes: does anybody answer at a port, or is it said that there is nobody.

A name server is asked something that it answers; whoever is behind another port gets bytes that it may well ignore.
"""

from __future__ import annotations

import socket
from typing import Any

from tracer.model.topology import Address
from tracer.traffic.answer import State
from tracer.traffic.by_port import PortProber, Probe
from tracer.traffic.icmp import Error
from tracer.traffic.payload import pattern

_DNS = 53
_PORT_UNREACHABLE = {4: (3, 3), 6: (1, 4)}  # ICMP type and code


class UdpProber(PortProber):
    """Datagrams from one namespace to one port, as many in flight as there are ports in the block.

    States: "answered" (any datagram back), "refused" (port unreachable, said by the destination), "unreachable" (any other
    ICMP error), "astray" (a datagram from elsewhere). Silence is the caller's to tell: open or filtered. `size` is the
    payload in bytes; to port 53 goes a query of its own size.
    """

    protocol = socket.IPPROTO_UDP
    kind = socket.SOCK_DGRAM
    checksum_at = 6

    def __init__(self, namespace: str, destination: Address, port: int, source: Address | None, base_port: int, *,
                 size: int = 56, ttl: int | None = None) -> None:
        self._payload = pattern(size, destination.version)
        super().__init__(namespace, destination, port, source, base_port, ttl=ttl)

    def _prepare(self) -> None:
        from scapy.layers.dns import DNS, DNSQR
        from scapy.layers.inet import IP, UDP

        self._ip: Any = IP
        self._udp: Any = UDP
        self._dns: Any = DNS
        self._question: Any = DNSQR

    def _message(self, source_port: int, token: int, source: Address) -> bytes:
        datagram = self._udp(sport=source_port, dport=self.port) / self._content(token)
        if self.destination.version == 6:
            datagram.chksum = 0
            return bytes(datagram)
        return bytes(self._ip(src=str(source), dst=str(self.destination)) / datagram)[20:]

    def _content(self, token: int) -> Any:
        if self.port != _DNS:
            return self._payload
        return self._dns(id=token & 0xFFFF, rd=1, qd=self._question(qname=".", qtype="NS"))

    def _state(self, data: bytes, probe: Probe) -> State | None:
        # The socket that holds the port got the datagram as well. Unread, its buffer would fill, and the kernel drop.
        holder = self._reserved[probe.seq % len(self._reserved)]
        while True:
            try:
                holder.recv(1)
            except OSError:
                return "answered"

    def _is_from_destination(self, source: Address) -> bool:
        return self.destination.is_multicast or super()._is_from_destination(source)

    def _error_state(self, error: Error, source: Address) -> State:
        told = (error.type, error.code) == _PORT_UNREACHABLE[self.destination.version]
        return "refused" if told and self._is_from_destination(source) else "unreachable"
