"""TCP SYN probes: is a port open, without a connection that anybody has to accept.

A SYN-ACK meets no connection here, and the kernel itself answers it with RST, which closes the half-open connection at the
far side: see ports.reserve().
"""

from __future__ import annotations

import socket
import struct
from typing import Any

from tracer.model.topology import Address
from tracer.traffic.answer import State
from tracer.traffic.by_port import PortProber, Probe

_SYN, _RST, _ACK = 0x02, 0x04, 0x10
_WINDOW = 64240
_MSS = {4: 1460, 6: 1440}  # a SYN without the option looks like an attack to some firewalls


class SynProber(PortProber):
    """SYNs from one namespace to one port, as many in flight as there are ports in the block.

    States: "open" (SYN-ACK), "refused" (RST), "unreachable" (an ICMP error), "astray" (either of the first two, from
    elsewhere). Silence is the caller's to tell: filtered. A probe's sequence number is random, and an answer is one only if
    it acknowledges it.
    """

    protocol = socket.IPPROTO_TCP
    kind = socket.SOCK_STREAM
    checksum_at = 16

    def _prepare(self) -> None:
        from scapy.layers.inet import IP, TCP

        self._ip: Any = IP
        self._tcp: Any = TCP

    def _message(self, source_port: int, token: int, source: Address) -> bytes:
        version = self.destination.version
        segment = self._tcp(sport=source_port, dport=self.port, flags="S", seq=token, window=_WINDOW,
                            options=[("MSS", _MSS[version])])
        if version == 6:
            segment.chksum = 0
            return bytes(segment)
        return bytes(self._ip(src=str(source), dst=str(self.destination)) / segment)[20:]

    def _state(self, data: bytes, probe: Probe) -> State | None:
        return state_of(data, probe.token)

    def _is_quoted(self, head: bytes, probe: Probe) -> bool:
        return bool(struct.unpack_from("!I", head, 4)[0] == probe.token)


def state_of(segment: bytes, sent: int | None) -> State | None:
    """What the segment says of the port that a SYN with this sequence number (None: any) went to; None if it is not about
    that SYN."""
    if len(segment) < 20:
        return None
    acknowledged, flags = struct.unpack_from("!IxB", segment, 8)
    if not flags & _ACK or (sent is not None and acknowledged != (sent + 1) & 0xFFFFFFFF):
        return None
    if flags & _RST:
        return "refused"
    return "open" if flags & _SYN else None
