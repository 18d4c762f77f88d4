"""The share of new journeys: a quarter less for each brake, doubled in each second without one."""

from __future__ import annotations

from tracer.kernel.shedding import ALL, LEAST, Shedding


def test_the_share_follows_the_brakes() -> None:
    cell = memoryview(bytearray(8)).cast("Q")
    shedding = Shedding(cell, 0.0)
    shedding.adjust(1.0)
    assert cell[0] == ALL and shedding.share == 1.0
    for share in (0.75, 0.5625, 0.421875):
        cell[0] = 0
        shedding.adjust(2.0)
        assert shedding.share == share and cell[0] == ALL * share
    shedding.adjust(2.5)
    assert shedding.share == 0.421875 * 2 ** 0.5
    shedding.adjust(1e9)  # an age later
    assert shedding.share == 1.0 and cell[0] == ALL
    for _ in range(100):
        cell[0] = 0
        shedding.adjust(1e9)
    assert cell[0] == ALL * LEAST  # never so little that nothing is followed again
