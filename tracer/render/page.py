"""How text reaches a person's terminal, or the end of a pipe.

Only ever as rich.text.Text that went through Alphabet.show(): markup in a container's name is not interpreted, an escape
sequence in it is spelled out.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.text import Text

from tracer.render.alphabet import Alphabet
from tracer.render.columns import INDENT, Columns
from tracer.render.styles import NAME

_LABEL = 7  # columns of "cause: "


class Page:
    """Prints paragraphs to `console`: for its width if that is a terminal, else without any."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._alphabet = Alphabet(console.encoding)
        self._columns = Columns(console, console.width if console.is_terminal else None)

    def _causes(self, said: Sequence[tuple[str, str]]) -> None:
        for label, text in said:
            line = self._text(f"{label:{_LABEL}}", NAME) + self._text(text)
            if label == "mend:":  # not broken into lines: it is there to be copied
                self._print([self._text("  ") + line])
            else:
                self._paragraph(line, first=2, rest=2 + _LABEL)

    def _text(self, text: str, style: str = "") -> Text:
        return Text(self._alphabet.show(text), style)

    def _paragraph(self, text: Text, first: int = 0, rest: int = INDENT) -> None:
        self._print(self._columns.wrapped(text, first, rest))

    def _labelled(self, label: Text, text: Text, indent: int = 2) -> None:
        """The text wraps beside its label."""
        head = Text(" " * indent) + label
        width = self._columns.width
        parts = self._columns.fold(text, None if width is None else max(width - head.cell_len, 24))
        self._print([head + parts[0], *(Text(" " * head.cell_len) + part for part in parts[1:])])

    def _print(self, lines: Iterable[Text]) -> None:
        for line in lines:
            # Laid out already: rich must neither wrap nor crop it, nor colour what looks like a number.
            self._console.print(line, soft_wrap=True, highlight=False)
