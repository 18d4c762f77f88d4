"""The share of new journeys: halved for each brake, doubled in each second without one."""

from __future__ import annotations

from tracer.kernel.shedding import ALL, LEAST, Shedding


def test_the_share_follows_the_brakes() -> None:
    cell = memoryview(bytearray(8)).cast("Q")
    shedding = Shedding(cell, 0.0)
    assert cell[0] == ALL and shedding.adjust(1.0) == 1.0
    shares = []
    for _ in range(3):
        cell[0] = 0
        shares.append(shedding.adjust(2.0))
    assert shares == [0.5, 0.25, 0.125] and cell[0] == ALL // 8
    assert shedding.adjust(3.0) == 0.125  # what it was since the last call
    assert shedding.adjust(3.5) == 0.25 and cell[0] == int(ALL / 4 * 2 ** 0.5)
    assert shedding.adjust(1e9) < 0.4  # an age later
    assert shedding.adjust(1e9) == 1.0 and cell[0] == ALL
    for _ in range(100):
        cell[0] = 0
        shedding.adjust(1e9)
    assert cell[0] == ALL * LEAST  # never so little that nothing is followed again
