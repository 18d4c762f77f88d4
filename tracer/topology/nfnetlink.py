"""Just enough of nfnetlink for nftables: a socket, attributes packed and unpacked, batches and dumps.

pyroute2 has the same in classes that take a second to decode 10,000 rules, and an event loop for each socket.
Numbers are those of include/uapi/linux/netfilter/{nfnetlink,nf_tables}.h.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator, Sequence

NETLINK_NETFILTER = 12
SUBSYSTEM = 10  # NFNL_SUBSYS_NFTABLES
BATCH_BEGIN, BATCH_END = 16, 17
NEWTABLE, GETTABLE, DELTABLE, NEWCHAIN, GETCHAIN, NEWRULE, GETRULE, TRACE = 0, 1, 2, 3, 4, 6, 7, 17  # NFT_MSG_*
ERROR, DONE = 2, 3
REQUEST, ACK, DUMP, CREATE = 1, 4, 0x300, 0x400  # NLM_F_*
FAMILIES = {1: "inet", 2: "ip", 3: "arp", 5: "netdev", 7: "bridge", 10: "ip6"}  # NFPROTO_*
NUMBERS = {name: number for number, name in FAMILIES.items()}
_HEADER = struct.Struct("=IHHII")
_NFGEN = struct.Struct(">BBH")
_BYTES = 1 << 20


def attribute(kind: int, *parts: bytes) -> bytes:
    """One attribute: of bytes, or nested of others."""
    data = b"".join(parts)
    return struct.pack("=HH", len(data) + 4, kind) + data + bytes(-len(data) % 4)


def nested(kind: int, *parts: bytes) -> bytes:
    return attribute(kind | 0x8000, *parts)


def text(kind: int, value: str) -> bytes:
    return attribute(kind, value.encode() + b"\0")


def number(kind: int, value: int) -> bytes:
    return attribute(kind, struct.pack(">I", value & 0xFFFFFFFF))


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + 4 <= len(data):
        size, kind = struct.unpack_from("=HH", data, at)
        if size < 4:
            break
        yield kind & 0x3FFF, data[at + 4:at + size]
        at += size + 3 & ~3


def unpack(data: bytes) -> dict[int, bytes]:
    """Attributes by kind; of several of one kind the last."""
    return dict(_attributes(data))


def every(data: bytes) -> list[bytes]:
    """The items of a list, which all have one kind."""
    return [value for _kind, value in _attributes(data)]


def word(data: bytes | None) -> str:
    return (data or b"").rstrip(b"\0").decode(errors="replace")


def messages(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """(type, family, payload) of each message of a datagram; errors and ends have family 0."""
    at = 0
    while at + 16 <= len(data):
        size, kind = struct.unpack_from("=IH", data, at)
        if size < 16:
            break
        body = data[at + 16:at + size]
        yield (kind, 0, body) if kind < 16 or len(body) < 4 else (kind, body[0], body[4:])
        at += size + 3 & ~3


class Connection:
    """A socket in the calling thread's network namespace, where it stays. A table with an owner lives as long as it."""

    def __init__(self) -> None:
        self.socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_NETFILTER)
        self._sequence = 1
        try:
            self.socket.bind((0, 0))
            self.socket.settimeout(5)
        except OSError:
            self.socket.close()
            raise

    def close(self) -> None:
        self.socket.close()

    def commit(self, requests: Sequence[tuple[int, str, bytes]]) -> None:
        """Do all of these (message, family, attributes) or none; OSError says why not."""
        begin = self._message(BATCH_BEGIN, REQUEST, 0, b"", SUBSYSTEM)
        begun = self._sequence
        parts = [begin]
        for at, (kind, family, data) in enumerate(requests, 1):
            # older kernels acknowledge no batch's end, but each request that asks for it, when the batch is done
            flags = REQUEST | CREATE | (ACK if at == len(requests) else 0)
            parts.append(self._message(SUBSYSTEM << 8 | kind, flags, NUMBERS[family], data))
        last = self._sequence
        self.socket.send(b"".join((*parts, self._message(BATCH_END, REQUEST, 0, b"", SUBSYSTEM))))
        failed = None
        while True:
            for kind, _family, body in messages(self.socket.recv(_BYTES)):
                if kind != ERROR:
                    continue
                failed = failed or _error(body)  # of several requests that fail, the first
                if struct.unpack_from("=I", body, 12)[0] in (begun, last):  # the batch as a whole, or its last request
                    if failed:
                        raise failed
                    return

    def dump(self, kind: int, family: str, data: bytes = b"") -> list[tuple[str, dict[int, bytes]]]:
        """(family, attributes) of every object of this kind. OSError if they may not be read."""
        self.socket.send(self._message(SUBSYSTEM << 8 | kind, REQUEST | DUMP, NUMBERS.get(family, 0), data))
        found: list[tuple[str, dict[int, bytes]]] = []
        while True:
            for what, number_, body in messages(self.socket.recv(_BYTES)):
                if what == ERROR and (error := _error(body)):
                    raise error
                if what in (DONE, ERROR):
                    return found
                found.append((FAMILIES.get(number_, ""), unpack(body)))

    def _message(self, kind: int, flags: int, family: int, data: bytes, resource: int = 0) -> bytes:
        self._sequence += 1
        return _HEADER.pack(20 + len(data), kind, flags, self._sequence, 0) + _NFGEN.pack(family, 0, resource) + data


def _error(body: bytes) -> OSError | None:
    code = -struct.unpack_from("=i", body)[0]
    return OSError(code, os.strerror(code)) if code else None
