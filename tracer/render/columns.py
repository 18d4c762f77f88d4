"""Lays hops out for one terminal width: columns where there is room, two lines a hop where there is not.

Nothing is ever cut: what does not fit its column goes on below, in the same column. In a pipe (width None) nothing wraps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from rich.console import Console
from rich.text import Text

INDENT = 3
_GAP = 2
_STAGE = len("postrouting")  # the longest of them
_NUMBER, _UNIT = len("+999.9"), len(" µs")
_LEAST_WORDS = 24  # with less room for the words, a hop takes two lines
_COMFORT = 80  # lines end here where there is more room and no need for it
_READABLE = 100  # and so do paragraphs
_MOST_PAD = 80  # in a pipe: longer words push their own line's time to the right, and no other's


@dataclass(frozen=True, slots=True)
class Row:
    """One hop's cells."""

    mark: str  # one character for the margin, or ""
    node: Text
    device: Text
    stage: Text
    words: Text
    number: str  # "+3.4"
    unit: str  # "µs", or "" where it goes without saying
    below: tuple[Text, ...] = ()  # lines of their own behind the words; in a pipe they follow in the same line


class Columns:
    """Widths are kept from one journey to the next and only grow, so that a request and its reply line up."""

    def __init__(self, console: Console, width: int | None) -> None:
        self._console = console
        self.width = width
        self._node = self._device = len("host")
        self._words = 0

    @property
    def edge(self) -> int | None:
        """Where the lines end. None in a pipe."""
        if self.width is None:
            return None
        return min(self.width, max(_COMFORT, self._fixed + self._words))

    @property
    def _fixed(self) -> int:
        return INDENT + self._node + self._device + _STAGE + _NUMBER + _UNIT + 4 * _GAP - 1

    def fit(self, rows: Sequence[Row]) -> None:
        """Take these rows' widths into account."""
        limit = None if self.width is None else max(8, self.width // 6)
        for row in rows:
            self._node = max(self._node, min(row.node.cell_len, limit or row.node.cell_len))
            self._device = max(self._device, min(row.device.cell_len, limit or row.device.cell_len, 20))
            self._words = max(self._words, row.words.cell_len, *(line.cell_len for line in row.below))

    def lay_out(self, rows: Sequence[Row], indent: int = INDENT) -> list[Text]:
        """The lines of rows that fit() has seen."""
        if self.width is None:
            rows = [replace(row, words=Text("; ").join((row.words, *row.below)), below=()) for row in rows]
            words = min(max((row.words.cell_len for row in rows), default=0), _MOST_PAD)
        else:
            words = (self.edge or 0) - self._fixed - (indent - INDENT)
            if words < _LEAST_WORDS:
                return [line for row in rows for line in self._two_lines(row, indent)]
        return [line for row in rows for line in self._columns(row, indent, words)]

    def wrapped(self, text: Text, first: int = 0, rest: int = INDENT) -> list[Text]:
        """A paragraph: its first line indented by `first`, the others by `rest`."""
        width = None if self.width is None else min(self.width, max(self.edge or 0, _READABLE)) - max(first, rest)
        return _indented(self.fold(text, width), first, rest)

    def title(self, left: Text, right: Text) -> list[Text]:
        """`right` at the lines' end; below `left` where both do not fit one line."""
        edge = self.edge
        if edge is None:
            return [left + Text("  ") + right]
        room = edge - left.cell_len - right.cell_len
        if room >= _GAP:
            return [left + Text(" " * room) + right]
        below = self.wrapped(right, INDENT, INDENT)
        return self.wrapped(left) + [_pad_left(line, edge) if len(below) == 1 else line for line in below]

    def _columns(self, row: Row, indent: int, words: int) -> list[Text]:
        widths = (self._node, self._device, _STAGE, words)
        cells = [self.fold(text, None if self.width is None else width)
                 for text, width in zip((row.node, row.device, row.stage, row.words), widths, strict=True)]
        cells[-1] += [part for line in row.below for part in self.fold(line, words)]
        lines = []
        for at in range(max(len(cell) for cell in cells)):
            line = Text(_margin(row.mark if at == 0 else "", indent))
            for cell, width in zip(cells, widths, strict=True):
                text = cell[at] if at < len(cell) else Text()
                line.append_text(text).append(" " * (max(width - text.cell_len, 0) + _GAP))
            if at == 0:
                line.right_crop(1)
                line.append(_time(row))
            line.rstrip()
            lines.append(line)
        return lines

    def _two_lines(self, row: Row, indent: int) -> list[Text]:
        width = self.edge or _COMFORT
        time = _time(row)
        indent = min(indent, width // 3)
        heads = self.fold(Text(" ").join((row.node, row.device, row.stage)), width - indent - len(time) - 1)
        lines = _indented(heads, indent, indent + 2)
        first = Text(_margin(row.mark, indent)) + heads[0]
        lines[0] = first + Text(" " * (width - first.cell_len - len(time))) + Text(time)
        lines[0].rstrip()
        words = [part for text in (row.words, *row.below) if text for part in self.fold(text, width - indent - 2)]
        return lines + _indented(words, indent + 2, indent + 2)

    def fold(self, text: Text, width: int | None) -> list[Text]:
        """Lines of at most `width` columns. None: one line."""
        if width is None or text.cell_len <= width:
            return [text]
        lines = list(text.wrap(self._console, max(width, 4), overflow="fold"))
        for line in lines:
            line.rstrip()
        return lines


def _time(row: Row) -> str:
    return f"{row.number:>{_NUMBER}}" + (f" {row.unit}" if row.unit else "").ljust(_UNIT)


def _margin(mark: str, indent: int) -> str:
    return f"{mark:>{indent - 1}} " if mark else " " * indent


def _indented(lines: Sequence[Text], first: int, rest: int) -> list[Text]:
    return [Text(" " * (rest if at else first)) + line for at, line in enumerate(lines)]


def _pad_left(line: Text, width: int) -> Text:
    """Right-aligned."""
    body = line.copy()
    body.plain = line.plain.strip()
    return Text(" " * (width - body.cell_len)) + body
