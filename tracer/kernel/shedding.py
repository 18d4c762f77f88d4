"""How many of the new journeys are begun when events come faster than they are read.

The kernel brakes (bpf/follow.h): it begins none any more once half of the ring is full, so that there is room for the hops
of those that are under way. Here the share loses a quarter for each brake, and doubles in each second without one.
"""

from __future__ import annotations

ALL = 1 << 32
LEAST = 1 / 4096
LEFT = 0.75  # by a brake: much less, and the reader waits for events before the share has risen again


class Shedding:
    def __init__(self, cell: memoryview, now: float) -> None:
        """`cell`: the kernel's map `share`. `now`, here and below: any clock, in seconds."""
        self._cell, self._when = cell, now
        self.share = 1.0  # of the journeys that begin, how many are followed; fewer since the last brake
        cell[0] = ALL

    def adjust(self, now: float) -> None:
        """To be called whenever the ring was read to its end: releases the brake."""
        if self._cell[0] == 0:
            self.share = max(self.share * LEFT, LEAST)
        else:
            self.share = min(self.share * 2 ** min(now - self._when, 12), 1.0)
        self._when = now
        self._cell[0] = int(self.share * ALL)
