"""The few blocks of pcapng that a trace file needs, written and read (draft-ietf-opsawg-pcapng).

What is read may be anybody's bytes: no block is longer than BLOCK_BYTES, nothing is kept but the block at hand, and every
length is checked against what it lies in. A file that breaks the format is a Malformed with the place.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator
from typing import BinaryIO, NamedTuple

SECTION, INTERFACE, SIMPLE_PACKET, STATISTICS, PACKET = 0x0A0D0D0A, 1, 3, 5, 6
OLD_PACKET = 2  # of drafts before 2009
BYTE_ORDER = 0x1A2B3C4D
BLOCK_BYTES = 1 << 24  # as libpcap and Wireshark have it
READ_BYTES = 1 << 18

END, COMMENT, CUSTOM = 0, 1, 19373  # CUSTOM: bytes, and not to be copied by who does not know them
SECTION_OS, SECTION_APPLICATION = 3, 4
INTERFACE_NAME, INTERFACE_DESCRIPTION, TIME_RESOLUTION = 2, 3, 9
PACKET_FLAGS, PACKET_ID = 2, 5
STATISTICS_DROPPED = 5  # isb_ifdrop
OPTION_BYTES = 0xFFFF
ETHERNET = 1  # LINKTYPE_ETHERNET

_HEAD = struct.Struct("=II")
_TAIL = struct.Struct("=I")
_OPTION = struct.Struct("=HH")
_PADDING = (b"", bytes(3), bytes(2), bytes(1))  # behind a length, by its remainder
_PACKET = struct.Struct("=IIIIIII")  # type, block's length, interface, time (high, low), captured, original

Option = tuple[int, bytes]


class Malformed(Exception):
    """The bytes are no pcapng from here on: one sentence."""


class Block(NamedTuple):
    """`body`: without type, lengths, and with its padding. `order`: "<" or ">", as the section has it."""

    kind: int
    body: bytes
    at: int  # offset in the file
    order: str


def options(found: Iterable[Option]) -> bytes:
    """Values of at most OPTION_BYTES."""
    parts: list[bytes] = []
    for code, value in found:
        parts += _OPTION.pack(code, len(value)), value, _PADDING[len(value) & 3]
    return b"".join(parts) + bytes(4) if parts else b""


def block(kind: int, body: bytes) -> bytes:
    """Of this machine's byte order; `body` is padded to a multiple of 4."""
    length = len(body) + 12
    return b"".join((_HEAD.pack(kind, length), body, struct.pack("=I", length)))


def section(found: Iterable[Option]) -> bytes:
    return block(SECTION, struct.pack("=IHHq", BYTE_ORDER, 1, 0, -1) + options(found))


def interface(name: str, found: Iterable[Option] = ()) -> bytes:
    """Of Ethernet frames with times in nanoseconds. libpcap takes no file whose interfaces differ in link type or snapshot
    length (0: none)."""
    return block(INTERFACE, struct.pack("=HHI", ETHERNET, 0, 0) + options(
        [(INTERFACE_NAME, name.encode(errors="replace")[:OPTION_BYTES]), (TIME_RESOLUTION, b"\x09"), *found]))


def packet(number: int, time: int, data: bytes, original: int, found: Iterable[Option]) -> bytes:
    """Seen at interface `number`; `time`: ns since the epoch; `original`: its length on the wire, of which `data` is the
    beginning."""
    tail = options(found)
    padding = -len(data) % 4
    length = 32 + len(data) + padding + len(tail)
    return b"".join((_PACKET.pack(PACKET, length, number, time >> 32 & 0xFFFFFFFF, time & 0xFFFFFFFF, len(data), original),
                     data, bytes(padding), tail, struct.pack("=I", length)))


def statistics(number: int, time: int, found: Iterable[Option]) -> bytes:
    return block(STATISTICS, struct.pack("=III", number, time >> 32 & 0xFFFFFFFF, time & 0xFFFFFFFF) + options(found))


def blocks(stream: BinaryIO, more: Callable[[], bool] = lambda: False,
           take: Callable[[bytes, int], int] = lambda _buffer, start: start) -> Iterator[Block]:
    """The blocks of a file, from its first one on. Where the file ends, `more` says whether to look again for what may
    have been appended: a block is handed out when all of it is there. Those that `take` takes are not: it is told where in
    a buffer a block begins, and says where the first one begins that it leaves.

    Malformed where it is no pcapng, or is cut within a block.
    """
    buffer, start, at = b"", 0, 0  # the block at hand begins at buffer[start], and in the file at `at`
    order, head, tail = "", _HEAD.unpack_from, _TAIL.unpack_from
    while True:
        taken = take(buffer, start)
        at += taken - start
        start, need = taken, 12
        if (here := len(buffer) - start) >= need:
            kind, need = head(buffer, start)
            if kind == SECTION:  # reads the same in either byte order
                order = _byte_order(buffer, start)
                head, tail = struct.Struct(f"{order}II").unpack_from, struct.Struct(f"{order}I").unpack_from
                kind, need = head(buffer, start)
            elif not order:
                raise Malformed("it does not begin as pcapng does")
            if need & 3 or not 12 <= need <= BLOCK_BYTES:
                raise Malformed(f"the block at byte {at} says that it has {need} bytes")
        if here < need:
            if new := stream.read(READ_BYTES):
                buffer, start = buffer[start:] + new, 0
            elif not more():
                if here:
                    raise Malformed(f"it is cut at byte {at + here}, within a block")
                return
            continue
        end = start + need
        if tail(buffer, end - 4)[0] != need:
            raise Malformed(f"the block at byte {at} has two lengths")
        yield Block(kind, buffer[start + 8:end - 4], at, order)
        start = end
        at += need


def _byte_order(buffer: bytes, start: int) -> str:
    for order in "<>":
        if struct.unpack_from(f"{order}I", buffer, start + 8)[0] == BYTE_ORDER:
            return order
    raise Malformed("its byte order is unknown")


def read_options(found: Block, at: int) -> Iterator[Option]:
    """The options of a block, which begin behind the first `at` bytes of its body."""
    body, order = found.body, found.order
    while at + 4 <= len(body):
        code, length = struct.unpack_from(f"{order}HH", body, at)
        if code == END:
            return
        if at + 4 + length > len(body):
            raise Malformed(f"an option of the block at byte {found.at} is longer than the block")
        yield code, body[at + 4:at + 4 + length]
        at += 4 + length + -length % 4


def read_packet(found: Block) -> tuple[int, int, bytes, Iterator[Option]]:
    """(interface, time in its unit, data, options) of a PACKET."""
    if len(found.body) < 20:
        raise Malformed(f"the packet at byte {found.at} is too short")
    number, high, low, captured = struct.unpack_from(f"{found.order}IIII", found.body)
    end = 20 + captured + -captured % 4
    if end > len(found.body):
        raise Malformed(f"the packet at byte {found.at} is longer than its block")
    return number, high << 32 | low, found.body[20:20 + captured], read_options(found, end)
