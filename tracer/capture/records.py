"""Writes events to a trace file as they lie in the ring, without an object for each: what a recording at full speed needs.

Events whose blocks have one layout are made together, column by column, and then put in their places among the others.
Those that say more to a person (drops, rewrites) are made one by one, as the Writer makes them.
"""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy

from tracer.capture import layout, pcapng
from tracer.capture.comments import Flow, flow_of
from tracer.capture.writer import DIRECTION, Writer, custom
from tracer.model.frame import ETHERNET_BYTES, FRAGMENT, ICMP, ICMP_ERRORS, ICMPV6, IPV4, IPV6, TCP, UDP
from tracer.model.layout import EVENT, PACKET_BYTES, TUPLES, Event, Place
from tracer.model.probes import Batch

HEAD = layout.EVENT_HEAD.size
PACKET_AT, TAIL_AT = HEAD, EVENT.size  # in a record
FLOW_BYTES = 64  # of a packet, with addresses and ports
FLOWS = 1 << 16  # journeys whose addresses are remembered
ENDS = (Place.DROP, Place.CONSUME)

Records = Any  # numpy's array of kernel/ring.py's RECORD
Array = Any


class Template(NamedTuple):
    """A block, and where in it lie what differs from event to event."""

    block: Array
    data: int  # the frame
    number: int  # the journey's
    head: int  # EVENT_HEAD; behind it the stack, then the tuples or a lookup's packet


def begun(records: Records) -> int:
    """How many packets were first seen here."""
    return int(numpy.count_nonzero((records["first"] != 0) & (records["place"] != Place.ROUTE)))


class RecordWriter(Writer):
    """A Writer of records. `stack_of` names the functions of a stack, `events` makes objects of records, `snaplen` is as
    cut() has it."""

    def __init__(self, path: str, force: bool, stack_of: Callable[[bytes], tuple[str, ...]],
                 events: Callable[[Records], list[Event]], snaplen: int | None = None) -> None:
        super().__init__(path, force)
        self._stack_of, self._events, self._snaplen = stack_of, events, snaplen
        self._raw_stacks: dict[bytes, bytes] = {}  # addresses -> the numbers of their symbols
        self._hashed_places: dict[int, int] = {}  # -> interface, with the names that are known now
        # journey -> hash, packet's beginning, protocol, captured
        self._flows: OrderedDict[int, tuple[int, bytes, int, int]] = OrderedDict()
        self._templates: dict[int, Template] = {}
        self._out: Array = numpy.empty(0, numpy.uint8)
        self._factors = numpy.random.default_rng().integers(1 << 32, 1 << 63, 8, numpy.uint64) | numpy.uint64(1)

    def records(self, records: Records, rest: Batch) -> None:
        """One batch: `records`, which are cut, and what else it says."""
        self._lost += rest.lost
        written: list[bytes | memoryview] = []
        if len(records):
            written = self._blocks(records)
            self._time = int(records["time"][-1])
        self._put(*written, self._end_of_batch(rest))

    def _forget_names(self) -> None:
        super()._forget_names()
        self._hashed_places.clear()

    def _blocks(self, records: Records) -> list[bytes | memoryview]:
        raw = records.view(numpy.uint8).reshape(len(records), records.dtype.itemsize)
        place, protocol = records["place"], records["protocol"]
        packets = raw[:, PACKET_AT:PACKET_AT + PACKET_BYTES]
        hook, route = place == Place.HOOK, place == Place.ROUTE
        size = numpy.full(len(records), max((self._snaplen or 0) - ETHERNET_BYTES, 0)) if self._snaplen is not None else \
            header_bytes(protocol, packets)
        captured = numpy.where(route, 0, numpy.minimum(size, records["captured"]))
        records["captured"] = numpy.where(route, records["captured"], captured)
        before: list[bytes] = []  # what these need in the file
        numbers = self._numbers_of(records["journey"], route)
        interfaces = self._interfaces_of(records, route, before)
        direction = numpy.zeros(len(records), numpy.int64)
        for at, value in DIRECTION.items():
            direction[place == at] = value
        depth = numpy.where(hook, 0, records["depth"]).astype(numpy.int64)
        shape = captured | depth << 8 | direction << 16 | hook.astype(numpy.int64) << 18 | route.astype(numpy.int64) << 19

        alone = self._rewritten(records, packets, captured, (place != Place.DROP) & ~route)
        made = {}
        for index in sorted({*alone, *numpy.flatnonzero(place == Place.DROP).tolist()}):
            (event,) = self._events(records[index:index + 1])
            if index in alone:
                self._comments.remember(event.journey, alone[index])
            self._symbols_of(event.stack, before)
            made[index] = self._frame(event, [], before)
            shape[index] = -1 - index
        times = records["time"] + numpy.uint64(self._machine.clock_offset_ns)
        order = numpy.argsort(shape, kind="stable")
        shapes, begins = numpy.unique(shape[order], return_index=True)
        sizes = numpy.empty(len(records), numpy.int64)
        groups = []
        for one, begin, end in zip(shapes.tolist(), begins.tolist(), [*begins.tolist()[1:], len(order)], strict=True):
            chosen = order[begin:end]
            if one < 0:
                sizes[chosen] = len(made[-1 - one])
                continue
            mine = raw.take(chosen, axis=0)  # not `records`, whose fields would be copied one by one
            rows = self._rows(one, mine.view(records.dtype)[:, 0], mine, times[chosen], interfaces[chosen], numbers[chosen],
                              before)
            sizes[chosen] = rows.shape[1]
            groups.append((chosen, rows))
        ends = numpy.cumsum(sizes)
        starts = ends - sizes
        out = self._room(int(ends[-1]))
        for chosen, rows in groups:
            width = rows.shape[1]
            # a window at each multiple of 4 bytes, so that a row is one copy
            windows: Array = numpy.ndarray(((len(out) - width) // 4 + 1,), f"V{width}", out, 0, (4,))
            windows[starts[chosen] >> 2] = rows.view(f"V{width}").ravel()
        for index, block in made.items():
            out[starts[index]:ends[index]] = numpy.frombuffer(block, numpy.uint8)
        return [b"".join(before), out.data]

    def _room(self, size: int) -> Array:
        """The same memory each time: the kernel has to clear what is new."""
        if len(self._out) < size:
            self._out = numpy.empty(size + size // 4, numpy.uint8)
        return self._out[:size]

    def _rows(self, shape: int, records: Records, raw: Array, times: Array, interfaces: Array, numbers: Array,
              before: list[bytes]) -> Array:
        """The blocks of events that have one layout."""
        captured, depth, hook, route = shape & 0xFF, shape >> 8 & 0xFF, shape >> 18 & 1, shape >> 19
        template = self._templates.get(shape)
        if template is None:
            template = self._templates[shape] = _lookup(depth) if route else _packet(captured, depth, shape >> 16 & 3, hook)
        rows = numpy.empty((len(records), len(template.block)), numpy.uint8)
        rows[:] = template.block
        words = rows.view(numpy.uint32)
        words[:, 2], words[:, 3], words[:, 4] = interfaces, times >> numpy.uint64(32), times & numpy.uint64(0xFFFFFFFF)
        if not route:
            length = records["length"].astype(numpy.int64) + ETHERNET_BYTES * (records["place"] != Place.QUEUE)
            words[:, 6] = numpy.clip(length, ETHERNET_BYTES + captured, 0xFFFFFFFF)
            data, behind = template.data, template.data + ETHERNET_BYTES
            rows[:, data:behind] = records["ethernet"]
            bare = ~records["ethernet"].any(axis=1)
            rows[bare, behind - 2], rows[bare, behind - 1] = records["protocol"][bare] >> 8, records["protocol"][bare] & 0xFF
            rows[:, behind:behind + captured] = raw[:, PACKET_AT:PACKET_AT + captured]
            words[:, template.number // 4], words[:, template.number // 4 + 1] = \
                numbers & numpy.uint64(0xFFFFFFFF), numbers >> numpy.uint64(32)
        at = template.head + HEAD
        rows[:, template.head:at] = raw[:, :HEAD]
        behind = at + layout.FRAME_COUNT.size + 2 * depth
        if depth:
            packed = b"".join([self._raw_stack(stack, before) for stack in _split(raw[:, TAIL_AT:TAIL_AT + 8 * depth])])
            rows[:, at:behind] = numpy.frombuffer(packed, numpy.uint8).reshape(len(rows), -1)
        if hook:
            rows[:, behind:behind + TUPLES.size] = raw[:, TAIL_AT:TAIL_AT + TUPLES.size]
        elif route:
            rows[:, behind:behind + PACKET_BYTES] = raw[:, PACKET_AT:PACKET_AT + PACKET_BYTES]
        return rows

    def _raw_stack(self, stack: bytes, before: list[bytes]) -> bytes:
        packed = self._raw_stacks.get(stack)
        if packed is None:
            packed = self._symbols_of(self._stack_of(stack), before)
            if len(self._raw_stacks) >= FLOWS:
                self._raw_stacks.clear()
            self._raw_stacks[stack] = packed
        return packed

    def _symbols_of(self, stack: tuple[str, ...], before: list[bytes]) -> bytes:
        found: list[pcapng.Option] = []
        packed = self._frames(stack, found)
        if found:
            before.append(pcapng.statistics(0, self._time + self._machine.clock_offset_ns, found))
        return packed

    def _numbers_of(self, journeys: Array, route: Array) -> Array:
        """For a person, in the order of first sight."""
        unique, first, which = numpy.unique(numpy.where(route, 0, journeys), return_index=True, return_inverse=True)
        found = numpy.zeros(len(unique), numpy.uint64)
        known = unique.tolist()
        for index in numpy.argsort(first).tolist():
            if known[index]:
                found[index] = self._number(known[index])
        return found[which]

    def _interfaces_of(self, records: Records, route: Array, before: list[bytes]) -> Array:
        names = numpy.ascontiguousarray(records["name"]).view(numpy.uint64)
        place = records["place"].astype(numpy.uint16) * 256 + records["hook"]  # numpy 2 does not widen by itself
        hashes = self._hash(records["netns"], records["ifindex"], place, names[:, 0], names[:, 1])
        unique, first, which = numpy.unique(hashes, return_index=True, return_inverse=True)
        known, found = unique.tolist(), numpy.zeros(len(unique), numpy.uint32)
        for index in numpy.argsort(first).tolist():
            number = self._hashed_places.get(known[index])
            if number is None:
                at = int(first[index])
                number = 0
                if not route[at]:
                    (event,) = self._events(records[at:at + 1])
                    number = self._interface(event, before)
                if len(self._hashed_places) >= FLOWS:
                    self._hashed_places.clear()
                self._hashed_places[known[index]] = number
            found[index] = number
        return found[which]

    def _hash(self, *columns: Array) -> Array:
        """64 bits of these numbers, with factors that nobody knows before."""
        total = numpy.zeros(len(columns[0]), numpy.uint64)
        for column, factor in zip(columns, self._factors, strict=False):
            product = column.astype(numpy.uint64) * factor
            total = (total ^ product ^ product >> numpy.uint64(29)) * self._factors[7]
        return total

    def _rewritten(self, records: Records, packets: Array, captured: Array, of_interest: Array) -> dict[int, Flow]:
        """Events at which addresses or ports are others than their journey had before -> what they were."""
        protocol = records["protocol"]
        v4, v6 = (protocol == IPV4) & (captured >= 20), (protocol == IPV6) & (captured >= 40)
        at = numpy.where(v4, (packets[:, 0] & 15).astype(numpy.int64) * 4, 40)
        number = numpy.where(v4, packets[:, 9], packets[:, 6])
        with_ports = ((number == TCP) | (number == UDP)) & (captured >= at + 4) & ~(
            v4 & ((packets[:, 7] != 0) | (packets[:, 6] & 0x1F != 0)))
        ports = numpy.where(with_ports, _gather(packets, at, 4), 0)
        addresses = numpy.ascontiguousarray(packets[:, 8:40]).view(numpy.uint64)
        four = numpy.ascontiguousarray(packets[:, 12:20]).view(numpy.uint64)[:, 0]
        rest = (numpy.where(v4, 0, addresses[:, n]) for n in (1, 2, 3))
        hashes = self._hash(numpy.where(v4, four, addresses[:, 0]), *rest, ports, with_ports)
        chosen = numpy.flatnonzero(of_interest & (v4 | v6))
        chosen = chosen[numpy.argsort(records["journey"][chosen], kind="stable")]
        journeys, mine = records["journey"][chosen], hashes[chosen]
        begins = numpy.ones(len(chosen), bool)
        begins[1:] = journeys[1:] != journeys[:-1]
        ends = numpy.roll(begins, -1)

        def flow(index: int) -> Flow | None:
            return flow_of(int(protocol[index]), int(captured[index]), packets[index].tobytes())

        found: dict[int, Flow | None] = {}
        for at_index in numpy.flatnonzero(~begins & (mine != numpy.roll(mine, 1))).tolist():
            found[int(chosen[at_index])] = flow(int(chosen[at_index - 1]))
        first = zip(chosen[begins].tolist(), journeys[begins].tolist(), mine[begins].tolist(), strict=True)
        for index, journey, now in first:
            known = self._flows.get(journey)
            if known and known[0] != now:
                found[index] = flow_of(known[2], known[3], known[1])
        last = chosen[ends]
        over = numpy.isin(records["place"][last], ENDS)
        for journey in journeys[ends][over].tolist():
            self._flows.pop(journey, None)
        last = last[~over]
        for journey, now, packet, *what in zip(journeys[ends][~over].tolist(), mine[ends][~over].tolist(),
                                               _split(packets[last][:, :FLOW_BYTES]), protocol[last].tolist(),
                                               captured[last].tolist(), strict=True):
            self._flows[journey] = (now, packet, what[0], what[1])
        while len(self._flows) > FLOWS:
            self._flows.popitem(last=False)
        return {index: was for index, was in found.items() if was}


def header_bytes(protocol: Array, packets: Array) -> Array:
    """As tracer.model.frame's, of many packets."""
    v4, v6 = protocol == IPV4, protocol == IPV6
    extended = v6 & (packets[:, 6] == FRAGMENT)
    at = numpy.where(v4, (packets[:, 0] & 15).astype(numpy.int64) * 4, numpy.where(extended, 48, 40))
    number = numpy.where(v4, packets[:, 9], numpy.where(extended, packets[:, 40], packets[:, 6]))
    part = (v4 & ((packets[:, 7] != 0) | (packets[:, 6] & 0x1F != 0))) | (
        extended & ((packets[:, 43] & 0xF8 != 0) | (packets[:, 42] != 0)))
    kind, inner = _gather(packets, at, 1), (_gather(packets, at + 8, 1) & 15) * 4
    size = at + 8
    size = numpy.where(number == TCP, at + numpy.maximum(_gather(packets, at + 12, 1) >> 4, 5) * 4, size)
    size = numpy.where((number == ICMP) & numpy.isin(kind, ICMP_ERRORS), at + 8 + inner + 8, size)
    size = numpy.where((number == ICMPV6) & ((kind < 128) | ((kind >= 133) & (kind <= 137))), at + 56, size)
    return numpy.where(v4 | v6, numpy.where(part, at, size), PACKET_BYTES)


def _gather(packets: Array, at: Array, size: int) -> Array:
    """The number of `size` bytes at this place of each packet."""
    rows, total = numpy.arange(len(packets)), numpy.zeros(len(packets), numpy.int64)
    for offset in range(size):
        total = total << 8 | packets[rows, numpy.minimum(at + offset, PACKET_BYTES - 1)]
    return total


def _split(rows: Array) -> list[bytes]:
    data, width = rows.tobytes(), rows.shape[1]
    return [data[at:at + width] for at in range(0, len(data), width)]


def _packet(captured: int, depth: int, direction: int, hook: int) -> Template:
    data = bytes(ETHERNET_BYTES + captured)
    found = [(pcapng.PACKET_ID, bytes(8))]
    found += [(pcapng.PACKET_FLAGS, direction.to_bytes(4, sys.byteorder))] if direction else []
    event = bytes(HEAD) + layout.FRAME_COUNT.pack(depth) + bytes(2 * depth + (TUPLES.size if hook else 0))
    block = pcapng.packet(0, 0, data, 0, [*found, custom(layout.OF_PACKET, event)])
    number = 28 + len(data) + -len(data) % 4 + 4
    head = number + 8 + (8 if direction else 0) + 4 + len(layout.PREFIX) + 1
    return Template(numpy.frombuffer(block, numpy.uint8), 28, number, head)


def _lookup(depth: int) -> Template:
    event = bytes(HEAD) + layout.FRAME_COUNT.pack(depth) + bytes(2 * depth + PACKET_BYTES)
    block = pcapng.statistics(0, 0, [custom(layout.WITHOUT_PACKET, event)])
    return Template(numpy.frombuffer(block, numpy.uint8), 0, 0, 24 + len(layout.PREFIX) + 1)
