"""Classic BPF socket filters: the kernel keeps from a raw socket what is none of ours, however busy the namespace is.

What the kernel drops here is a copy that was made for this socket alone. Offsets are from where the kernel lets the filter
begin: the IP header for a raw IPv4 socket, the transport header for a raw IPv6 socket, the link's header for a packet
socket. A load beyond the packet's end rejects the packet.
"""

from __future__ import annotations

import struct

from tracer.model.selection import PORTS
from tracer.traffic.icmp import ICMP, ICMPV6, REPLY

# include/uapi/linux/bpf_common.h: LD | size | mode and so on, spelled out.
_LD_W, _LD_H, _LD_B = 0x20, 0x28, 0x30  # A = packet[k]
_LD_H_X, _LD_B_X = 0x48, 0x50  # A = packet[X + k]
_LDX_HEADER = 0xB1  # X = 4 * (packet[k] & 15)
_AND, _LSH, _ADD_X, _TAX = 0x54, 0x64, 0x0C, 0x07
_JEQ, _RET = 0x15, 0x06
_WHOLE = 0x40000  # bytes to keep of an accepted packet
_BLOCK = 0xFFFF & ~(PORTS - 1)

_Row = tuple[int, int, int, int]  # code, jump if true, jump if false, k


def echo(version: int, icmp_id: int) -> bytes:
    """Echo replies with this identifier, and everything that is no echo reply: the socket's own filter of types leaves
    errors only. Without it, another program's flood of pings in the namespace would fill the socket's buffer."""
    header = [(_LDX_HEADER, 0, 0, 0)] if version == 4 else []  # X is 0 at first
    return _program([
        *header,
        (_LD_B_X, 0, 0, 0),  # type
        (_JEQ, 0, 2, REPLY[version]),
        (_LD_H_X, 0, 0, 4),  # identifier
        (_JEQ, 0, 1, icmp_id),
        (_RET, 0, 0, _WHOLE),
        (_RET, 0, 0, 0),
    ])


def ports(version: int, base_port: int) -> bytes:
    """Segments or datagrams to one of the block's ports. From one as well: the probes that we send to ourselves; what
    would be rejected of these is a drop that a trace shows."""
    header = [(_LDX_HEADER, 0, 0, 0)] if version == 4 else []  # X is 0 at first
    return _program([
        *header,
        (_LD_H_X, 0, 0, 2),  # destination port
        (_AND, 0, 0, _BLOCK),
        (_JEQ, 3, 0, base_port),
        (_LD_H_X, 0, 0, 0),  # source port
        (_AND, 0, 0, _BLOCK),
        (_JEQ, 0, 1, base_port),
        (_RET, 0, 0, _WHOLE),
        (_RET, 0, 0, 0),
    ])


def errors(version: int, protocol: int, base_port: int) -> bytes:
    """ICMP errors that quote a packet of `protocol` from one of the block's ports. With IPv6, those with extension headers
    pass: they are few, and no filter can walk them."""
    if version == 4:
        return _program([
            (_LDX_HEADER, 0, 0, 0),
            (_LD_B_X, 0, 0, 8 + 9),  # the quoted packet's protocol
            (_JEQ, 0, 9, protocol),
            (_LD_B_X, 0, 0, 8),  # its header's length, past the ICMP header
            (_AND, 0, 0, 0xF),
            (_LSH, 0, 0, 2),
            (_ADD_X, 0, 0, 0),
            (_TAX, 0, 0, 0),
            (_LD_H_X, 0, 0, 8),  # its source port
            (_AND, 0, 0, _BLOCK),
            (_JEQ, 0, 1, base_port),
            (_RET, 0, 0, _WHOLE),
            (_RET, 0, 0, 0),
        ])
    others = [kind for kind in (ICMP, 6, 17, ICMPV6) if kind != protocol]
    return _program([
        (_LD_B, 0, 0, 8 + 6),  # the quoted packet's next header
        (_JEQ, len(others) + 1, 0, protocol),
        *((_JEQ, 4 + len(others) - at, 0, kind) for at, kind in enumerate(others)),
        (_RET, 0, 0, _WHOLE),
        (_LD_H, 0, 0, 8 + 40),
        (_AND, 0, 0, _BLOCK),
        (_JEQ, 0, 1, base_port),
        (_RET, 0, 0, _WHOLE),
        (_RET, 0, 0, 0),
    ])


def arp_replies(sender: bytes) -> bytes:
    """On an Ethernet packet socket for ARP: replies of the neighbour with this packed IPv4 address."""
    return _program([
        (_LD_H, 0, 0, 14 + 6),  # operation
        (_JEQ, 0, 3, 2),
        (_LD_W, 0, 0, 14 + 14),  # the sender's protocol address
        (_JEQ, 0, 1, int.from_bytes(sender, "big")),
        (_RET, 0, 0, _WHOLE),
        (_RET, 0, 0, 0),
    ])


def _program(rows: list[_Row]) -> bytes:
    return b"".join(struct.pack("=HBBI", *row) for row in rows)
