"""Raw IP sockets as every kind of probe needs them: opened, their options, and what arrives at them."""

from __future__ import annotations

import ctypes
import errno
import socket
import struct
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any

from tracer.errors import UserError
from tracer.model.topology import Address
from tracer.traffic.icmp import without_ip_header

FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}
# Packets taken by one receive() at most, so that a flood cannot keep the caller from its other work.
_DRAIN = 512

# include/uapi/linux/icmp.h, icmpv6.h: a set bit in the filter keeps the type away from the socket.
_SOL_RAW, _ICMP_FILTER, _ICMPV6_FILTER = 255, 1, 1
# asm-generic/socket.h: with 64-bit seconds on every architecture (Linux 5.1). The control message has the same number.
_SO_TIMESTAMPNS_NEW = 64
_SO_ATTACH_FILTER = 26


@dataclass(frozen=True, slots=True)
class Packet:
    """What a raw IP socket got."""

    data: bytes  # from the transport header on
    source: Address
    ttl: int | None  # or hop limit
    monotonic_ns: int  # CLOCK_MONOTONIC at arrival


def open_raw(version: int, protocol: int, ttl: int | None = None) -> socket.socket:
    """A raw IP socket in the namespace of the calling thread, which does not block and stamps what arrives."""
    try:
        opened = socket.socket(FAMILY[version], socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
    except PermissionError:
        raise no_root() from None
    opened.setblocking(False)
    stamp(opened)
    if version == 4:
        level, options = socket.IPPROTO_IP, (socket.IP_TTL, socket.IP_MULTICAST_TTL)
    else:
        level, options = socket.IPPROTO_IPV6, (socket.IPV6_UNICAST_HOPS, socket.IPV6_MULTICAST_HOPS)
        opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVHOPLIMIT, 1)
    if ttl is not None:
        for option in options:
            opened.setsockopt(level, option, ttl)
    return opened


def no_root() -> UserError:
    return UserError("Sending test packets needs root (CAP_NET_RAW): run it with sudo.")


def stamp(opened: socket.socket) -> None:
    """The kernel notes the time at which a packet arrived."""
    opened.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS_NEW, 1)


def take_icmp(opened: socket.socket, version: int, types: Iterable[int]) -> None:
    """Nothing but these types reaches the raw ICMP socket."""
    if version == 4:
        wanted = sum(1 << kind for kind in set(types))
        opened.setsockopt(_SOL_RAW, _ICMP_FILTER, struct.pack("=I", ~wanted & 0xFFFFFFFF))
        return
    blocked = [0xFFFFFFFF] * 8
    for kind in types:
        blocked[kind >> 5] &= ~(1 << (kind & 31))
    opened.setsockopt(socket.IPPROTO_ICMPV6, _ICMPV6_FILTER, struct.pack("=8I", *blocked))


def attach_filter(opened: socket.socket, program: bytes) -> None:
    """Nothing but what the classic BPF program accepts reaches the socket. `program`: struct sock_filter, 8 bytes each."""
    held = ctypes.create_string_buffer(program, len(program))
    opened.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER,
                      struct.pack("@HP", len(program) // 8, ctypes.addressof(held)))  # struct sock_fprog


def bind_source(opened: socket.socket, source: Address | None, destination: Address) -> tuple[str | int, ...]:
    """Binds to `source` if there is one, and returns the address to send to. Runs inside the namespace."""
    try:
        if source is not None:
            opened.bind(sockaddr(source, destination))
        return sockaddr(destination)
    except OSError as error:
        about = source if source is not None else destination
        raise UserError(f"The sender cannot use the address {about} ({error.strerror or error}): "
                        "`ip address` in its namespace shows the ones it has.") from None


def check_versions(source: Address | None, destination: Address) -> None:
    if source is not None and source.version != destination.version:
        raise UserError(f"{source} and {destination} are of different IP versions: give both of one.")


def sockaddr(address: Address, peer: Address | None = None) -> tuple[str | int, ...]:
    """For bind() and sendto(). A zone (fe80::1%eth0) is looked up in the namespace of the calling thread; a link-local
    address without one is in its peer's."""
    if address.version == 4:
        return str(address), 0
    zone = address.scope_id
    if zone is None and address.is_link_local and peer is not None and peer.version == 6:
        zone = peer.scope_id
    scope = 0 if zone is None else int(zone) if zone.isdecimal() else socket.if_nametoindex(zone)
    return str(address).partition("%")[0], 0, 0, scope


def source_towards(destination: Address) -> Address:
    """The source that the kernel chooses in the namespace of the calling thread. OSError where there is no way."""
    with socket.socket(FAMILY[destination.version], socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as asking:
        target = sockaddr(destination)
        asking.connect((target[0], 9, *target[2:]))  # sends nothing; port 0 would be refused by some kernels
        return _address(asking.getsockname()[0])


def messages(opened: socket.socket, buffer: bytearray) -> Iterator[tuple[bytes, list[tuple[int, int, bytes]], Any]]:
    """What waits at the socket: data, control messages, sender."""
    for _ in range(_DRAIN):
        try:
            size, ancillary, _flags, sender = opened.recvmsg_into([buffer], 256)
        except BlockingIOError:
            return
        except OSError as error:
            if error.errno == errno.ENETDOWN:  # told once to a packet socket whose device went down
                continue
            raise
        yield bytes(buffer[:size]), ancillary, sender


def packets(opened: socket.socket, version: int, buffer: bytearray) -> Iterator[Packet]:
    """What waits at a raw IP socket."""
    for data, ancillary, sender in messages(opened, buffer):
        ttl, at = arrival(ancillary)
        if version == 4:
            ttl, data = without_ip_header(data)
        yield Packet(data, _address(sender[0]), ttl, at)


def arrival(ancillary: list[tuple[int, int, bytes]]) -> tuple[int | None, int]:
    """Hop limit (IPv6 only) and the time of arrival by CLOCK_MONOTONIC, ns, out of the control messages."""
    hop_limit = None
    at = time.monotonic_ns()
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == _SO_TIMESTAMPNS_NEW:
            seconds, nanoseconds = struct.unpack("=qq", data)
            # The kernel stamps by the wall clock. If that was set back meanwhile, the stamp lies ahead: worthless. That is
            # read first: a pause between the two makes an arrival late, not earlier than what it answers.
            wall, now = time.time_ns(), time.monotonic_ns()
            at = min(now, seconds * 1_000_000_000 + nanoseconds - wall + now)
        elif level == socket.IPPROTO_IPV6 and kind == socket.IPV6_HOPLIMIT:
            hop_limit = int.from_bytes(data, sys.byteorder)
    return hop_limit, at


def _address(sender: str) -> Address:
    return ip_address(sender.partition("%")[0])
