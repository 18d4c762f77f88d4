"""The ring's reader over memory that is laid out, and written, as the kernel does it (kernel/bpf/ringbuf.c)."""

from __future__ import annotations

import mmap
import random
import signal
import struct
import time
from typing import Any

import pytest

from tests.conftest import missing

try:
    import numpy

    from tracer.kernel import ring as ring_module
    from tracer.kernel.ring import BUSY, DISCARDED, RECORD, Ring, membarrier, no_barrier
except ImportError as error:
    missing(f"{error}: sudo ./scripts/setup")
from tracer.model.layout import EVENT, EVENT_FIELDS, STACK, TUPLES, Event

LENGTHS = [EVENT.size, EVENT.size + TUPLES.size, EVENT.size + STACK.size, EVENT.size + 12]


class Writer:
    """The kernel's side. A record's event has its number as the time, and its bytes behind that are the number's, too."""

    def __init__(self, barrier: Any = None, start: int = 0) -> None:
        self.page, self.size = ring_module.PAGE, 4 * ring_module.PAGE
        self.consumer, self.rest = mmap.mmap(-1, self.page), mmap.mmap(-1, self.page + 2 * self.size)
        self.position, self.count = start, 0
        for page in (self.consumer, self.rest):
            struct.pack_into("Q", page, 0, start)
        self.ring = Ring(self.consumer, self.rest, barrier)

    def _put(self, position: int, data: bytes) -> None:
        for i in range(0, len(data), 4):  # both mappings of the same page
            at = self.page + (position + i) % self.size
            self.rest[at:at + 4] = self.rest[at + self.size:at + self.size + 4] = data[i:i + 4]

    def reserve(self, length: int) -> int | None:
        """Where the record is, still busy; None without room."""
        position, taken = self.position, (length + 15) // 8 * 8
        if position + taken - self.read_position > self.size - 1:
            return None
        self._put(position, struct.pack("II", length | BUSY, (self.page + position % self.size) // self.page))
        self.position += taken
        struct.pack_into("Q", self.rest, 0, self.position)
        return position

    def submit(self, position: int, flags: int = 0) -> int:
        """The record's number."""
        length = struct.unpack_from("I", self.rest, self.page + position % self.size)[0] & ~BUSY
        self.count += 1
        self._put(position + 8, struct.pack("Q", self.count) + bytes([self.count % 251]) * (length - 8))
        self._put(position, struct.pack("I", length | flags))
        return self.count

    def write(self, length: int, flags: int = 0) -> int | None:
        position = self.reserve(length)
        return None if position is None else self.submit(position, flags)

    @property
    def read_position(self) -> int:
        position: int = struct.unpack_from("Q", self.consumer)[0]
        return position


def numbers(records: Any) -> list[int]:
    """Of the records, which must be whole."""
    for record in records:
        data = record.tobytes()
        assert set(data[8:EVENT.size]) == {int(record["time"]) % 251}
    return [int(time) for time in records["time"]]


def test_the_dtype_is_the_struct_s() -> None:
    assert RECORD.names == (*Event._fields[:len(EVENT_FIELDS)], "tail")
    assert RECORD["tail"].itemsize == max(STACK.size, TUPLES.size)
    data = random.Random(1).randbytes(EVENT.size)
    record = numpy.frombuffer(data + bytes(RECORD.itemsize - EVENT.size), RECORD)[0]
    for name, value in zip(Event._fields, EVENT.unpack(data), strict=False):
        assert (record[name].tobytes() if isinstance(value, bytes) else int(record[name])) == value, name


def test_an_empty_ring_has_no_records() -> None:
    writer = Writer()
    assert len(writer.ring.read()) == 0
    assert writer.ring.read().dtype == RECORD


def test_what_follows_an_event_is_there() -> None:
    writer = Writer()
    for length in LENGTHS:
        writer.write(length)
    records = writer.ring.read()
    assert numbers(records) == [1, 2, 3, 4]
    assert [set(r["tail"][:length - EVENT.size].tolist()) for r, length in zip(records[1:], LENGTHS[1:], strict=True)] == \
        [{2}, {3}, {4}]
    assert writer.read_position == writer.position


def test_records_are_copies() -> None:
    writer = Writer()
    writer.write(LENGTHS[0])
    records = writer.ring.read()
    while writer.position < 3 * writer.size:
        writer.write(LENGTHS[0])
        writer.ring.read()
    assert numbers(records) == [1]


def test_a_busy_record_ends_the_batch_until_it_is_finished() -> None:
    writer = Writer()
    writer.write(LENGTHS[1])
    busy = writer.reserve(LENGTHS[2])
    writer.write(LENGTHS[0])
    assert busy is not None
    assert numbers(writer.ring.read()) == [1]
    assert len(writer.ring.read()) == 0
    assert writer.read_position == busy
    writer.submit(busy)
    assert numbers(writer.ring.read()) == [3, 2]
    assert writer.read_position == writer.position


def test_discarded_records_are_passed_over() -> None:
    writer = Writer()
    for length in LENGTHS:
        writer.write(length, DISCARDED)
        writer.write(length)
    writer.write(LENGTHS[2], DISCARDED)
    assert numbers(writer.ring.read()) == [2, 4, 6, 8]
    assert writer.read_position == writer.position
    writer.write(LENGTHS[0], DISCARDED)
    assert len(writer.ring.read()) == 0
    assert writer.read_position == writer.position


def test_a_full_ring_is_read_whole() -> None:
    writer = Writer(start=4 * ring_module.PAGE - 8)
    while writer.write(LENGTHS[2]):
        pass
    assert writer.count == writer.size // (LENGTHS[2] + 8)
    assert numbers(writer.ring.read()) == list(range(1, writer.count + 1))


def test_a_signal_ends_the_wait() -> None:
    before = signal.signal(signal.SIGALRM, lambda *_: None)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        began = time.monotonic()
        Writer().ring.wait(30_000)
        assert time.monotonic() - began < 10
    finally:
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("barrier", [no_barrier, membarrier])
@pytest.mark.parametrize("seed", range(6))
def test_many_laps_lose_nothing(barrier: Any, seed: int) -> None:
    """Records of all lengths, some discarded, some busy for a while, read at any moment; positions beyond 32 bits."""
    chance, size = random.Random(seed), 4 * ring_module.PAGE
    writer = Writer(barrier, start=chance.choice([0, size - 8, 2**32 - 8 * size, 2**40 + 8]))
    end = writer.position + 12 * size
    busy: list[int] = []
    finished: dict[int, int | None] = {}  # position -> number; None: discarded
    read: list[int] = []

    def finish() -> None:
        position, discard = busy.pop(chance.randrange(len(busy))), chance.random() < 0.1
        number = writer.submit(position, DISCARDED if discard else 0)
        finished[position] = None if discard else number

    while writer.position < end:
        what = chance.choice(("reserve", "reserve", "finish", "finish", "read"))
        if what == "reserve" and (position := writer.reserve(chance.choice(LENGTHS))) is not None:
            busy.append(position)
        elif what == "read":
            read += numbers(writer.ring.read())
        elif busy:
            finish()
    while busy:
        finish()
    read += numbers(writer.ring.read())
    assert read == [number for _position, number in sorted(finished.items()) if number]
    assert len(read) > 100 and writer.read_position == writer.position


@pytest.mark.parametrize("page", [4096, 16384, 65536])
@pytest.mark.parametrize("barrier", [no_barrier, membarrier])
def test_pages_of_any_size(page: int, barrier: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """arm64 has pages of 4, 16 or 64 KiB: the two positions and the data are a page apart."""
    monkeypatch.setattr(ring_module, "PAGE", page)
    writer = Writer(barrier, start=4 * page - 8)  # a record that wraps is the first one
    read: list[int] = []
    for _lap in range(3):
        while writer.write(LENGTHS[2], DISCARDED if writer.count % 5 == 0 else 0):
            pass
        read += numbers(writer.ring.read())
        assert writer.read_position == writer.position
    assert read == [number for number in range(1, writer.count + 1) if number % 5 != 1]
    assert writer.count > 3 * (4 * page // (LENGTHS[2] + 8) - 1)


@pytest.mark.parametrize(("page", "expected"), [(4096, 4096), (65536, 65536)])
def test_counters_are_mapped_in_whole_pages(page: int, expected: int, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(ring_module, "PAGE", page)
    monkeypatch.setattr(ring_module, "map_entries", lambda fd: 12)

    def mapped(_fd: int, length: int, *_how: int) -> bytearray:
        asked.append(length)
        return bytearray(length)

    monkeypatch.setattr(ring_module.mmap, "mmap", mapped)
    assert len(ring_module.map_counters(3, words=6)) == 72
    assert asked == [expected]


def test_a_processor_that_reorders_gets_barriers(monkeypatch: pytest.MonkeyPatch) -> None:
    called = []
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    monkeypatch.setattr(ring_module, "membarrier", lambda: called.append(1))
    writer = Writer()
    writer.write(LENGTHS[0])
    called.clear()
    assert numbers(writer.ring.read()) == [1]
    assert len(called) == 3
