"""The reader on the kernel's own ring buffer."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from tests.functional.filling import EVENTS, filled_ring
from tracer.kernel.ring import map_counters, membarrier, no_barrier, open_ring
from tracer.model.layout import Place

BARRIERS = pytest.mark.parametrize("barrier", [no_barrier, membarrier])


@BARRIERS
def test_nothing_is_lost_where_there_is_room(barrier: Callable[[], None]) -> None:
    with filled_ring() as (program, fill):
        ring, lost = open_ring(program.map_fd("events"), barrier), map_counters(program.map_fd("lost"))
        for first in range(0, 200 * EVENTS, 20 * EVENTS):  # several laps
            for more in range(first, first + 20 * EVENTS, EVENTS):
                fill(more)
            records = ring.read()
            assert records["skb"].tolist() == list(range(first, first + 20 * EVENTS))
            assert records["tail"][:, :8].copy().view("u8")[:, 0].tolist() == records["skb"].tolist()
            assert ((records["place"] == Place.HOOK) == (records["skb"] % 3 == 0)).all()
        assert sum(lost) == 0
        ring.close()


@BARRIERS
def test_writers_on_both_sides_of_the_reader(barrier: Callable[[], None]) -> None:
    """Each writer's events are read in its order; what was not read was counted as lost."""
    runs = 1500
    with filled_ring() as (program, fill):
        ring, lost = open_ring(program.map_fd("events"), barrier), map_counters(program.map_fd("lost"))

        def write(base: int) -> None:
            for i in range(runs):
                fill(base + i * EVENTS)

        writers = [threading.Thread(target=write, args=(base,)) for base in (0, 1 << 40)]
        for writer in writers:
            writer.start()
        read: list[int] = []
        while any(writer.is_alive() for writer in writers):
            read += ring.read()["skb"].tolist()
        read += ring.read()["skb"].tolist()
        for side in (0, 1):
            mine = [number for number in read if number >> 40 == side]
            assert mine == sorted(set(mine))
        assert len(read) + sum(lost) == 2 * runs * EVENTS
        ring.close()


def test_loss_is_counted_by_place() -> None:
    with filled_ring() as (program, fill):
        ring, lost = open_ring(program.map_fd("events")), map_counters(program.map_fd("lost"))
        for first in range(0, 100 * EVENTS, EVENTS):
            fill(first)
        records = ring.read()
        hooks = int((records["place"] == Place.HOOK).sum())
        assert lost[Place.HOOK] == -(-100 * EVENTS // 3) - hooks > 0
        assert lost[Place.QUEUE] == 100 * EVENTS * 2 // 3 - (len(records) - hooks) > 0
        assert sum(lost) == lost[Place.HOOK] + lost[Place.QUEUE]
        fill(0)
        assert len(ring.read()) == EVENTS  # there is room again
        ring.close()


def test_data_ends_the_wait() -> None:
    with filled_ring() as (program, fill):
        ring = open_ring(program.map_fd("events"))
        began = time.monotonic()
        ring.wait(50)
        assert 0.04 < time.monotonic() - began < 5
        later = threading.Timer(0.1, fill, (0,))
        later.start()
        began = time.monotonic()
        ring.wait(30_000)
        assert time.monotonic() - began < 10
        later.join()
        assert len(ring.read()) == EVENTS
        ring.close()
