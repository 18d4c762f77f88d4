"""Which characters an output stream can show, and how those are written that must not or cannot reach it."""

from __future__ import annotations

import codecs

_PLAIN = {"→": "->", "▸": ">", "µ": "u", "·": "|", "✗": "x", "✓": "+", "–": "-", "…": "...", "×": "x",
          "⇄": "<->", "├": "|", "└": "`", "│": "|"}


class Alphabet:
    """Makes text safe for a stream of this encoding. Everything that is printed goes through show()."""

    def __init__(self, encoding: str) -> None:
        try:
            self._encoding = codecs.lookup(encoding).name
        except LookupError:
            self._encoding = "ascii"

    def show(self, text: str) -> str:
        r"""Control characters, escape sequences, bidi overrides and lone surrogates become `\x1b`, `\u202e`, ...;
        what the encoding lacks becomes ASCII."""
        if not text.isprintable():
            text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
        if text.isascii() or self._encoding == "utf-8":
            return text
        return "".join(self._plain(c) for c in text)

    def _plain(self, char: str) -> str:
        try:
            char.encode(self._encoding)
        except UnicodeEncodeError:
            return _PLAIN.get(char) or char.encode("ascii", "backslashreplace").decode()
        return char
