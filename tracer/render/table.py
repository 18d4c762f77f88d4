"""The end of live traffic for a person: a table by flow, and how long each step of the busiest ones took."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from tracer.model.journey import Result
from tracer.model.report import FlowSummary, Latency, LiveSummary, OneWay, Spot
from tracer.render import words
from tracer.render.line import Lines, Piece
from tracer.render.styles import DIM, NAME, RESULT, WARNING

_FLOWS, _DETAILED = 20, 3  # rows of the table; flows whose steps are shown
_EXPLAINED = 3  # bridges whose roles are told in sentences
_COLUMNS = ("conns", "journeys", "delivered", "dropped", "median", "p99")
_NARROW, _SPARED = 60, ("conns", "delivered")  # columns of a terminal, below which these go: the others tell nearly as much
_GAP = 2
_MOST = 60  # for a row's name; a longer one has a line of its own
_Row = tuple[list[Piece], Sequence[str]]  # name and numbers

_WORDS = {Result.LEFT: "left this host", Result.RELAYED: "relayed to a proxy", Result.UNKNOWN: "not seen to end"}


def totals(summary: LiveSummary) -> str:
    """"5,126 journeys in 12.0 s: 5,120 delivered, 3 dropped (2 NETFILTER_DROP, 1 NO_SOCKET), 3 left this host."."""
    said = []
    for end in Result:
        if number := summary.ends.get(end.value):
            why = f" ({_counts(summary.drops)})" if end is Result.DROPPED and summary.drops else ""
            said.append(f"{number:,} {_WORDS.get(end, end.value)}{why}")
    journeys = f"{summary.journeys:,} {'journey' if summary.journeys == 1 else 'journeys'}"
    return f"{journeys} in {summary.seconds:.1f} s" + (f": {', '.join(said)}." if said else ".")


def roles(summary: LiveSummary) -> list[str]:
    if len(summary.bridges) <= _EXPLAINED:
        return words.bridge_roles(summary.bridges, routed=True)
    return [f"Bridges: {_roles(summary.bridges)}."]


def losses(summary: LiveSummary) -> Iterator[str]:
    if any(summary.lost.values()):
        yield f"{words.lost(summary.lost)}: a hop that is not shown may have happened all the same."
    if summary.share < 1:
        yield (f"more came than could be followed: {words.sampled(summary.share)} at the worst, and all numbers are of "
               "those.")


def table(summary: LiveSummary, lines: Lines, verbose: bool) -> Iterator[list[Piece]]:
    """Its lines. Latencies are those of the way there, from first hop to delivery."""
    if not summary.flows:
        return
    shown = summary.flows if verbose else summary.flows[:_FLOWS]
    columns = [name for name in _COLUMNS if name not in _SPARED or lines.width is None or lines.width >= _NARROW]
    named: list[_Row] = [([(_name(flow), NAME)], _cells(flow, columns)) for flow in shown]
    head, *rows = _grid([([("flow", DIM)], columns), *named], lines)
    yield from head
    for flow, row in zip(shown, rows, strict=True):
        yield from row
        if flow.drops:
            yield [(f"  ✗ {_counts(flow.drops)}", RESULT[Result.DROPPED])]
        if flow.incomplete:
            yield [(f"  ! {flow.incomplete:,} may lack a hop", WARNING)]
        if verbose and flow.bridges:
            yield [(f"  {_roles(flow.bridges)}", DIM)]
    journeys = summary.other_journeys + sum(flow.journeys for flow in summary.flows[len(shown):])
    dropped = summary.other_dropped + sum(sum(flow.drops.values()) for flow in summary.flows[len(shown):])
    if journeys:
        yield [(f"and {journeys:,} {'journey' if journeys == 1 else 'journeys'} of other flows, {dropped:,} dropped", DIM)]
    for flow in shown[:_DETAILED] if verbose else ():
        for one_way, label in ((flow.request, "there"), (flow.reply, "back")):
            yield from _steps(flow, one_way, label, lines)


def _name(flow: FlowSummary) -> str:
    return f"{flow.proto} {flow.name}"


def _cells(flow: FlowSummary, columns: Sequence[str]) -> list[str]:
    median, p99 = _times(flow.request.latency)
    cells = {"conns": "" if flow.connections is None else f"{flow.connections:,}", "journeys": f"{flow.journeys:,}",
             "delivered": f"{flow.delivered:,}", "dropped": f"{sum(flow.drops.values()):,}", "median": median, "p99": p99}
    return [cells[name] for name in columns]


def _steps(flow: FlowSummary, way: OneWay, label: str, lines: Lines) -> Iterator[list[Piece]]:
    if not way.steps:
        return
    yield []
    rows: list[_Row] = [([(_name(flow), NAME), (f" {label}", "")], [f"{way.journeys:,}", *_times(way.latency)])]
    rows += [([(f"  {_spot(step.before)} → {_spot(step.after)}", "")],
              [f"{step.latency.count:,}", *_times(step.latency)]) for step in way.steps]
    for row in _grid(rows, lines):
        yield from row
    if way.more_steps:
        yield [(f"  and {way.more_steps:,} times another step", DIM)]


def _grid(rows: Sequence[_Row], lines: Lines) -> list[list[list[Piece]]]:
    """The lines of each row: one if the name leaves room for the numbers, else two."""
    widths = [_GAP + max(map(len, column)) for column in zip(*(cells for _, cells in rows), strict=True)]
    names = [lines.wide(name) for name, _ in rows]
    room = min(_MOST, max(names))
    if lines.width is not None:
        room = max(0, min(room, lines.width - sum(widths)))
    made = []
    for (name, cells), wide in zip(rows, names, strict=True):
        numbers = "".join(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True)).rstrip()
        made.append([[*name, (" " * (room - wide) + numbers, "")]] if wide <= room else
                    [list(name), [(" " * room + numbers, "")]])
    return made


def _spot(spot: Spot) -> str:
    return " ".join(filter(None, (spot.node, spot.device, spot.stage)))


def _times(latency: Latency | None) -> tuple[str, str]:
    return (words.spelled(latency.median_ns), words.spelled(latency.p99_ns)) if latency else ("", "")


def _roles(bridges: Mapping[str, Sequence[str]]) -> str:
    return ", ".join(f"{name} ({' and '.join(roles)})" for name, roles in bridges.items())


def _counts(drops: Mapping[str, int]) -> str:
    return ", ".join(f"{number:,} {why}" for why, number in drops.items())
