"""How many of the new journeys are begun when events come faster than they are read.

The kernel brakes (bpf/follow.h): it begins none any more once half of the ring is full, so that there is room for the hops
of those that are under way. Here the share is halved for each brake, and doubles in each second without one.
"""

from __future__ import annotations

ALL = 1 << 32
LEAST = 1 / 4096


class Shedding:
    def __init__(self, cell: memoryview, now: float) -> None:
        """`cell`: the kernel's map `share`. `now`, here and below: any clock, in seconds."""
        self._cell, self._when = cell, now
        self._share = 1.0
        cell[0] = ALL

    def adjust(self, now: float) -> float:
        """To be called after each read of the ring: releases the brake. The share that was begun since the last call, at
        least, but for the time since a brake."""
        before = self._share
        if self._cell[0] == 0:
            self._share = max(before / 2, LEAST)
        else:
            self._share = min(before * 2 ** min(now - self._when, 12), 1.0)
        self._when = now
        self._cell[0] = int(self._share * ALL)
        return min(before, self._share)
