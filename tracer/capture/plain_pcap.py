"""A trace file as one in which each packet is once, for tools that take the frames of several places for duplicates."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import BinaryIO

from tracer.capture import pcapng
from tracer.capture.pcapng import Block, Malformed
from tracer.errors import UserError

MAGIC_NS = 0xA1B23C4D  # pcap with nanoseconds
SNAPLEN = 262144
PLACES = 1 << 16


def write(source: BinaryIO, path: str, target: BinaryIO, at: str | None) -> int:
    """Frames of the place `at`, an interface's name ("c1/eth0 egress"), or of where each packet was first seen. Returns
    their number. UserError where no such place is there."""
    target.write(struct.pack("=IHHiIII", MAGIC_NS, 2, 4, 0, 0, SNAPLEN, pcapng.ETHERNET))
    names: list[str] = []
    count = 0
    try:
        for record in _records(pcapng.blocks(source), path, at, names):
            target.write(record)
            count += 1
    except Malformed as error:
        if not names:
            raise UserError(f"{path} is no pcapng file: {error}.") from None
    if at is not None and at not in names:
        there = ", ".join(repr(name) for name in names[1:9])
        raise UserError(f"{path} has no place {at!r}: it has {there}{', ...' if len(names) > 9 else ''}.")
    return count


def _records(blocks: Iterator[Block], path: str, at: str | None, names: list[str]) -> Iterator[bytes]:
    """The chosen frames as pcap has them. `names` gets those of the interfaces."""
    highest = 0
    for block in blocks:
        if block.kind == pcapng.INTERFACE:
            names.append(_name(block))
            if len(names) > PLACES:
                raise UserError(f"{path} has more than {PLACES} places.")
        elif block.kind == pcapng.PACKET:
            number, time, frame, options = pcapng.read_packet(block)
            if at is None:
                (packet,) = [int.from_bytes(value, "little" if block.order == "<" else "big") for code, value in options
                             if code == pcapng.PACKET_ID][:1] or [0]
                if packet <= highest:  # numbers are given in the order of first sight
                    continue
                highest = packet
            elif number >= len(names) or names[number] != at:
                continue
            (original,) = struct.unpack_from(f"{block.order}I", block.body, 16)
            yield struct.pack("=IIII", time // 10**9 & 0xFFFFFFFF, time % 10**9, len(frame), original) + frame


def _name(block: Block) -> str:
    return next((value.decode(errors="replace") for code, value in pcapng.read_options(block, 8)
                 if code == pcapng.INTERFACE_NAME), "")
