"""Journeys with their branches: copies, and the segments of a packet that was cut."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from tracer.model.journey import BRANCHES, Journey


def families(journeys: Iterable[Journey]) -> Iterator[tuple[Journey, tuple[Journey, ...]]]:
    """Each that is none itself, in their order."""
    told = tuple(journeys)
    branches: dict[int, list[Journey]] = {}
    for journey in told:
        if journey.kind in BRANCHES and journey.parent is not None:
            branches.setdefault(journey.parent, []).append(journey)
    for journey in told:
        if journey.kind not in BRANCHES:
            yield journey, tuple(branches.get(journey.id, ()))
