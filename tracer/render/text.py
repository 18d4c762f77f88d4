"""The output for a person at a terminal, or at the end of a pipe.

How text reaches the console is page.py's.
"""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from tracer.model.journey import BRANCHES, Hop, Journey, Result, Stage
from tracer.model.probes import Missing
from tracer.model.report import Place, Start, Summary
from tracer.render import copies as copied, words
from tracer.render.columns import INDENT, Row
from tracer.render.page import Page
from tracer.render.styles import DIM, NAME, RESULT, REWRITE, ROLE, WARNING

_LEGEND = "~ not seen itself: concluded from what was seen, as the line says"


class PlainConsole(Console):
    """A console that leaves a closed pipe to its caller: rich would end the process with status 1."""

    def on_broken_pipe(self) -> None:
        raise


class TextRenderer(Page):
    """Prints to `console`: laid out for its width if that is a terminal, else one line a hop and no width at all."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self._below_hops = False  # what was printed last is a journey: a blank line sets the next thing apart
        self._legend_given = False
        self._unknown: set[str] = set()  # reasons why rules are not known, each said once

    def header(self, start: Start) -> None:
        line = self._place(start.source) + self._text(" → ") + self._place(start.destination)
        self._paragraph(line + self._text(words.where(start)))
        self.told(start.missing, start.notes)
        self._below_hops = True

    def told(self, missing: Sequence[Missing], notes: Sequence[str]) -> None:
        """What a person must know before the first journey."""
        by_reason: dict[str, list[str]] = {}
        for probe in missing:
            by_reason.setdefault(probe.why, []).append(probe.name)
        for why, names in by_reason.items():
            self._paragraph(self._text(f"! not observed here: {', '.join(names)} ({why})", WARNING))
        for note in notes:
            self.note(note)

    def journey(self, journey: Journey, verbose: bool = False, copies: Sequence[Journey] = ()) -> None:
        """Neighbour lookups, what else a TCP connection needed, and copies by themselves, are shown only if `verbose`:
        note() says the first two in a line each, and the others' place is with their parent's `copies`."""
        if not verbose and (journey.kind in ("arp", *BRANCHES) or words.is_served(journey)):
            return
        hops = list(journey.hops) if verbose else words.shown(journey)
        rows = self._rows(hops, verbose)
        self._columns.fit(rows)
        self._apart()
        style = RESULT[journey.end.result]
        self._print(self._columns.title(self._title(journey), self._text(words.title_end(journey), style)))
        self._print(self._columns.lay_out(rows))
        if said := words.verdict(journey):
            self._paragraph(self._text(said, style), rest=2)
        if journey.end.rule and journey.end.rule.rule:
            self._paragraph(self._text(journey.end.rule.rule, style), INDENT * 2, INDENT * 2 + 2)
        if journey.end.rule and journey.end.rule.owner:
            self._paragraph(self._text(f"owner: {journey.end.rule.owner}"), 2, 9)
        for line in words.perhaps_stopped_by(journey):
            self._paragraph(self._text(line, style), INDENT * 2, INDENT * 2 + 2)
        self._causes(words.causes(journey, verbose))
        if said := words.incomplete(journey):
            self._paragraph(self._text(said, WARNING), rest=2)
        if copies:
            self._copies(copies, verbose)
        if not self._legend_given and any(hop.inferred for one in (journey, *copies) for hop in one.hops):
            self._legend_given = True
            self._paragraph(self._text(_LEGEND, DIM), first=1)
        self._below_hops = True

    def note(self, text: str) -> None:
        self._apart()
        self._paragraph(self._text(text))

    def warning(self, text: str) -> None:
        self._apart()
        self._paragraph(self._text(f"! {text}", WARNING), rest=2)

    def summary(self, summary: Summary) -> None:
        self._below_hops = True
        self._apart()
        style = RESULT[Result.DELIVERED if summary.answered == summary.sent else Result.UNKNOWN]
        said = [words.totals(summary), *words.bridge_roles(summary.bridges, summary.routed), *summary.notes]
        if summary.answered and not summary.bridges:
            said.insert(1, "No bridge took part.")
        self._paragraph(self._text(said[0], style) + self._text("".join(f" {sentence}" for sentence in said[1:])),
                        rest=0)
        for failure in summary.failures:
            self._paragraph(self._text(f"✗ #{failure.seq}: {failure.text}", RESULT[Result.DROPPED]), rest=2)
            self._causes(words.because(failure.cause) if failure.cause else [])
        if losses := words.losses(summary):
            self._paragraph(self._text(f"! {losses}", WARNING), rest=2)

    def _place(self, place: Place) -> Text:
        name = self._text(place.name, NAME)
        return name if place.name == place.address else name + self._text(f" {place.address}")

    def _title(self, journey: Journey) -> Text:
        source, target = words.ends(journey)
        kind = words.packet_name(journey.packet) + words.KINDS.get(journey.kind, "")
        return Text.assemble(self._text(f"{words.number(journey)}{kind}", NAME), "  ", self._text(source, NAME),
                             self._text(" → "), self._text(target, NAME), f"  {journey.packet.length} bytes")

    def _rows(self, hops: Sequence[Hop], verbose: bool) -> list[Row]:
        """Each with the time since the one before that has a time of its own."""
        timed: list[Hop | None] = [None]
        for hop in hops[:-1]:
            timed.append(hop if hop.timed else timed[-1])
        return [self._row(hop, before, verbose) for hop, before in zip(hops, timed, strict=False)]

    def _row(self, hop: Hop, before: Hop | None, verbose: bool) -> Row:
        number, unit = words.step(hop.t_ns - (before.t_ns if before else 0))
        role = ROLE[hop.role] if hop.role else ""
        if before:
            number = number if number.startswith("-") else f"+{number}"
            unit = "" if unit == "µs" else unit
        if not hop.timed:
            number = unit = ""
        stage = "red" if hop.stage is Stage.DROP else ""
        said = self._words(hop, role or stage, verbose)
        below = tuple(self._text(line, DIM) for line in words.each_rule(hop)) if verbose else ()
        return Row("~" if hop.inferred else "", self._text(hop.node, NAME), self._text(hop.device or "–", role),
                   self._text(hop.stage.value, stage), said, number, self._text(unit).plain, below)

    def _words(self, hop: Hop, style: str, verbose: bool) -> Text:
        parts = []
        if tables := words.tables(hop):
            parts.append(self._text(tables))
        elif hop.stage in words.NETFILTER:
            parts.append(self._text("no tables here", DIM))
        if rewrites := words.rewrites(hop):
            parts.append(self._text(rewrites, REWRITE))
        if hop.detail:
            parts.append(self._text(hop.detail, style))
        if hop.rules_unknown and (verbose or hop.rules_unknown not in self._unknown):
            self._unknown.add(hop.rules_unknown)
            parts.append(self._text(f"rules: {hop.rules_unknown}", WARNING))
        if verbose:
            parts += [self._text(said, DIM) for said in words.explained(hop)]
        return Text("; ").join(parts)

    def _copies(self, copies: Sequence[Journey], verbose: bool) -> None:
        if not verbose:
            self._paragraph(self._text(copied.in_short(copies)), INDENT, INDENT + 2)
            return
        self._paragraph(self._text(f"+ {copied.count_of(copies)}"), INDENT)
        for group in copied.groups(copies):
            style = RESULT[group[0].end.result]
            like = "" if len(group) == 1 else f"; the way of the one in {copied.node_of(group[0])}"
            self._paragraph(self._text(copied.of(group), style) + self._text(f"{like}:"), INDENT + 2, INDENT + 4)
            hops = group[0].hops
            rows = self._rows(hops, verbose)
            self._columns.fit(rows)
            self._print(self._columns.lay_out(rows, INDENT * 2))

    def _apart(self) -> None:
        if self._below_hops:
            self._print([Text()])
            self._below_hops = False
