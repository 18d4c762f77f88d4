"""The tables of `topo` for a person: what each means, the command that would show it, its rows, and what to make of them."""

from __future__ import annotations

from collections.abc import Sequence

from rich.cells import cell_len

from tracer.model.picture import Table
from tracer.render.page import Page
from tracer.render.styles import DIM, NAME, WARNING

_GAP = 2
_LAST = 30  # columns that the last cell is given at least: it may wrap
_STYLES = {"!": WARNING, ">": "bold green", "": ""}


class TopoTables(Page):
    def show(self, tables: Sequence[Table]) -> None:
        before: Table | None = None
        for table in tables:
            if before:
                self._print([self._text("")])
            self._table(table, before)
            before = table

    def _table(self, table: Table, before: Table | None) -> None:
        """What it means is said of the first of several that are alike."""
        self._paragraph(self._text(table.title, NAME))
        if before is None or before.meaning != table.meaning:
            self._paragraph(self._text(table.meaning, DIM), rest=0)
            self._paragraph(self._text(f"by hand: {table.command}", DIM), rest=len("by hand: "))
        if table.rows:
            self._rows(table)
        elif not table.notes:
            self._paragraph(self._text("none"), 2)
        for note in table.notes:
            self._paragraph(self._text(note), 0, 2)

    def _rows(self, table: Table) -> None:
        shown = [[self._alphabet.show(cell) for cell in row.cells] for row in table.rows]
        widths = [max(cell_len(one) for one in column) for column in zip(table.columns, *shown, strict=True)]
        edge = self._columns.width
        whole = 2 + sum(widths) + _GAP * (len(widths) - 1)
        if edge is not None and whole > edge and 2 + sum(widths[:-1]) + _GAP * (len(widths) - 1) + _LAST > edge:
            self._folded(table, widths, edge)
            return
        self._line("", "", table.columns, widths, DIM)
        before: Sequence[str] = ()
        for row in table.rows:
            self._line(row.mark, row.note, _unrepeated(row.cells, before), widths, _STYLES[row.mark])
            before = row.cells

    def _line(self, mark: str, note: str, cells: Sequence[str], widths: Sequence[int], style: str) -> None:
        """The last cell wraps in its own column."""
        line = self._text(f"{mark:2}", style)
        for cell, width in zip(cells[:-1], widths, strict=False):
            text = self._text(cell, style)
            line.append_text(text).append(" " * (width - text.cell_len + _GAP))
        margin = line.cell_len
        room = None if self._columns.width is None else max(self._columns.width - margin, _LAST)
        parts = self._columns.fold(self._text(cells[-1], style), room)
        self._print([line + parts[0], *(self._text(" " * (margin + 2)) + part for part in parts[1:])])
        self._note(note)

    def _folded(self, table: Table, widths: Sequence[int], edge: int) -> None:
        """More columns than the terminal has room for: the first ones in a line, the others below it, by name."""
        fitting = 1
        while fitting < len(widths) and 2 + sum(widths[:fitting + 1]) + _GAP * fitting <= edge:
            fitting += 1
        self._line("", "", table.columns[:fitting], widths[:fitting], DIM)
        for row in table.rows:
            self._line(row.mark, "", row.cells[:fitting], widths[:fitting], _STYLES[row.mark])
            rest = [f"{name} {cell}" if name else cell for name, cell in
                    zip(table.columns[fitting:], row.cells[fitting:], strict=True) if cell and cell != "–"]
            if rest:
                self._paragraph(self._text("  ".join(rest), DIM), 6, 8)
            self._note(row.note)

    def _note(self, note: str) -> None:
        if note:
            self._paragraph(self._text(note, DIM), 6, 8)


def _unrepeated(cells: Sequence[str], before: Sequence[str]) -> list[str]:
    """Without the first cells, as far as they are those of the row above."""
    same = next((at for at, (one, other) in enumerate(zip(cells, before, strict=False)) if one != other), len(before))
    return ["" if at < same and at < len(cells) - 1 else cell for at, cell in enumerate(cells)]
