"""The way that a packet should take, as ways of packets are shown; and as JSON."""

from __future__ import annotations

import json
from typing import TextIO

from rich.text import Text

from tracer.model.journey import Journey, Result, endpoint
from tracer.render import words
from tracer.render.columns import INDENT
from tracer.render.json_lines import journey_fields
from tracer.render.styles import DIM, NAME, RESULT
from tracer.render.text import TextRenderer
from tracer.render.topo_json import SCHEMA

_LIMITS = ("By the tables as they are now, for a connection's first packet; nothing was sent. Not looked at: tc filters, "
           "XDP, IPsec, sizes, and whether a program listens where it arrives.")
_ENDS = {Result.DELIVERED: "arrives", Result.LEFT: "leaves this host", Result.DROPPED: "✗ is dropped",
         Result.UNKNOWN: "? not told to its end"}


class ExpectedText(TextRenderer):
    def expected(self, journey: Journey, verbose: bool) -> None:
        """`verbose`: with each rule, and hooks without tables."""
        rows = self._rows(list(journey.hops) if verbose else words.shown(journey), verbose)
        self._columns.fit(rows)
        style, end = RESULT[journey.end.result], journey.end
        source, target = words.ends(journey)
        goal = endpoint(target, journey.packet.dport)
        title = Text.assemble(self._text("expected  ", DIM), self._text(f"{journey.packet.proto}  {source} → {goal}", NAME))
        self._print(self._columns.title(title, self._text(_ENDS[end.result], style)))
        self._print(self._columns.lay_out(rows))
        if end.result is Result.UNKNOWN:
            self._paragraph(self._text(f"? {end.detail}", style), rest=2)
        elif said := words.verdict(journey):
            self._paragraph(self._text(said, style), rest=2)
        if end.rule and end.rule.rule:
            self._paragraph(self._text(end.rule.rule, style), INDENT * 2, INDENT * 2 + 2)
        if end.rule and end.rule.owner:
            self._paragraph(self._text(f"owner: {end.rule.owner}"), 2, 9)
        self._causes(words.causes(journey, verbose))
        self._paragraph(self._text(_LIMITS, DIM), rest=0)


def write_expected(journey: Journey, stream: TextIO) -> None:
    stream.write(json.dumps({"type": "expected", "schema": SCHEMA, **journey_fields(journey)}) + "\n")
