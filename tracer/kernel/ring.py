"""The BPF ring buffer, read in batches through its own memory, without a call for each record.

The kernel's side is kernel/bpf/ringbuf.c: a page with the reader's position, a page with the writers', then the data, mapped
twice in a row, so that a record which wraps is contiguous. A record is a header of two u32, its length with two flags and a
page number, and its bytes, rounded up to 8. Positions only grow.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy

from tracer.kernel.architecture import architecture
from tracer.model.layout import EVENT_FIELDS, TAIL_BYTES

BUSY, DISCARDED = 1 << 31, 1 << 30  # BPF_RINGBUF_BUSY_BIT: still being written; BPF_RINGBUF_DISCARD_BIT
HEADER = 8
PAGE = mmap.PAGESIZE
BATCH_BYTES = 1 << 20  # of the ring at a time, so that a copy stays in the cache
POLLIN = 1
MEMBARRIER_CMD_GLOBAL_EXPEDITED = 2

# struct event and what follows it, if anything does: the rest of `tail` is arbitrary.
RECORD = numpy.dtype([*EVENT_FIELDS, ("tail", f"{TAIL_BYTES}u1")])

_libc = ctypes.CDLL(None, use_errno=True)


def membarrier() -> None:
    """All of this thread's loads and stores before are done before any behind. 1.4 µs. The kernel's code has a full barrier
    at both ends of this command, since Linux 4.16 (c5f58bd58f43), or one CPU. OSError without CONFIG_MEMBARRIER."""
    if _libc.syscall(architecture().membarrier, MEMBARRIER_CMD_GLOBAL_EXPEDITED, 0, 0):
        raise OSError(ctypes.get_errno(), f"membarrier: {os.strerror(ctypes.get_errno())}")


def no_barrier() -> None:
    """x86-64 keeps the order of loads, and of stores behind loads, by itself."""


class Ring:
    """A reader of one ring buffer; it must be the only one.

    The order matters in three places: the writers' position, then headers; headers, then the records that they say are
    finished; all of that, then the reader's position, which gives the room back. Python has no acquiring load, so where the
    processor does not keep this order, a barrier stands at each place: three calls for a whole batch.
    """

    def __init__(self, consumer: Any, rest: Any, barrier: Callable[[], None] | None = None, fd: int = -1) -> None:
        """`consumer`: the reader's page, writable. `rest`: the writers' page, and the data twice. Both are buffers. `fd`: of
        the map, to wait at."""
        if barrier is None:
            barrier = no_barrier if architecture().ordered else membarrier
        barrier()  # say now if there is none
        self._barrier, self._fd = barrier, fd
        self.behind = False  # the last read left records that were there already
        self._consumer = memoryview(consumer).cast("Q")
        self._producer = memoryview(rest)[:PAGE].cast("Q")
        self._words: Any = numpy.frombuffer(rest, numpy.uint32, offset=PAGE)
        self._copy: Any = numpy.empty(BATCH_BYTES // 4, numpy.uint32)
        self._size = (len(rest) - PAGE) // 2
        # a row for each place at which a record may be; without its fields, which would be copied one by one
        self._rows: Any = numpy.ndarray((self._size // 8,), f"V{RECORD.itemsize}", rest, PAGE + HEADER, (8,))

    def wait(self, timeout_ms: int, *others: int) -> None:
        """Until there is data, here or at these file descriptors, for so long at most, or until a signal: select.poll would
        go on after one."""
        asked = ctypes.create_string_buffer(b"".join(struct.pack("ihh", fd, POLLIN, 0) for fd in (self._fd, *others)))
        if _libc.poll(asked, ctypes.c_ulong(1 + len(others)), timeout_ms) < 0 and ctypes.get_errno() != errno.EINTR:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

    def read(self) -> Any:
        """Copies of the records that are finished, in order, of BATCH_BYTES at a time: an array of RECORD, of length 0
        without any. A record that is still being written ends them."""
        position, end = self._consumer[0], self._producer[0]
        self._barrier()
        start = position % self._size >> 3  # in units of 8 bytes, as all here
        at, stop = 0, min(end - position, BATCH_BYTES) >> 3
        self.behind = end - position > BATCH_BYTES
        # Headers are found in a copy: walking through memory that is in no cache takes twice the time. Records are taken
        # from the ring, since a header and its record were copied in no order.
        numpy.copyto(self._copy[:2 * stop], self._words[2 * start:2 * (start + stop)])
        headers, found, discarded = memoryview(self._copy), [], DISCARDED  # locals: this loop is what a record costs
        while at < stop:
            length = headers[at + at]
            if length < discarded:
                found.append(at)
            elif length & BUSY:
                break
            else:
                length -= discarded
            at += length + HEADER + 7 >> 3
        self._barrier()
        records = self._rows[(numpy.array(found, numpy.intp) + start) % len(self._rows)].view(RECORD)
        self._barrier()
        self._consumer[0] = position + (at << 3)
        return records

    def close(self) -> None:
        """Let go of the memory. The ring itself goes with the last program and file descriptor."""
        del self._rows, self._words
        self._consumer.release()
        self._producer.release()


def open_ring(fd: int, barrier: Callable[[], None] | None = None) -> Ring:
    """The ring buffer of a map. OSError where it cannot be mapped."""
    size = map_entries(fd)
    return Ring(mmap.mmap(fd, PAGE, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE),
                mmap.mmap(fd, PAGE + 2 * size, mmap.MAP_SHARED, mmap.PROT_READ, offset=PAGE), barrier, fd)


def map_counters(fd: int, writable: bool = False, words: int = 1) -> memoryview:
    """The values, of so many u64 each, of an array map that was made with BPF_F_MMAPABLE, live: reading one is no system
    call."""
    count = map_entries(fd) * words
    access = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
    return memoryview(mmap.mmap(fd, -(-8 * count // PAGE) * PAGE, mmap.MAP_SHARED, access)).cast("Q")[:count]


def map_entries(fd: int) -> int:
    """max_entries of a map: of a ring buffer, its bytes."""
    found = re.search(r"^max_entries:\s*(\d+)$", Path(f"/proc/self/fdinfo/{fd}").read_text(), re.M)
    if not found:
        raise OSError(errno.EINVAL, "not a BPF map")
    return int(found[1])
