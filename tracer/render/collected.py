"""The journeys of a run, and nothing else of it: for outputs that are about them alone."""

from __future__ import annotations

from collections.abc import Sequence

from tracer.model.journey import Journey
from tracer.model.report import LiveStart, LiveStatus, LiveSummary, Seen, Start, Summary


class Collected:
    """Takes what a run of ping tells. Copies come behind their originals."""

    def __init__(self) -> None:
        self.journeys: list[Journey] = []

    def take(self, journey: Journey) -> None:
        self.journeys.append(journey)

    def header(self, start: Start | LiveStart) -> None: ...

    def journey(self, journey: Journey, verbose: bool = False, copies: Sequence[Journey] = ()) -> None:
        for one in (journey, *copies):
            self.take(one)

    def note(self, text: str) -> None: ...

    def warning(self, text: str) -> None: ...

    def summary(self, summary: Summary | LiveSummary) -> None: ...


class LiveCollected(Collected):
    """Takes what a run of live tells."""

    def journey(self, journey: Journey, copies: Sequence[Journey] = ()) -> None:  # type: ignore[override]
        for one in (journey, *copies):
            self.take(one)

    def status(self, status: LiveStatus) -> None: ...

    def silence(self, seconds: float, seen: Seen) -> None: ...

    def close(self) -> None: ...
