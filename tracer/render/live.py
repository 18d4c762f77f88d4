"""Live traffic for a person: a line a journey, and on a terminal a status line below them that does not scroll away."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from rich.console import Console

from tracer.model.journey import Journey, Result
from tracer.model.report import LiveStart, LiveStatus, LiveSummary, Seen
from tracer.render import table, words
from tracer.render.line import Lines, Piece
from tracer.render.styles import DIM, NAME, RESULT, WARNING
from tracer.render.text import TextRenderer

_CLEAR = "\r\x1b[2K"
_LEGEND = "~ not seen itself: concluded from what was seen; -v says from what"


class LiveRenderer:
    """Each call is one write, flushed, so that a reader at the other end of a pipe has a journey when it has ended. The
    status line is the last one of the terminal and has no line end: it is wiped and written again around each line, which
    leaves nothing of it behind where the process is killed, and needs no thread."""

    def __init__(self, console: Console, verbose: bool = False) -> None:
        self._console, self._verbose = console, verbose
        self._file = console.file
        self._fixed = console.is_interactive and self._file.isatty()  # is_interactive is also true where colours are forced
        self._status = ""
        self._legend_given = False
        self._resized()

    def header(self, start: LiveStart) -> None:
        self._write(self._lines.paint([("following ", ""), (start.following or "every packet", NAME)]) + "\n")
        with self._aside():
            self._text.told(start.missing, start.notes)

    def journey(self, journey: Journey, copies: Sequence[Journey] = ()) -> None:
        if self._verbose:
            with self._aside():
                self._text.journey(journey, True, copies)
            return
        text = self._lines.of(journey, copies)
        if not self._legend_given and "~" in text:
            self._legend_given = True
            text += self._lines.paint([(_LEGEND, DIM)]) + "\n"
        self._write(text)

    def note(self, text: str) -> None:
        with self._aside():
            self._text.note(text)

    def warning(self, text: str) -> None:
        with self._aside():
            self._text.warning(text)

    def silence(self, seconds: float, seen: Seen) -> None:
        """Nothing matched in so many seconds."""
        self.warning(words.silence(seconds, seen))

    def status(self, status: LiveStatus) -> None:
        """On a terminal; elsewhere nothing."""
        if not self._fixed:
            return
        if self._console.width != self._width:
            self._resized()
        pieces: list[Piece] = []
        for piece in _status(status):
            longer = [*pieces, (" · ", DIM), piece] if pieces else [piece]
            if self._lines.wide(longer) >= self._width:  # a full line would wrap in some terminals
                break
            pieces = longer
        self._status = self._lines.paint(pieces)
        self._write("")

    def summary(self, summary: LiveSummary) -> None:
        self.close()
        self._write("\n")
        self.note(" ".join([table.totals(summary), *table.roles(summary), *summary.notes]))
        for text in table.losses(summary):
            self.warning(text)
        rows = ["", *map(self._lines.paint, table.table(summary, self._lines, self._verbose))]
        self._write("".join(f"{row}\n" for row in rows) if summary.flows else "")

    def close(self) -> None:
        """Leave the terminal clean. May be called more than once, and when writing has failed."""
        if self._status:
            self._status = ""
            with suppress(OSError, ValueError):
                self._file.write(_CLEAR)
                self._file.flush()

    def _resized(self) -> None:
        self._width = self._console.width
        self._lines, self._text = Lines(self._console), TextRenderer(self._console)

    def _write(self, text: str) -> None:
        self._file.write(f"{_CLEAR}{text}{self._status}" if self._status else text)
        self._file.flush()

    @contextmanager
    def _aside(self) -> Iterator[None]:
        """The status line out of the way, for what rich prints."""
        status, self._status = self._status, ""
        if status:
            self._write(_CLEAR)
        yield
        self._status = status
        if status:
            self._write("")


def _status(status: LiveStatus) -> Iterator[Piece]:
    """The most important first: what does not fit is left out."""
    yield f"{status.rate:,.0f}/s", NAME
    yield f"{status.dropped:,} dropped", RESULT[Result.DROPPED] if status.dropped else ""
    if status.lost:
        yield words.lost(status.lost), WARNING
    if status.share < 1:
        yield words.sampled(status.share), WARNING
    yield f"{status.journeys:,} journeys", ""
    for name, journeys in status.talkers:
        yield f"{name} {journeys:,}", DIM
