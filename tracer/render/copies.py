"""Copies of one packet, such as a bridge makes when it floods, and the segments that a large one was cut into: told
together, since sixty of them mostly say the same."""

from __future__ import annotations

from collections.abc import Sequence

from tracer.model.journey import Journey, Result
from tracer.render.words import count

_FEW, _MANY = 3, 12  # nodes that a group names: in the one line, and in the detailed form
_SAID = {
    Result.DELIVERED: "delivered to", Result.DROPPED: "dropped in", Result.LEFT: "left from",
    Result.RELAYED: "relayed in", Result.UNKNOWN: "not seen again in",
}


def groups(copies: Sequence[Journey]) -> list[list[Journey]]:
    """Copies that went through the same stages to the same end together; the delivered first, then the largest group."""
    found: dict[tuple[object, ...], list[Journey]] = {}
    for copy in copies:
        key = (copy.end.result, copy.end.reason, tuple((hop.stage, hop.role) for hop in copy.hops))
        found.setdefault(key, []).append(copy)
    return sorted(found.values(), key=lambda group: (group[0].end.result is not Result.DELIVERED, -len(group)))


def in_short(copies: Sequence[Journey]) -> str:
    """"+ 60 copies: 1 delivered to c2, 59 dropped (OTHERHOST)"."""
    told: dict[tuple[Result, str | None], list[Journey]] = {}
    for copy in (copy for group in groups(copies) for copy in group):
        told.setdefault((copy.end.result, copy.end.reason), []).append(copy)
    return f"+ {count_of(copies)}: " + ", ".join(of(group, _FEW) for group in told.values())


def count_of(copies: Sequence[Journey]) -> str:
    """"60 copies", "2 copies and 5 more parts"."""
    parts = sum(copy.kind == "part" for copy in copies)
    return " and ".join(filter(None, (count(len(copies) - parts, "copy", "copies") if len(copies) > parts else "",
                                      count(parts, "more part") if parts else "")))


def of(group: Sequence[Journey], most: int = _MANY) -> str:
    """"2 dropped in c3, c4 (OTHERHOST)"; with more nodes than `most`, their number instead of the names left out."""
    end = group[0].end
    nodes = sorted({node_of(copy) for copy in group})
    said = _SAID[end.result]
    if len(nodes) <= most:
        said += " " + ", ".join(nodes)
    elif most == _FEW:
        said += f" {len(nodes)} places"
    else:
        said += " " + ", ".join(nodes[:most]) + f" and {len(nodes) - most} more"
    return f"{len(group)} {said}" + (f" ({end.reason})" if end.reason else "")


def node_of(copy: Journey) -> str:
    return copy.end.node or (copy.hops[-1].node if copy.hops else "an unknown place")
