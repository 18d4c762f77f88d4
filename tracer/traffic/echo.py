"""ICMP and ICMPv6 echo requests, sent as any program of the namespace would send them.

The socket is a raw IP socket that was opened inside the source's namespace, so that the kernel itself looks up the
route, resolves the neighbour and passes the OUTPUT hooks. scapy builds the ICMP message, the kernel the IP header. As
with ping, path MTU discovery is left at its default: DF is set, and what the device cannot take gets fragmented.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable

from tracer.model.topology import Address
from tracer.topology.netns import in_namespace
from tracer.traffic.answer import Answer, SendFailure
from tracer.traffic.filters import echo
from tracer.traffic.icmp import ERRORS, ICMP_OF, REPLY, Message, parse
from tracer.traffic.payload import pattern
from tracer.traffic.prober import Prober
from tracer.traffic.sockets import Packet, attach_filter, bind_source, check_versions, open_raw, packets, take_icmp


class Pinger(Prober):
    """Echo requests from one namespace to one destination, any number in flight at once.

    `namespace` is a path that setns can enter; `icmp_id` is 16 bits and stays for the run; `size` is the payload
    in bytes. UserError where the socket cannot be had as asked, OSError where the namespace
    is gone. Closes its socket at the end of a `with`.
    """

    def __init__(self, namespace: str, destination: Address, icmp_id: int, *, size: int = 56, ttl: int | None = None,
                 source: Address | None = None) -> None:
        check_versions(source, destination)
        self._payload = pattern(size, destination.version)
        self.destination = destination
        self.icmp_id = icmp_id & 0xFFFF
        self._build = _builder(destination.version)
        self._last = -1  # the highest seq sent so far
        self._buffer = bytearray(1 << 16)
        self._socket, self._target = in_namespace(namespace, lambda: _open(destination, self.icmp_id, source, ttl))

    def close(self) -> None:
        self._socket.close()

    def fileno(self) -> int:
        return self._socket.fileno()

    def send(self, seq: int) -> int | SendFailure:
        """Send one request; on the wire are the lower 16 bits of `seq`. Returns CLOCK_MONOTONIC just before, in ns."""
        message = self._build(self.icmp_id, seq & 0xFFFF, self._payload)
        self._last = max(self._last, seq)
        before = time.monotonic_ns()
        try:
            self._socket.sendto(message, self._target)
        except OSError as error:
            return SendFailure.to(self.destination, error)
        return before

    def receive(self) -> list[Answer]:
        """What has arrived about our requests: the destination's echo replies, and ICMP errors that quote a request."""
        found = map(self._answer, packets(self._socket, self.destination.version, self._buffer))
        return [answer for answer in found if answer]

    def _answer(self, packet: Packet) -> Answer | None:
        message = parse(packet.data, self.destination.version)
        if message is None or not self._is_ours(message, packet.source):
            return None
        # The newest request whose lower 16 bits are these.
        seq = self._last - ((self._last - message.seq) & 0xFFFF)
        if seq < 0:
            return None
        return Answer(seq, "error" if message.quoted_dst else "reply", packet.source, packet.ttl, len(packet.data),
                      packet.monotonic_ns, message.type, message.code)

    def _is_ours(self, message: Message, source: Address) -> bool:
        if message.id != self.icmp_id:
            return False
        about = message.quoted_dst if message.quoted_dst is not None else source.packed
        return about == self.destination.packed or (self.destination.is_multicast and message.quoted_dst is None)


def _open(destination: Address, icmp_id: int, source: Address | None,
          ttl: int | None) -> tuple[socket.socket, tuple[str | int, ...]]:
    """The socket, and the address to send to. Runs inside the namespace."""
    version = destination.version
    opened = open_raw(version, ICMP_OF[version], ttl)
    try:
        take_icmp(opened, version, (REPLY[version], *ERRORS[version]))
        attach_filter(opened, echo(version, icmp_id))
        return opened, bind_source(opened, source, destination)
    except BaseException:
        opened.close()
        raise


def _builder(version: int) -> Callable[[int, int, bytes], bytes]:
    """Builds a request from id, seq and payload. scapy is imported here, once, before there is anything to time."""
    if version == 4:
        from scapy.layers.inet import ICMP

        return lambda id, seq, payload: bytes(ICMP(type="echo-request", id=id, seq=seq) / payload)

    from scapy.layers.inet6 import ICMPv6EchoRequest

    # The checksum takes in the IP addresses: on a raw ICMPv6 socket the kernel always computes it (RFC 3542, 3.1).
    return lambda id, seq, payload: bytes(ICMPv6EchoRequest(id=id, seq=seq, data=payload, cksum=0))
