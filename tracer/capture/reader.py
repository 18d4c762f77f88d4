"""Reads a trace file back to the run's items.

The bytes may be anybody's. The reader holds one block, one item (of ITEM_BYTES of JSON at most), the symbols, and the
events of one batch (BATCH_EVENTS at most): 1 GB in the worst case that was found, some MB for a file of ours.
"""

from __future__ import annotations

import struct
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import repeat
from operator import itemgetter
from typing import Any, BinaryIO, NamedTuple, get_args

from tracer.capture import layout, pcapng
from tracer.capture.pcapng import CUSTOM, PACKET_FLAGS, PACKET_ID, Block, Malformed, Option, read_options, read_packet
from tracer.capture.plain import from_json, members, typed
from tracer.errors import UserError
from tracer.model.forms import FIRST, Form, Forms, made
from tracer.model.frame import ETHERNET_BYTES
from tracer.model.layout import PACKET_BYTES, STACK_DEPTH, TUPLES, Event, Function, Place
from tracer.model.probes import HOOKS, Batch, Machine
from tracer.model.run import Begin, Finish, Item, Know, LiveBegin

BATCH_EVENTS = 1 << 18
SHAPES, OTHERS, MARKS = 1 << 10, 7, 4  # of blocks, for one size besides the last, and what one of them has
PART_COST = 64  # bytes that a part takes, however short
_KINDS = tuple(len(Function if place is Place.FUNCTION else HOOKS) for place in Place)  # what `hook` may be there
_OF_PACKET = layout.PREFIX + bytes([layout.OF_PACKET])
_LAST = bytes(4)  # behind options
_HEAD = struct.Struct("=II").unpack_from  # of a block: its kind and size
_SIZE = struct.Struct("=4xI").unpack_from
_TAIL = struct.Struct("=I").unpack_from
_TIME = struct.Struct("=12xII").unpack_from  # high and low, of a packet's block
_CAPTURED = struct.Struct("=20xI").unpack_from
_FIRST = struct.Struct(f"={FIRST}")
_OPTION = struct.Struct("=HH").unpack_from
_CHECKED = itemgetter(*(Event._fields.index(name) - len(FIRST) for name in ("captured", "place", "hook")))
_COUNT_BYTES = layout.FRAME_COUNT.size
_new = tuple.__new__  # without the arguments' names, which take their time
_NATIVE = "<" if sys.byteorder == "little" else ">"
ITEMS: dict[str, type[Any]] = {kind.__name__: kind for kind in get_args(Item)}


@dataclass(slots=True)
class Counts:
    """What can be said of any pcapng file."""

    packets: int = 0
    interfaces: int = 0
    first: int = 0  # time of the first packet, in its unit
    last: int = 0

    def add_packets(self, number: int, first: tuple[int, ...], last: tuple[int, ...]) -> None:
        """Times as (high, low)."""
        self.packets += number
        self.last = last[0] << 32 | last[1]
        self.first = self.first or first[0] << 32 | first[1]

    def add(self, block: Block) -> None:
        if block.kind == pcapng.PACKET:
            self.packets += 1
            if len(block.body) >= 12:
                high, low = struct.unpack_from(f"{block.order}II", block.body, 4)
                self.last = high << 32 | low
                self.first = self.first or self.last
        else:
            self.interfaces += block.kind == pcapng.INTERFACE
            self.packets += block.kind in (pcapng.SIMPLE_PACKET, pcapng.OLD_PACKET)


class Reader:
    """The items of one file, in their order, once. UserError where it is no trace file, or one of a newer dnettrace.

    `more`: as blocks() has it. Without `events`, batches are empty, and large files are read in a tenth of the time.
    `cut` says afterwards, in one sentence, why the file ended before the run did; None: it did not.
    """

    def __init__(self, stream: BinaryIO, path: str, more: Callable[[], bool] = lambda: False, *,
                 events: bool = True) -> None:
        self._blocks = pcapng.blocks(stream, more, self._take if events else self._pass_over)
        self._path = path
        self._ours = False  # known from the first block on
        self.counts = Counts()
        self.cut: str | None = None
        self.version = layout.VERSION
        self._head = layout.EVENT_HEAD  # of that version
        self._symbols: list[str] = []
        self._forms = Forms()  # by the bytes behind an event's first members
        self._shapes: dict[int, tuple[Shape, ...]] = {}  # by the size of the block
        self._events: list[Event] = []  # of the batch at hand
        self._parts: list[bytes] = []  # of the item at hand
        self._parts_bytes = 0
        self._machine: Machine | None = None  # as it is known by now; None before Begin
        self._know: Know | None = None

    def __iter__(self) -> Iterator[Item]:
        try:
            first = next(self._blocks)
        except StopIteration:
            raise UserError(f"{self._path} is empty.") from None
        except Malformed as error:
            raise UserError(f"{self._path} is no pcapng file: {error}.") from None
        self._check_version(first)
        finished = False
        try:
            for block in self._blocks:
                self.counts.add(block)
                if block.kind == pcapng.SECTION:
                    raise Malformed(f"another file begins at byte {block.at}")
                for item in self._items(block):
                    finished = isinstance(item, Finish)
                    yield item
                if finished:
                    return
            self.cut = "it ends before the run did"
        except Malformed as error:
            self.cut = str(error)
        except (ValueError, TypeError, struct.error, zlib.error) as error:
            self.cut = f"it is damaged at byte {block.at} ({error})"
        if self._machine is None:
            raise UserError(f"{self._path} has no run: {self.cut}.")
        if self._events:
            yield Batch(self._events, 0)

    def _check_version(self, first: Block) -> None:
        try:
            found = next((value for letter, value in _custom(read_options(first, 16)) if letter == layout.FORMAT), None)
        except Malformed:
            found = None
        if found is None or len(found) != 4:
            with suppress(Malformed):
                for block in self._blocks:
                    self.counts.add(block)
            raise UserError(f"{self._path} is not a dnettrace file: {_number(self.counts.packets, 'packet')} on "
                            f"{_number(self.counts.interfaces, 'interface')}.")
        (self.version,) = struct.unpack(f"{first.order}I", found)
        if self.version > layout.VERSION:
            raise UserError(f"{self._path} was written by a newer dnettrace (format {self.version}; this one reads up to "
                            f"{layout.VERSION}): update dnettrace.")
        self._head = layout.OLD_HEADS.get(self.version, layout.EVENT_HEAD)
        if first.order != _NATIVE:
            raise UserError(f"{self._path} was written on a machine of the other byte order: replay it there.")
        self._ours = True

    def _take(self, buffer: bytes, start: int) -> int:
        """Add the events of the blocks from `start` on, as long as they are whole, and packets' with an event and no more
        than nearly all have. Returns where the first other one begins."""
        if not self._ours:
            return start
        # locals: this loop is what an event costs
        append, shapes_of, form_of = self._events.append, self._shapes.get, self._forms.get
        began, first, last = len(self._events), start, start
        padded, packet = bytes(PACKET_BYTES), b""
        try:
            for _ in repeat(None, BATCH_EVENTS - began):
                (size,) = _SIZE(buffer, start)
                for unpack, marks_of, marks in shapes_of(size, ()):
                    this = unpack(buffer, start)
                    if marks_of(this) == marks:
                        break
                else:
                    this = self._new_shape(buffer, start).unpack(buffer, start)
                if this[2] != packet:
                    packet = this[2]
                    padded = packet[:PACKET_BYTES].ljust(PACKET_BYTES, b"\0")
                form = form_of(this[-2]) or self._form(this[-2])
                append(_new(Event, this[-7:-2] + form[0] + (padded,) + form[1]))
                last = start
                start += size
        except (ValueError, struct.error):
            pass  # one that is not whole or not as most is handed out, and what is wrong is told with its place
        if taken := len(self._events) - began:
            self.counts.add_packets(taken, _TIME(buffer, first), _TIME(buffer, last))
        return start

    def _pass_over(self, buffer: bytes, start: int) -> int:
        """As _take(), without their events."""
        if not self._ours:
            return start
        packets, first, last = 0, start, start
        with suppress(struct.error):
            while True:
                kind, size = _HEAD(buffer, start)
                if kind != pcapng.PACKET or size < 32 or size & 3 or _TAIL(buffer, start + size - 4)[0] != size:
                    break
                packets += 1
                last = start
                start += size
        if packets:
            self.counts.add_packets(packets, _TIME(buffer, first), _TIME(buffer, last))
        return start

    def _new_shape(self, buffer: bytes, start: int) -> Shape:
        """ValueError, struct.error: no plain event's block is there."""
        kind, size = _HEAD(buffer, start)
        if kind != pcapng.PACKET:
            raise ValueError("no packet's block")
        new = _shape(buffer[start:start + size])
        if len(self._shapes) >= SHAPES:
            self._shapes.clear()
        self._shapes[size] = (new, *self._shapes.get(size, ())[:OTHERS])
        return new

    def _items(self, block: Block) -> Iterator[Item]:
        if block.kind == pcapng.PACKET:
            _interface, _time, frame, options = read_packet(block)
            found = _custom(options)
        elif block.kind == pcapng.STATISTICS:
            frame, found = b"", _custom(read_options(block, 12))
        else:
            return
        for letter, value in found:
            if letter == layout.OF_PACKET:
                self._add(_FIRST.unpack_from(value), value[_FIRST.size:], frame[ETHERNET_BYTES:])
            elif letter == layout.WITHOUT_PACKET:
                self._add(_FIRST.unpack_from(value), value[_FIRST.size:-PACKET_BYTES], value[-PACKET_BYTES:])
            elif letter == layout.SYMBOLS:
                names = value.split(b"\0")[:-1]
                if len(names) + len(self._symbols) > layout.SYMBOL_COUNT:
                    raise Malformed(f"the block at byte {block.at} has too many symbols")
                self._symbols += [name[:layout.SYMBOL_BYTES].decode(errors="replace") for name in names]
            elif letter == layout.PART:
                self._parts.append(value)
                self._parts_bytes += len(value) + PART_COST
                if self._parts_bytes > layout.ITEM_BYTES:
                    raise ValueError("an item that is too long")
            elif letter == layout.ITEM:
                data = b"".join((*self._parts, value))
                self._parts.clear()
                self._parts_bytes = 0
                yield self._item(data)

    def _add(self, first: tuple[Any, ...], rest: bytes, packet: bytes) -> None:
        """The event of an option's value: its first members, and the rest."""
        form = self._forms.get(rest) or self._form(rest)
        if len(self._events) == BATCH_EVENTS:
            raise ValueError(f"more than {BATCH_EVENTS} events at a time")
        packet = packet[:PACKET_BYTES].ljust(PACKET_BYTES, b"\0")
        self._events.append(made(first, form, packet))

    def _form(self, rest: bytes) -> Form:
        """Of an event's value, less its first members."""
        *members, count = struct.unpack_from(f"={self._head.format.removeprefix(_FIRST.format)}H", rest)
        at = self._head.size - _FIRST.size + _COUNT_BYTES
        if count > min(STACK_DEPTH, (len(rest) - at) // 2):
            raise ValueError("an event that no kernel has")
        symbols, numbers, tuples = self._symbols, struct.unpack_from(f"={count}H", rest, at), rest[at + 2 * count:]
        known = all(number < len(symbols) for number in numbers)  # else they may yet come
        stack = tuple(symbols[number] if number < len(symbols) else "?" for number in numbers)
        captured, place, hook = _CHECKED(members)
        if not (place < len(_KINDS) and hook < _KINDS[place] and captured <= PACKET_BYTES
                and (not tuples or len(tuples) == TUPLES.size)):
            raise ValueError("an event that no kernel has")
        return self._forms.add(rest if known else None, members, stack, tuples)

    def _item(self, data: bytes) -> Item:
        match from_json(_unpacked(data)):
            case [str(name), given]:
                pass
            case _:
                raise ValueError("no item")
        for version in range(self.version, layout.VERSION):
            try:
                name, given = layout.CONVERTERS[version](name, given)
            except (LookupError, AttributeError) as error:
                raise ValueError("an item that its version does not have") from error
        if self._machine is None or self._know is None:
            begin: Begin | LiveBegin = typed(given, LiveBegin if name == "LiveBegin" else Begin)
            self._machine = begin.machine
            self._know = Know(begin.topology, begin.target if isinstance(begin, Begin) else None)
            return begin
        if name == "Machine":
            self._machine = replace(self._machine, **members(given, Machine))
            return self._machine
        if name == "Know":
            self._know = replace(self._know, **members(given, Know))
            return self._know
        if name == "Batch":
            events, self._events = self._events, []
            return replace(Batch(events, 0), **members(given, Batch))
        if name not in ITEMS or name in ("Begin", "LiveBegin"):
            raise ValueError(f"an item {name[:32]!r}")
        item: Item = typed(given, ITEMS[name])
        return item


class Shape(NamedTuple):
    """Of the blocks of packets that have the same options."""

    unpack: Callable[[bytes, int], tuple[Any, ...]]  # two marks, packet, other marks, first members of the event, the
    # rest of it, the last mark
    marks_of: Callable[[tuple[Any, ...]], tuple[Any, ...]]
    marks: tuple[Any, ...]  # kind and size, the packet's length, kinds and lengths of the options, their end with the size


def _shape(block: bytes) -> Shape:
    """Of a packet. ValueError: it is not whole, or has other options than a plain event's."""
    (size,) = _SIZE(block)
    (captured,) = _CAPTURED(block)
    at, end = 28 + captured + (-captured & 3), len(block) - 4
    if size != len(block) or _TAIL(block, end)[0] != size or captured < ETHERNET_BYTES:
        raise ValueError("no plain event")
    form = f"=8s12x4s4x{ETHERNET_BYTES}x{captured - ETHERNET_BYTES}s{-captured & 3}x"
    places = [0, 1]
    while at + 4 <= end:
        code, length = _OPTION(block, at)
        size = length + (-length & 3)
        places.append(len(places) + 1)
        if code == CUSTOM:
            start = at + 4 + len(_OF_PACKET)
            rest = length - len(_OF_PACKET) - _FIRST.size
            if not block.startswith(_OF_PACKET, at + 4) or rest < 0 or block[at + 4 + size:end] != _LAST:
                break
            form += f"{start - at}s{_FIRST.format[1:]}{rest}s{size - length}x8s"
            unpack, marks_of = struct.Struct(form).unpack_from, itemgetter(*places, -1)
            return Shape(unpack, marks_of, marks_of(unpack(block)))
        if code not in (PACKET_ID, PACKET_FLAGS) or len(places) > MARKS + 1:
            break
        form += f"4s{size}x"
        at += 4 + size
    raise ValueError("no plain event")


def _custom(options: Iterator[Option]) -> Iterator[tuple[int, bytes]]:
    """(letter, value) of our own options."""
    prefix = len(layout.PREFIX)
    return ((value[prefix], value[prefix + 1:]) for code, value in options
            if code == CUSTOM and value.startswith(layout.PREFIX) and len(value) > prefix)


def _unpacked(data: bytes) -> bytes:
    if data[:1] == b"[":
        return data
    unpacker = zlib.decompressobj()
    text = unpacker.decompress(data, layout.ITEM_BYTES)
    if not unpacker.eof:
        raise ValueError("an item that is too long")
    return text


def _number(count: int, of: str) -> str:
    return f"{count} {of}{'' if count == 1 else 's'}"
