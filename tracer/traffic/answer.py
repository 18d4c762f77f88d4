"""What can come of sending one test packet."""

from __future__ import annotations

import errno as codes
from dataclasses import dataclass
from typing import Literal

from tracer.model.topology import Address

# What the kernel's errno means when it comes from a send; fib_props[] in net/ipv4/fib_semantics.c for the routes.
_MEANING = {
    codes.ENETUNREACH: "no route to {0}",
    codes.EHOSTUNREACH: "{0} cannot be reached: its route says so, or its neighbour does not answer",
    codes.EACCES: "a prohibit route, or {0} is a broadcast address",
    codes.EINVAL: "a blackhole route, or a source address that does not fit {0}",
    codes.EPERM: "a rule in the sender's own OUTPUT or POSTROUTING dropped it",
    codes.EMSGSIZE: "it is larger than the way to {0} carries",
    codes.ENETDOWN: "the device towards {0} is down",
    codes.EADDRNOTAVAIL: "the sender has no address to reach {0} from",
    codes.ENOBUFS: "the device's queue is full",
    codes.EAGAIN: "the socket's send buffer is full",
}


@dataclass(frozen=True, slots=True)
class SendFailure:
    """The kernel refused the packet, which therefore never left its sender."""

    errno: int
    text: str  # for a person, to follow "the packet never left: "

    @classmethod
    def to(cls, destination: Address, error: OSError) -> SendFailure:
        number = error.errno or 0
        said = error.strerror or str(error)
        meaning = _MEANING.get(number)
        return cls(number, f"{meaning.format(destination)} ({said})" if meaning else said)


# What the answer says of the port or the neighbour that was asked. "astray" came from another address or port than the
# one that was asked, as when a translation was not undone on the way back: a real client throws that away.
State = Literal["", "open", "refused", "unreachable", "answered", "astray"]


@dataclass(frozen=True, slots=True)
class Answer:
    """One packet that came back. The same probe can be answered more than once."""

    seq: int  # of the probe, as it was given to send(), not cut to what the packet holds of it
    kind: Literal["reply", "error"]
    source: Address  # who sent it: the destination, or the router or host that the error is from
    ttl: int | None  # or hop limit, as it arrived
    length: int  # bytes above the IP header: of the ICMP message as ping counts, the segment, the datagram, the ARP packet
    monotonic_ns: int  # CLOCK_MONOTONIC at arrival, from the kernel's receive timestamp where there is one
    icmp_type: int | None = None  # of an echo reply, a neighbour advertisement or an error
    icmp_code: int | None = None
    state: State = ""  # "" of an answer to an echo request, whose kind says it all
    mac: str | None = None  # of the neighbour
