"""A part of the journeys, whatever shows them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tracer.model.journey import Journey
from tracer.model.report import Start, Summary
from tracer.render.base import Renderer


class ChosenRenderer:
    """Hands on those journeys that `chosen` says yes to, `count` at most. Notes, which are about several, are left out;
    the summary is of all that was read."""

    def __init__(self, renderer: Renderer, chosen: Callable[[Journey], bool],
                 count: int | None = None) -> None:
        self._renderer, self._chosen, self._left = renderer, chosen, count

    def enough(self) -> bool:
        return self._left == 0

    def header(self, start: Start) -> None:
        self._renderer.header(start)

    def journey(self, journey: Journey, verbose: bool = False, copies: Sequence[Journey] = ()) -> None:
        if self._chosen(journey) and not self.enough():
            self._left = None if self._left is None else self._left - 1
            self._renderer.journey(journey, verbose, copies)

    def note(self, text: str) -> None:
        pass

    def warning(self, text: str) -> None:
        self._renderer.warning(text)

    def summary(self, summary: Summary) -> None:
        self._renderer.summary(summary)
