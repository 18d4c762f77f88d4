"""ICMP and ICMPv6 echo requests, sent as any program of the namespace would send them.

The socket is a raw IP socket that was opened inside the source's namespace, so that the kernel itself looks up the
route, resolves the neighbour and passes the OUTPUT hooks. scapy builds the ICMP message, the kernel the IP header. As
with ping, path MTU discovery is left at its default: DF is set, and what the device cannot take gets fragmented.
"""

from __future__ import annotations

import socket
import struct
import sys
import time
from collections.abc import Callable
from ipaddress import ip_address
from types import TracebackType

from tracer.errors import UserError
from tracer.model.topology import Address
from tracer.topology.netns import in_namespace
from tracer.traffic.answer import Answer, SendFailure
from tracer.traffic.icmp import ERRORS, REPLY, Message, parse, without_ip_header

MAX_PAYLOAD = {4: 65535 - 20 - 8, 6: 65535 - 8}  # bytes, by IP version
_PATTERN = b"dnettrace"
_DRAIN = 512  # packets taken by one receive() at most, so that a flood cannot keep the caller from its other work

# include/uapi/linux/icmp.h, icmpv6.h: a set bit in the filter keeps the type away from the socket.
_SOL_RAW, _ICMP_FILTER, _ICMPV6_FILTER = 255, 1, 1
# asm-generic/socket.h: with 64-bit seconds on every architecture (Linux 5.1). The control message has the same number.
_SO_TIMESTAMPNS_NEW = 64


class Pinger:
    """Echo requests from one namespace to one destination, any number in flight at once.

    `namespace` is a path that setns can enter; `icmp_id` is 16 bits and stays for the run; `size` is the payload
    in bytes. UserError where the socket cannot be had as asked, OSError where the namespace
    is gone. Closes its socket at the end of a `with`.
    """

    def __init__(self, namespace: str, destination: Address, icmp_id: int, *, size: int = 56, ttl: int | None = None,
                 source: Address | None = None) -> None:
        version = destination.version
        if not 0 <= size <= MAX_PAYLOAD[version]:
            raise UserError(f"A payload of {size} bytes does not fit an IPv{version} packet: "
                            f"give 0 to {MAX_PAYLOAD[version]} bytes.")
        if source is not None and source.version != version:
            raise UserError(f"{source} and {destination} are of different IP versions: give both of one.")
        self.destination = destination
        self.icmp_id = icmp_id & 0xFFFF
        self._payload = (_PATTERN * (size // len(_PATTERN) + 1))[:size]
        self._build = _builder(version)
        self._last = -1  # the highest seq sent so far
        self._buffer = bytearray(1 << 16)
        self._socket, self._target = in_namespace(namespace, lambda: _open(destination, source, ttl))

    def __enter__(self) -> Pinger:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()

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
        answers = []
        for _ in range(_DRAIN):
            try:
                size, ancillary, _flags, sender = self._socket.recvmsg_into([self._buffer], 256)
            except BlockingIOError:
                break
            answer = self._answer(bytes(self._buffer[:size]), ancillary, sender[0])
            if answer:
                answers.append(answer)
        return answers

    def _answer(self, data: bytes, ancillary: list[tuple[int, int, bytes]], sender: str) -> Answer | None:
        ttl, at = _control(ancillary)
        if self.destination.version == 4:
            ttl, data = without_ip_header(data)
        message = parse(data, self.destination.version)
        if message is None or not self._is_ours(message, source := _address(sender)):
            return None
        # The newest request whose lower 16 bits are these.
        seq = self._last - ((self._last - message.seq) & 0xFFFF)
        if seq < 0:
            return None
        return Answer(seq, "error" if message.quoted_dst else "reply", source, ttl, len(data), at, message.type,
                      message.code)

    def _is_ours(self, message: Message, source: Address) -> bool:
        if message.id != self.icmp_id:
            return False
        about = message.quoted_dst if message.quoted_dst is not None else source.packed
        return about == self.destination.packed or (self.destination.is_multicast and message.quoted_dst is None)


def _open(destination: Address, source: Address | None, ttl: int | None) -> tuple[socket.socket, tuple[str | int, ...]]:
    """The socket, and the address to send to. Runs inside the namespace."""
    version = destination.version
    try:
        opened = _socket_v4(ttl) if version == 4 else _socket_v6(ttl)
    except PermissionError:
        raise UserError("Sending test packets needs root (CAP_NET_RAW): run it with sudo.") from None
    try:
        opened.setblocking(False)
        opened.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS_NEW, 1)
        if source is not None:
            opened.bind(_sockaddr(source))
        return opened, _sockaddr(destination)
    except OSError as error:
        opened.close()
        about = source if source is not None else destination
        raise UserError(f"The sender cannot use the address {about} ({error.strerror or error}): "
                        "`ip address` in its namespace shows the ones it has.") from None


def _socket_v4(ttl: int | None) -> socket.socket:
    opened = socket.socket(socket.AF_INET, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.IPPROTO_ICMP)
    wanted = sum(1 << kind for kind in (REPLY[4], *ERRORS[4]))
    opened.setsockopt(_SOL_RAW, _ICMP_FILTER, struct.pack("=I", ~wanted & 0xFFFFFFFF))
    if ttl is not None:
        opened.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, ttl)
        opened.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, ttl)
    return opened


def _socket_v6(ttl: int | None) -> socket.socket:
    opened = socket.socket(socket.AF_INET6, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.IPPROTO_ICMPV6)
    blocked = [0xFFFFFFFF] * 8
    for kind in (REPLY[6], *ERRORS[6]):
        blocked[kind >> 5] &= ~(1 << (kind & 31))
    opened.setsockopt(socket.IPPROTO_ICMPV6, _ICMPV6_FILTER, struct.pack("=8I", *blocked))
    opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVHOPLIMIT, 1)
    if ttl is not None:
        opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, ttl)
        opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, ttl)
    return opened


def _sockaddr(address: Address) -> tuple[str | int, ...]:
    """For bind() and sendto(). A zone (fe80::1%eth0) is looked up in the namespace of the calling thread."""
    if address.version == 4:
        return str(address), 0
    zone = address.scope_id
    scope = 0 if zone is None else int(zone) if zone.isdecimal() else socket.if_nametoindex(zone)
    return str(address).partition("%")[0], 0, 0, scope


def _builder(version: int) -> Callable[[int, int, bytes], bytes]:
    """Builds a request from id, seq and payload. scapy is imported here, once, before there is anything to time."""
    if version == 4:
        from scapy.layers.inet import ICMP

        return lambda id, seq, payload: bytes(ICMP(type="echo-request", id=id, seq=seq) / payload)

    from scapy.layers.inet6 import ICMPv6EchoRequest

    # The checksum takes in the IP addresses: on a raw ICMPv6 socket the kernel always computes it (RFC 3542, 3.1).
    return lambda id, seq, payload: bytes(ICMPv6EchoRequest(id=id, seq=seq, data=payload, cksum=0))


def _control(ancillary: list[tuple[int, int, bytes]]) -> tuple[int | None, int]:
    """Hop limit (IPv6 only) and the time of arrival by CLOCK_MONOTONIC, ns, out of the control messages."""
    hop_limit = None
    now = at = time.monotonic_ns()
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == _SO_TIMESTAMPNS_NEW:
            seconds, nanoseconds = struct.unpack("=qq", data)
            # The kernel stamps by the wall clock. If that was set back meanwhile, the stamp lies ahead: worthless.
            at = min(now, seconds * 1_000_000_000 + nanoseconds - time.time_ns() + now)
        elif level == socket.IPPROTO_IPV6 and kind == socket.IPV6_HOPLIMIT:
            hop_limit = int.from_bytes(data, sys.byteorder)
    return hop_limit, at


def _address(sender: str) -> Address:
    return ip_address(sender.partition("%")[0])
