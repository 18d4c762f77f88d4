"""Events written as they lie in the ring: the same file as from objects."""

from __future__ import annotations

import io
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy
import pytest

from tests.unit.recording import load
from tests.unit.trace import items, plain
from tracer.capture import pcapng
from tracer.capture.comments import flow_of
from tracer.capture.reader import Reader
from tracer.capture.records import FLOWS, Flows, RecordWriter, header_bytes
from tracer.capture.writer import Writer
from tracer.cli.recording import unknown
from tracer.kernel.ring import RECORD
from tracer.model import frame
from tracer.model.layout import EVENT, PACKET_BYTES, STACK, TAIL_BYTES, TUPLES, Event, Place
from tracer.model.probes import Batch
from tracer.model.run import Item

NAMES = ["one_bridge", "one_bridge_v6", "outside", "isolated", "published", "fragments", "fragments_v6", "arp", "ttl",
         "probed", "probed_host", "probed_tcp", "probed_waiting"]


class Ring:
    """Makes records of objects and objects of records; a function's address is its number here."""

    def __init__(self) -> None:
        self.symbols: list[str] = []

    def records(self, events: list[Event]) -> Any:
        return numpy.frombuffer(b"".join(map(self._record, events)), RECORD).copy()

    def _record(self, event: Event) -> bytes:
        self.symbols += [name for name in event.stack if name not in self.symbols]
        addresses = [self.symbols.index(name) for name in event.stack]
        tail = event.tuples or STACK.pack(*addresses, *[0] * (32 - len(addresses)))
        return EVENT.pack(*event[:24]) + tail.ljust(TAIL_BYTES, b"\0")

    def stack_of(self, frames: bytes) -> tuple[str, ...]:
        return tuple(self.symbols[int.from_bytes(frames[at:at + 8], "little")] for at in range(0, len(frames), 8))

    def events(self, records: Any) -> list[Event]:
        found = []
        for record in records:
            *members, tail = *EVENT.unpack_from(record.tobytes()), record.tobytes()[EVENT.size:]
            event = Event(*members)
            found.append(event._replace(tuples=tail[:TUPLES.size]) if event.place == Place.HOOK else
                         event._replace(stack=self.stack_of(tail[:8 * event.depth])))
        return found


def normal(event: Event) -> Event:
    """As the kernel has it: the stack's depth in the event, and only hooks with tuples."""
    return event._replace(depth=0 if event.place == Place.HOOK else len(event.stack), padding=bytes(2),
                          tuples=event.tuples.ljust(TUPLES.size, b"\0") if event.place == Place.HOOK else b"")


def run_of(name: str) -> list[Item]:
    return [replace(item, events=list(map(normal, item.events))) if isinstance(item, Batch) else item
            for item in items(name)]


@pytest.mark.parametrize("snaplen", [None, 60])
@pytest.mark.parametrize("name", NAMES)
def test_the_same_file_as_from_objects(name: str, snaplen: int | None, tmp_path: Path) -> None:
    ring, run = Ring(), run_of(name)
    with Writer(str(tmp_path / "objects")) as objects, \
            RecordWriter(str(tmp_path / "records"), False, ring.stack_of, ring.events, snaplen) as records:
        for item in run:
            if isinstance(item, Batch):
                objects.play(replace(item, events=[frame.cut(event, snaplen) for event in item.events]))
                records.records(ring.records(item.events), replace(item, events=[]))
            else:
                objects.play(item)
                records.play(item)
    made = [(tmp_path / name).read_bytes() for name in ("objects", "records")]
    one, other = (plain(Reader(io.BytesIO(data), "")) for data in made)
    assert other == one
    assert packets(made[1]) == packets(made[0])


def packets(data: bytes) -> list[tuple[Any, ...]]:
    """What other programs see: interface, time, bytes on the wire, frame, and all options but ours."""
    found, names = [], []
    for block in pcapng.blocks(io.BytesIO(data)):
        if block.kind == pcapng.INTERFACE:
            names.append(next(value for code, value in pcapng.read_options(block, 8) if code == pcapng.INTERFACE_NAME))
        elif block.kind == pcapng.PACKET:
            number, time, frame_bytes, options = pcapng.read_packet(block)
            found.append((names[number], time, block.body[16:20], frame_bytes,
                          sorted(option for option in options if option[0] != pcapng.CUSTOM)))
    return found


def test_flows_are_those_of_the_last_packets() -> None:
    event = next(event for event in load("one_bridge").events if event.protocol == frame.IPV4)
    was = flow_of(event.protocol, event.captured, event.packet[:64])
    flows, many = Flows(), 2 * FLOWS + 5

    def keep(journeys: Any, value: int) -> None:
        count = len(journeys)
        flows.keep(journeys, numpy.full(count, value, numpy.uint64), numpy.full(count, event.protocol),
                   numpy.full(count, event.captured), numpy.tile(numpy.frombuffer(event.packet, numpy.uint8), (count, 1)))

    for begin in range(1, many, 1000):
        keep(numpy.arange(begin, min(begin + 1000, many), dtype=numpy.uint64), 7)
    asked = numpy.array([many - 1, many - FLOWS, many - FLOWS - 1, 1, many], numpy.uint64)
    assert flows.changed(asked, numpy.full(5, 7, numpy.uint64)) == {}
    assert flows.changed(asked, numpy.full(5, 8, numpy.uint64)) == {0: was, 1: was}  # the others are forgotten, or new
    keep(asked[:1], 8)
    assert flows.changed(asked[:1], numpy.full(1, 8, numpy.uint64)) == {}
    assert was


def test_headers_of_many_as_of_one() -> None:
    chance = random.Random(1)
    packets = [bytes([chance.choice((0x45, 0x46, 0x60, 0x4F)), *chance.randbytes(95)]) for _ in range(4000)]
    packets = [bytes([p[0], p[1], *p[2:6], chance.choice((0, 6, 17, 1, 58, 44)), chance.choice((0, 1)), p[8],
                      chance.choice((6, 17, 1, 47)), *p[10:]]) for p in packets]
    packets += [event.packet for name in NAMES for event in load(name).events]
    protocols = [chance.choice((frame.IPV4, frame.IPV6, 0x0806)) for _ in packets]
    many = header_bytes(numpy.array(protocols), numpy.frombuffer(b"".join(packets), numpy.uint8).reshape(-1, PACKET_BYTES))
    one = [frame.header_bytes(protocol, packet) for protocol, packet in zip(protocols, packets, strict=True)]
    assert [min(n, PACKET_BYTES) for n in many.tolist()] == [min(n, PACKET_BYTES) for n in one]


def test_devices_of_other_networks_are_none_that_a_recording_asks_for() -> None:
    """The machine may have other engines: what is met of them would be read, and be taken for this network."""
    recording = load("one_bridge")
    c2 = recording.target
    assert c2
    records, topology = Ring().records(recording.events), recording.topology
    assert unknown(records, topology) == set()
    late = replace(topology, namespaces={n: one for n, one in topology.namespaces.items() if n != c2})
    assert {key.netns for key in unknown(records, late)} == {c2}
    assert unknown(records, replace(topology, namespaces={})) == set()
