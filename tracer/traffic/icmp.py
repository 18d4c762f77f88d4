"""Reads ICMP and ICMPv6 messages as a raw IP socket gives them: echo replies, and errors about any packet.

By hand and not by scapy: it is on the way of every packet that arrives, and a dissection costs 88 µs.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

ICMP, ICMPV6, FRAGMENT = 1, 58, 44  # IP protocol numbers, next headers
ICMP_OF = {4: ICMP, 6: ICMPV6}
REQUEST = {4: 8, 6: 128}
REPLY = {4: 0, 6: 129}
# Those that say that the packet went no further; a redirect does not.
ERRORS = {4: (3, 11, 12), 6: (1, 2, 3, 4)}
_EXTENSIONS = (0, 43, 60, 135)  # hop-by-hop, routing, destination options, mobility: length in units of 8 bytes


@dataclass(frozen=True, slots=True)
class Message:
    type: int
    code: int
    id: int
    seq: int  # 16 bits
    quoted_dst: bytes | None  # packed destination of the request that an error is about; None in a reply


@dataclass(frozen=True, slots=True)
class Error:
    """About a packet that it quotes the beginning of."""

    type: int
    code: int
    protocol: int  # the quoted packet's; for IPv6, what follows its extension headers
    destination: bytes  # packed
    head: bytes  # from its transport header on; anything from nothing to all of it


def without_ip_header(packet: bytes) -> tuple[int | None, bytes]:
    """The TTL and the payload of an IPv4 packet."""
    if len(packet) < 20:
        return None, b""
    return packet[8], packet[(packet[0] & 0xF) * 4:]


def parse(data: bytes, version: int) -> Message | None:
    """None for what is neither an echo reply nor an error that quotes an echo request, and for what is broken."""
    try:
        if data[0] == REPLY[version] and not (version == 4 and _checksum(data)):
            ident, seq = struct.unpack_from("!HH", data, 4)
            return Message(data[0], data[1], ident, seq, None)
        error = parse_error(data, version)
        if error and error.protocol == ICMP_OF[version] and error.head[0] == REQUEST[version]:
            ident, seq = struct.unpack_from("!HH", error.head, 4)
            return Message(error.type, error.code, ident, seq, error.destination)
    except (IndexError, struct.error):  # shorter than it must be
        pass
    return None


def parse_error(data: bytes, version: int) -> Error | None:
    """None for what is no error, for one that does not quote the beginning of a packet, and for what is broken."""
    try:
        # The raw socket gets ICMPv4 before its checksum is looked at; for ICMPv6 the kernel has done so.
        if data[0] not in ERRORS[version] or (version == 4 and _checksum(data)):
            return None
        quoted = _quoted_v4(data[8:]) if version == 4 else _quoted_v6(data[8:])
        return Error(data[0], data[1], *quoted) if quoted else None
    except (IndexError, struct.error):
        return None


def _quoted_v4(packet: bytes) -> tuple[int, bytes, bytes] | None:
    """Protocol, destination and transport header of the packet that this begins with."""
    if struct.unpack_from("!H", packet, 6)[0] & 0x1FFF:  # not the first fragment: no transport header in it
        return None
    return packet[9], packet[16:20], packet[(packet[0] & 0xF) * 4:]


def _quoted_v6(packet: bytes) -> tuple[int, bytes, bytes] | None:
    following, at = packet[6], 40
    while following in _EXTENSIONS or following == FRAGMENT:
        if following == FRAGMENT:
            if struct.unpack_from("!H", packet, at + 2)[0] & 0xFFF8:
                return None
            size = 8
        else:
            size = (packet[at + 1] + 1) * 8
        following, at = packet[at], at + size
    return following, packet[24:40], packet[at:]


def _checksum(data: bytes) -> int:
    """0 where the message holds its own checksum (RFC 1071)."""
    if len(data) % 2:
        data += b"\0"
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total ^ 0xFFFF
