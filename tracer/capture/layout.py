"""How a run lies in pcapng.

What dnettrace alone knows is in custom options: other programs pass over them without a word, while a custom block would be
a frame to Wireshark and shift the numbers of all others. An option's value is PEN, MARK, a letter, and:

  F  in the section header: the format's version, as 4 bytes
  I  an item (`tracer/model/run.py`) as JSON, ["NAME", {members}]; bytes that do not begin with `[` are compressed (zlib).
     Of Machine and Know only the members that changed. i: the first parts of one that is longer than an option. The first
     one is Begin or LiveBegin
  E  the event that the frame is of: EVENT_HEAD, number of stack frames and their symbols (2 bytes each), tuples
  L  an event without a packet (a route lookup), before the frame of the next one or the next item
  S  symbols, ended by NUL, that are numbered from 0 in the order in which the file has them

Items are in the statistics blocks of interface 0, which has no packets: a statistics block may come at any time and is no
frame. A batch's events come before its item. What has an order in the file had it in the run.

PEN is 32473, which RFC 5612 gives to examples: this project has no number of its own at IANA, so MARK tells its options
from those of other users of that number. The option's code says "do not copy to a new file": a copy with fewer frames would
show fewer hops than there were.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

from tracer.model.layout import EVENT

VERSION = 2
PEN = 32473
MARK = b"dnt"
PREFIX = struct.pack("=I", PEN) + MARK  # in the byte order of the section

FORMAT, ITEM, PART, OF_PACKET, WITHOUT_PACKET, SYMBOLS = b"FIiELS"  # the letters' numbers
EVENT_HEAD = struct.Struct(EVENT.format.removesuffix("96s2s"))  # the packet is the frame's; padding is none of the event's
OLD_HEADS = {1: struct.Struct("=QQQQQIIIIIIHHHBBBBBB14s16s")}  # of earlier versions: the same members
FRAME_COUNT = struct.Struct("=H")

ITEM_BYTES = 1 << 24  # of JSON. The largest is the topology: some 5 kB a container
SYMBOL_COUNT = 1 << 16
SYMBOL_BYTES = 512  # as the kernel's KSYM_NAME_LEN
INTERFACE_COUNT = 1 << 16


def _to_2(name: str, given: Any) -> tuple[str, Any]:
    """Version 1 had no cookies: whose the events of an inode are that two namespaces had is not known, so it has no name.
    Topologies called the number an inode."""
    topology = given.get("topology") if isinstance(given, dict) else None
    if isinstance(topology, dict):
        reused = {end["inode"] for end in topology.get("ended", ()) if end["reused"]}
        topology["names"] = [pair for pair in topology["names"] if pair[0] not in reused]
        topology["namespaces"] = [[number, space | {"netns": space["inode"]}] for number, space in topology["namespaces"]
                                  if number not in reused]
    return name, given


# From a version to the next one: gets an item's name and members, and returns them.
CONVERTERS: dict[int, Callable[[str, Any], tuple[str, Any]]] = {1: _to_2}
