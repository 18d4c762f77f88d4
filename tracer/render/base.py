"""What every output can be told."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from tracer.model.journey import Journey
from tracer.model.report import Start, Summary


class Renderer(Protocol):
    """Called in the order of the run: header, then journeys, notes and warnings as they come, then summary."""

    def header(self, start: Start) -> None: ...

    def journey(self, journey: Journey, verbose: bool = False, copies: Sequence[Journey] = ()) -> None:
        """One packet's way. `copies` are the journeys of kind "copy" whose parent it is, as far as they are known."""

    def note(self, text: str) -> None:
        """One line by the way, such as what a neighbour lookup took."""

    def warning(self, text: str) -> None: ...

    def summary(self, summary: Summary) -> None: ...
