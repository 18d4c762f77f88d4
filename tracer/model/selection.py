"""What a run follows."""

from __future__ import annotations

from dataclasses import dataclass

from tracer.model.topology import Address

PORTS = 64  # source ports of a run; their first one is a multiple of this


@dataclass(frozen=True, slots=True)
class Relay:
    """A userland proxy that takes the probes in and opens a connection of its own for each."""

    pid: int
    program: str  # "docker-proxy"
    address: Address  # whom it connects to
    port: int


@dataclass(frozen=True, slots=True)
class Stream:
    """Real traffic: packets that match, wherever they go from then on, and those of the way back."""

    expression: str = ""  # a filter as tcpdump takes it; "" for all
    chosen: bool = False  # only from and to certain addresses, which change while it runs


@dataclass(frozen=True, slots=True)
class Selection:
    """The probes of one sender to one destination, whatever translates them; their answers, errors about them, neighbour
    lookups between two of `addresses`, and what a proxy makes of them."""

    version: int  # IP: 4 or 6
    transport: str  # "icmp" (ICMPv6 too), "tcp", "udp", or "arp" (neighbour discovery too)
    token: int  # tells this run's packets from others': the ICMP identifier, or the first of PORTS source ports
    addresses: tuple[Address, ...]
    destination: Address
    port: int | None = None  # of TCP and UDP
    sender: Address | None = None  # None: the kernel had no route to choose it by
    relay: Relay | None = None

    def key(self, seq: int) -> int:
        """What is left of a probe's number in its packets."""
        return seq % PORTS if self.transport in ("tcp", "udp") else seq & 0xFFFF
