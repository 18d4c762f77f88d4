"""A row a hop, for spreadsheets and data frames."""

from __future__ import annotations

import csv
from typing import Any, TextIO

from tracer.model.journey import Hop, Journey
from tracer.render.collected import Collected, LiveCollected

COLUMNS = ("journey", "parent", "kind", "seq", "wall_ns", "proto", "src", "sport", "dst", "dport", "length", "t_ns", "node",
           "device", "stage", "role", "bridge", "conntrack", "rules", "rewrite", "route", "detail", "end", "end_node",
           "reason", "cause", "complete")
_FORMULA = ("=", "+", "-", "@")  # what a spreadsheet would compute


class CsvRenderer(Collected):
    """Journeys without a hop have one row. Of a run's other words nothing is told."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self._rows = csv.writer(stream, lineterminator="\n")
        self._rows.writerow(COLUMNS)

    def take(self, journey: Journey) -> None:
        for hop in journey.hops or (None,):
            self._rows.writerow(map(_cell, (*_packet(journey), *_hop(hop), *_end(journey))))


class LiveCsvRenderer(CsvRenderer, LiveCollected):
    """The same for live traffic."""


def _packet(one: Journey) -> tuple[Any, ...]:
    packet = one.packet
    return (one.id, one.parent, one.kind, one.seq, one.wall_ns, packet.proto, packet.src, packet.sport, packet.dst,
            packet.dport, packet.length)


def _hop(hop: Hop | None) -> tuple[Any, ...]:
    if hop is None:
        return (None,) * 11
    rules = "; ".join(f"{rule.rule or rule.chain} {rule.verdict}" for rule in hop.rules)
    changes = [] if hop.rewrite is None else [
        f"{name} {change[0]} > {change[1]}" for name in ("src", "sport", "dst", "dport")
        if (change := getattr(hop.rewrite, name))]
    route = hop.route and f"{hop.route.destination or ''} dev {hop.route.device or ''} table {hop.route.table}".strip()
    return (hop.t_ns, hop.node, hop.device, hop.stage.value, hop.role.value if hop.role else None, hop.bridge, hop.conntrack,
            rules, "; ".join(changes), route, hop.detail)


def _end(one: Journey) -> tuple[Any, ...]:
    cause = next((cause.name for cause in one.end.causes if not cause.remark), None)
    return one.end.result.value, one.end.node, one.end.reason, cause, one.complete


def _cell(value: Any) -> Any:
    """Text from outside: no control characters, and nothing that a spreadsheet takes for a formula."""
    if not isinstance(value, str):
        return value
    text = "".join(c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode() for c in value)
    return f"'{text}" if text.startswith(_FORMULA) else text
