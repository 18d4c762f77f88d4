"""Writes events to a trace file as they lie in the ring, without an object for each: what a recording at full speed needs.

Events whose blocks have one layout are made together, column by column, and then put in their places among the others.
Those that say more to a person (drops, rewrites) are made one by one, as the Writer makes them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy

from tracer.capture import layout, pcapng
from tracer.capture.comments import Flow, flow_of
from tracer.capture.writer import DIRECTION, NUMBERS, Writer, custom
from tracer.model.frame import ETHERNET_BYTES, FRAGMENT, ICMP, ICMP_ERRORS, ICMPV6, IPV4, IPV6, TCP, UDP
from tracer.model.layout import EVENT, PACKET_BYTES, STACK_DEPTH, TUPLES, Event, Place
from tracer.model.probes import Batch

HEAD = layout.EVENT_HEAD.size
PACKET_AT, TAIL_AT = HEAD, EVENT.size  # in a record
FLOW_BYTES = 64  # of a packet, with addresses and ports
FLOWS = 1 << 16  # packets whose addresses are remembered

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


class Flows:
    """The beginnings of packets of the last journeys, with a hash of what addresses and ports they have."""

    def __init__(self) -> None:
        self._slots: dict[int, int] = {}  # journey -> its row below, until that is another's
        self._journeys, self._hashes = numpy.zeros(FLOWS, numpy.uint64), numpy.zeros(FLOWS, numpy.uint64)
        self._protocols, self._captured = numpy.zeros(FLOWS, numpy.int64), numpy.zeros(FLOWS, numpy.int64)
        self._packets: Array = numpy.zeros((FLOWS, FLOW_BYTES), numpy.uint8)
        self._next = 0

    def changed(self, journeys: Array, hashes: Array) -> dict[int, Flow | None]:
        """Which of these were kept with another hash -> what they had."""
        slots = numpy.array([self._slots.get(journey, 0) for journey in journeys.tolist()], numpy.intp)
        differs = (self._journeys[slots] == journeys) & (self._hashes[slots] != hashes)
        return {index: flow_of(int(self._protocols[slots[index]]), int(self._captured[slots[index]]),
                               self._packets[slots[index]].tobytes()) for index in numpy.flatnonzero(differs).tolist()}

    def keep(self, journeys: Array, hashes: Array, protocols: Array, captured: Array, packets: Array) -> None:
        slots = numpy.arange(self._next, self._next + len(journeys)) % FLOWS
        self._next += len(journeys)
        self._journeys[slots], self._hashes[slots], self._protocols[slots] = journeys, hashes, protocols
        self._captured[slots], self._packets[slots] = captured, packets[:, :FLOW_BYTES]
        self._slots.update(zip(journeys.tolist(), slots.tolist(), strict=True))
        if len(self._slots) > 2 * FLOWS:
            self._slots = {journey: slot for journey, slot in self._slots.items() if self._journeys[slot] == journey}


class RecordWriter(Writer):
    """A Writer of records. `stack_of` names the functions of a stack, `events` makes objects of records, `snaplen` is as
    cut() has it."""

    def __init__(self, path: str, force: bool, stack_of: Callable[[bytes], tuple[str, ...]],
                 events: Callable[[Records], list[Event]], snaplen: int | None = None) -> None:
        super().__init__(path, force)
        self._stack_of, self._events, self._snaplen = stack_of, events, snaplen
        self._raw_stacks: dict[bytes, bytes] = {}  # addresses -> the numbers of their symbols
        self._hashed_places: dict[int, int] = {}  # -> interface, with the names that are known now
        self._flows = Flows()
        self._templates: dict[int, Template] = {}
        self._out: Array = numpy.empty(0, numpy.uint8)
        self._factors = numpy.random.default_rng().integers(1 << 32, 1 << 63, STACK_DEPTH, numpy.uint64) | numpy.uint64(1)

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
        # on the wire, with a link header, which what waits for its MAC has not
        length = numpy.maximum(records["length"].astype(numpy.int64) + ETHERNET_BYTES * (place != Place.QUEUE),
                               ETHERNET_BYTES + captured)
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
            rows = self._rows(one, mine.view(records.dtype)[:, 0], mine, times[chosen], interfaces[chosen], length[chosen],
                              numbers[chosen], before)
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

    def _rows(self, shape: int, records: Records, raw: Array, times: Array, interfaces: Array, length: Array,
              numbers: Array, before: list[bytes]) -> Array:
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
            words[:, 6] = numpy.minimum(length, 0xFFFFFFFF)
            data, behind = template.data, template.data + ETHERNET_BYTES
            rows[:, data:behind] = records["ethernet"]
            bare = ~records["ethernet"].any(axis=1)
            if bare.any():
                rows[bare, behind - 2], rows[bare, behind - 1] = divmod(records["protocol"][bare], 256)
            rows[:, behind:behind + captured] = raw[:, PACKET_AT:PACKET_AT + captured]
            words[:, template.number // 4], words[:, template.number // 4 + 1] = \
                numbers & numpy.uint64(0xFFFFFFFF), numbers >> numpy.uint64(32)
        at = template.head + HEAD
        rows[:, template.head:at] = raw[:, :HEAD]
        behind = at + layout.FRAME_COUNT.size + 2 * depth
        if depth:
            stacks = numpy.ascontiguousarray(raw[:, TAIL_AT:TAIL_AT + 8 * depth]).view(numpy.uint64)
            _hashes, first, which = numpy.unique(stacks @ self._factors[:depth], return_index=True, return_inverse=True)
            packed = b"".join([self._raw_stack(stacks[index].tobytes(), before) for index in first.tolist()])
            rows[:, at:behind] = numpy.frombuffer(packed, numpy.uint8).reshape(len(first), -1)[which]
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
        numbers = self._numbers
        new = [journey for journey in unique[numpy.argsort(first)].tolist() if journey and journey not in numbers]
        numbers.update(zip(new, range(self._journeys + 1, self._journeys + 1 + len(new)), strict=True))
        self._journeys += len(new)
        found = numpy.array([numbers.get(journey, 0) for journey in unique.tolist()], numpy.uint64)
        while len(numbers) > NUMBERS:
            numbers.popitem(last=False)
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
            total += (product ^ product >> numpy.uint64(29)) * self._factors[-1]
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
        columns = [ports, with_ports, numpy.where(v4, four, addresses[:, 0])]
        if v6.any():  # a column of zeros changes no hash
            columns += [numpy.where(v4, 0, addresses[:, n]) for n in (1, 2, 3)]
        hashes = self._hash(*columns)
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
        changed = self._flows.changed(journeys[begins], mine[begins])
        found |= {int(chosen[begins][index]): was for index, was in changed.items()}
        last = chosen[ends]
        last = last[(records["place"][last] != Place.DROP) & (records["place"][last] != Place.CONSUME)]
        self._flows.keep(records["journey"][last], hashes[last], protocol[last], captured[last], packets[last])
        return {index: was for index, was in found.items() if was}


def header_bytes(protocol: Array, packets: Array) -> Array:
    """As tracer.model.frame's, of many packets."""
    v4, v6 = protocol == IPV4, protocol == IPV6
    extended = v6 & (packets[:, 6] == FRAGMENT)
    at = numpy.where(v4, (packets[:, 0] & 15).astype(numpy.int64) * 4, numpy.where(extended, 48, 40))
    number = numpy.where(v4, packets[:, 9], numpy.where(extended, packets[:, 40], packets[:, 6]))
    part = (v4 & ((packets[:, 7] != 0) | (packets[:, 6] & 0x1F != 0))) | (
        extended & ((packets[:, 43] & 0xF8 != 0) | (packets[:, 42] != 0)))
    size = at + 8
    tcp, icmp, v6_icmp = (numpy.flatnonzero(number == one) for one in (TCP, ICMP, ICMPV6))
    size[tcp] = at[tcp] + numpy.maximum(_gather(packets[tcp], at[tcp] + 12, 1) >> 4, 5) * 4
    icmp = icmp[numpy.isin(_gather(packets[icmp], at[icmp], 1), ICMP_ERRORS)]
    size[icmp] += (_gather(packets[icmp], at[icmp] + 8, 1) & 15) * 4 + 8
    kind = _gather(packets[v6_icmp], at[v6_icmp], 1)
    size[v6_icmp[(kind < 128) | ((kind >= 133) & (kind <= 137))]] += 48
    return numpy.where(v4 | v6, numpy.where(part, at, size), PACKET_BYTES)


def _gather(packets: Array, at: Array, size: int) -> Array:
    """The number of `size` bytes at this place of each packet."""
    rows, total = numpy.arange(len(packets)), numpy.zeros(len(packets), numpy.int64)
    for offset in range(size):
        total = total << 8 | packets[rows, numpy.minimum(at + offset, PACKET_BYTES - 1)]
    return total


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
