"""One echo request from inside a namespace, for tests that only ask whether a way is open."""

from __future__ import annotations

import socket
import struct
import time
from ipaddress import ip_address

from tracer.topology.netns import in_namespace

ECHO = b"\0\0\x12\x34\0\1" + b"dnettrace"


def answers(path: str, address: str, seconds: float = 2.0) -> bool:
    """Whether `address` answers within `seconds` when asked from the network namespace at `path`."""
    six = ip_address(address).version == 6

    def ask() -> bool:
        with socket.socket(socket.AF_INET6 if six else socket.AF_INET, socket.SOCK_RAW,
                           socket.IPPROTO_ICMPV6 if six else socket.IPPROTO_ICMP) as raw:
            if six:  # the kernel fills in the checksum of ICMPv6 only
                raw.sendto(b"\x80\0" + ECHO, (address, 0))
            else:
                message = b"\x08\0" + ECHO
                raw.sendto(message[:2] + checksum(message) + message[4:], (address, 0))
            end = time.monotonic() + seconds
            while (left := end - time.monotonic()) > 0:
                raw.settimeout(left)
                try:
                    packet = raw.recv(2048)
                except TimeoutError:
                    break
                body = packet if six else packet[20:]
                if body[:1] == (b"\x81" if six else b"\0") and body[4:] == ECHO[2:]:
                    return True
        return False

    return in_namespace(path, ask)


def checksum(data: bytes) -> bytes:
    total = sum(struct.unpack(f"!{(len(data) + 1) // 2}H", data + b"\0" * (len(data) % 2)))
    total = (total >> 16) + (total & 0xFFFF)
    return struct.pack("!H", ~(total + (total >> 16)) & 0xFFFF)
