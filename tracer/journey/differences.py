"""Where the way of the same probe differs between two runs."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from tracer.model.journey import BRANCHES, Hop, Journey, Stage, endpoint

_VETH = re.compile(r"\bveth[0-9a-z]+\b")  # Docker names each container's anew
Key = tuple[str | int | None, ...]


@dataclass(frozen=True, slots=True)
class Difference:
    """`same` hops are alike in both; then the ways part: what is there in the one and in the other, in words. None: the way
    has ended, or the packet is not in that run at all."""

    probe: str
    same: int
    after: str | None  # the last hop that is alike
    one: str | None
    other: str | None


def pairs(one: Iterable[Journey], other: Iterable[Journey]) -> Iterator[tuple[Journey | None, Journey | None]]:
    """The journeys of the same probes, in the order of the first run: those of the same packet, as nearly as two runs can
    have it, and of such the first with the first."""
    left: dict[Key, list[Journey]] = {}
    for journey in other:
        left.setdefault(_key(journey), []).append(journey)
    for journey in one:
        same = left.get(_key(journey))
        yield journey, same.pop(0) if same else None
    yield from ((None, journey) for journeys in left.values() for journey in journeys)


def compared(journey: Journey) -> bool:
    """Copies, and what only asks for a MAC address, come and go with caches."""
    return journey.kind not in (*BRANCHES, "arp") and journey.packet.asked is None


def difference(one: Journey | None, other: Journey | None) -> Difference | None:
    """None: their ways are alike, as far as both were observed."""
    known = one or other
    assert known is not None
    if one is None or other is None:
        here, there = (None if j is None else f"seen, {_end(j)}" for j in (one, other))
        return Difference(name(known), 0, None, here, there)
    after: str | None = None
    ours, theirs = list(_compared_hops(one)), list(_compared_hops(other))
    for number, (a, b) in enumerate(zip(ours, theirs, strict=False)):
        for before, behind in zip(_words(a, b), _words(b, a), strict=True):
            if _plain(before) != _plain(behind):
                return Difference(name(one), number, after, f"{_where(a)}{before}", f"{_where(b)}{behind}")
        after = _where(a).removesuffix(": ")
    same = min(len(ours), len(theirs))
    if len(ours) != len(theirs):
        further = [f"goes on: {_where(hops[same]).removesuffix(': ')}" if len(hops) > same else _end(j)
                   for hops, j in ((ours, one), (theirs, other))]
        return Difference(name(one), same, after, *further)
    if _plain(_end(one)) != _plain(_end(other)):
        return Difference(name(one), same, after, _end(one), _end(other))
    return None


def in_full(journey: Journey) -> bool:
    """Was all of its way observed, rules too?"""
    return journey.complete and all(hop.rules_unknown is None and (hop.tables is not None) for hop in journey.hops)


def name(journey: Journey) -> str:
    packet = journey.packet
    number = f" {journey.seq}" if journey.seq is not None else ""
    return f"{journey.kind}{number}: {packet.proto} {packet.src} → {endpoint(packet.dst, packet.dport)}"


def _key(journey: Journey) -> Key:
    """Without what each run chooses anew: source ports, ICMP identifiers. A reply's are its destination's."""
    packet = journey.packet
    if journey.seq is not None:
        return journey.kind, journey.seq, packet.family, packet.proto
    serves = packet.sport if journey.kind == "reply" else packet.dport
    return (journey.kind, packet.family, packet.proto, packet.src, packet.dst, serves, packet.tcp_flags, packet.icmp_type,
            packet.icmp_code, packet.icmp_seq)


def _compared_hops(journey: Journey) -> Iterator[Hop]:
    """Without what a cache decides."""
    return (hop for hop in journey.hops if hop.stage is not Stage.NEIGHBOR)


def _where(hop: Hop) -> str:
    return f"{hop.node} {hop.device or ''} {hop.stage.value}".replace("  ", " ") + ": "


def _words(hop: Hop, other: Hop) -> tuple[str, ...]:
    """What can differ there, the most general first. What was not observed at one of the two differs from nothing."""
    rules = "rules not compared: they were not observed in both runs"
    if hop.rules_unknown is None and other.rules_unknown is None:
        rules = "; ".join(f"{rule.table} {rule.chain}: {rule.rule or 'policy'} → {rule.verdict}"
                          for rule in hop.rules) or "no rule"
    route = hop.detail if hop.route else "no route lookup"
    change = hop.rewrite
    rewrite = "nothing rewritten" if change is None else "rewritten: " + ", ".join(
        f"{what} {before} → {after}" for what, (before, after) in (
            ("source", change.src or ("", "")), ("destination", change.dst or ("", "")),
            ("port", change.dport or ("", ""))) if before != after)
    role = f"as a {hop.role.value.upper()} ({hop.stage.value})" if hop.role else hop.stage.value
    return f"at {hop.node}" if hop.route else f"at {hop.node} {hop.device or ''}", role, rules, route, rewrite


def _end(journey: Journey) -> str:
    end = journey.end
    why = next((cause.name for cause in end.causes if not cause.remark), None) or end.reason
    rule = f" by {end.rule.rule or f'the policy of {end.rule.chain}'}" if end.rule else ""
    return f"{end.result.value} in {end.node or '?'}" + (f" ({why})" if why else "") + rule


def _plain(words: str) -> str:
    return _VETH.sub("veth", words)
