"""Ctrl-C and SIGTERM as a question that a loop asks: as an exception, they would tear a journey from the output."""

from __future__ import annotations

import signal
from types import TracebackType
from typing import Any


class Stopping:
    """A context manager."""

    def __init__(self) -> None:
        self.asked = False

    def __enter__(self) -> Stopping:
        self._before: dict[int, Any] = {number: signal.signal(number, self._stop)
                                        for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _stop(self, _signal: int, _frame: object) -> None:
        self.asked = True
