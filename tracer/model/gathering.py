"""nftables' trace messages put together: of one packet in one base chain and the chains that it calls."""

from __future__ import annotations

from collections import OrderedDict

from tracer.model.probes import Trace

FINAL = ("accept", "drop", "queue", "stolen")


def ends(trace: Trace) -> bool:
    """Does the packet leave the base chain with it?"""
    return trace.kind == "policy" or trace.verdict in FINAL


class Gathering:
    """`kept`: how many packets in base chains are remembered while their messages come."""

    def __init__(self, kept: int) -> None:
        self._kept = kept
        self._open: OrderedDict[tuple[int, int, str, str], list[Trace]] = OrderedDict()  # by namespace, id, family, table

    def add(self, trace: Trace) -> list[Trace] | None:
        """The list of its messages where it is the first one; those behind it come to the same list."""
        place = (trace.netns, trace.id, trace.family, trace.table)
        begun = None
        if trace.network:
            begun = self._open[place] = [trace]
            if len(self._open) > self._kept:
                self._open.popitem(last=False)
        elif place in self._open:
            self._open[place].append(trace)
        if ends(trace):
            self._open.pop(place, None)
        return begun
