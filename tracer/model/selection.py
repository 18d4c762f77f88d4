"""What a run follows."""

from __future__ import annotations

from dataclasses import dataclass

from tracer.model.topology import Address

PORTS = 64  # source ports of a run; their first one is a multiple of this


@dataclass(frozen=True, slots=True)
class Selection:
    """The probes of one sender, their answers, errors about them, and neighbour lookups.

    A probe or its answer has one of `addresses` as source or destination; a neighbour lookup is between two of them.
    """

    version: int  # IP: 4 or 6
    transport: str  # "icmp" (ICMPv6 too), "tcp", "udp", or "arp" (neighbour discovery too)
    token: int  # tells this run's packets from others': the ICMP identifier, or the first of PORTS source ports
    addresses: tuple[Address, ...]

    def key(self, seq: int) -> int:
        """What is left of a probe's number in its packets."""
        return seq % PORTS if self.transport in ("tcp", "udp") else seq & 0xFFFF
