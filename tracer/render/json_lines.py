"""The output for programs: one JSON object a line. Fields are added, never renamed, within a schema number."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from functools import lru_cache
from typing import Any, TextIO
from zlib import crc32

from tracer.model.journey import Direction, End, Entry, Hop, Hops, Journey, Packet, Rewrite, RouteChoice, Rule, Table, of_way
from tracer.model.report import LiveStart, LiveStatus, LiveSummary, Seen, Start, Summary
from tracer.model.topology import inode

SCHEMA = 1
KEPT = 4096
_HOPS: dict[tuple[object, ...], tuple[tuple[object, ...], str]] = {}  # where -> (all but the time, its text)


class JsonRenderer:
    """Prints everything it is told, verbose or not: whoever reads it can leave things out himself."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def header(self, start: Start) -> None:
        self.record(_start(start, source=asdict(start.source), destination=asdict(start.destination)))

    def journey(self, journey: Journey, verbose: bool = False, copies: Sequence[Journey] = ()) -> None:
        """The journey, then each of its copies as an object of its own."""
        for one in (journey, *copies):
            # all probes of a run have one ICMP id, so that they and their answers are one flow to conntrack too
            self.line(_journey(one, 1 if one.kind in ("request", "reply", "error") else None))

    def note(self, text: str) -> None:
        self.record({"type": "note", "text": text})

    def warning(self, text: str) -> None:
        self.record({"type": "warning", "text": text})

    def summary(self, summary: Summary) -> None:
        self.record({
            "type": "summary", "sent": summary.sent, "answered": summary.answered, "journeys": summary.journeys,
            "events": summary.events, "lost_events": summary.lost_events,
            "bridges": {name: list(roles) for name, roles in summary.bridges.items()},
            "rtt_ms": asdict(summary.rtt) if summary.rtt else None, "ends": dict(summary.ends),
            "failures": [asdict(failure) for failure in summary.failures],
            "neighbor_lookups": summary.neighbor_lookups, "states": dict(summary.states), "notes": summary.notes,
        })

    def record(self, record: dict[str, object]) -> None:
        """Prints an object."""
        self.line(_json(record))

    def line(self, text: str) -> None:
        self._stream.write(text + "\n")
        self._stream.flush()  # a reader at the other end of a pipe gets each journey when it has happened


class LiveJsonRenderer:
    """The same for live traffic."""

    def __init__(self, stream: TextIO) -> None:
        self._json = JsonRenderer(stream)
        self._said = 0.0, 0  # seconds and lost events of the last status

    def header(self, start: LiveStart) -> None:
        self._json.record(_start(start, following=start.following))

    def journey(self, journey: Journey, copies: Sequence[Journey] = ()) -> None:
        """As a run's, but `flow` tells connections apart."""
        for one in (journey, *copies):
            self._json.line(_journey(one, _flow(one)))

    def note(self, text: str) -> None:
        self._json.note(text)

    def warning(self, text: str) -> None:
        self._json.warning(text)

    def silence(self, seconds: float, seen: Seen) -> None:
        self._json.record({"type": "silence", "seconds": seconds, "packets": seen.packets, "kinds": dict(seen.kinds)})

    def status(self, status: LiveStatus) -> None:
        """Once a second, where something was lost since the last time, or is left out at present."""
        lost = sum(status.lost.values())
        when, before = self._said
        if (lost > before or status.share < 1) and status.seconds >= when + 1:
            self._said = status.seconds, lost
            self._json.record({
                "type": "status", "seconds": status.seconds, "journeys": status.journeys, "delivered": status.delivered,
                "dropped": status.dropped, "rate": status.rate, "lost": dict(status.lost), "share": status.share,
                "talkers": [{"flow": name, "journeys": journeys} for name, journeys in status.talkers]})

    def summary(self, summary: LiveSummary) -> None:
        self._json.record({"type": "summary"} | asdict(summary))

    def close(self) -> None:
        """Each object was flushed."""


def _start(start: Start | LiveStart, **what: object) -> dict[str, object]:
    return {
        "type": "start", "schema": SCHEMA, "version": start.version, "kernel": start.kernel,
        "probes": {"attached": start.attached, "missing": [asdict(probe) for probe in start.missing]},
        **what, "notes": start.notes,
    }


def _journey(journey: Journey, flow: int | None) -> str:
    """Put together from texts that are kept: packets of one flow share them but for numbers and times."""
    text, kind, direction = _text, journey.kind, journey.kind if journey.kind in ("request", "reply") else None
    return (
        f'{{"type": "journey", "id": {journey.id}, "flow": {text(flow)}, "direction": {text(direction)}, '
        f'"seq": {text(journey.seq)}, "packet": {_packet(journey.packet)}, '
        f'"hops": [{_hops(journey.hops)}], "end": {_end(journey.end[:-1])}, '
        f'"complete": {text(journey.complete)}, "lost_events": {journey.lost_events}, "kind": {text(kind)}, '
        f'"parent": {text(journey.parent)}, "source": {text(journey.source)}, "target": {text(journey.target)}, '
        f'"wall_ns": {journey.wall_ns}, "duration_ns": {journey.duration_ns}, "problem": {text(journey.problem)}}}')


def _json(value: object) -> str:
    """ASCII only, so that any stream takes it and no escape sequence reaches a terminal; json leaves DEL as it is."""
    return json.dumps(value).replace("\x7f", "\\u007f")


_text = lru_cache(KEPT, typed=True)(_json)  # True is no 1


@lru_cache(KEPT)
def _end(end: tuple[Any, ...]) -> str:
    """Of one without its time, which is not shown; packets of one flow share the rest."""
    return _json(_ending(End(*end)))


def _ending(end: End) -> dict[str, object]:
    cause = next((cause for cause in end.causes if not cause.remark), None)
    return {
        "result": end.result.value, "node": end.node, "device": end.device, "reason": end.reason,
        "rule": asdict(end.rule) if end.rule else None,
        "cause": cause.name if cause else None, "mend": cause.mend if cause else None,
        "causes": [asdict(cause) for cause in end.causes],
        "stage": end.stage.value if end.stage else None, "detail": end.detail, "function": end.function}


def journey_fields(journey: Journey) -> dict[str, object]:
    """Where it went and how it ended, for other outputs' objects."""
    return {"packet": _headers(journey.packet), "source": journey.source, "target": journey.target,
            "hops": [{"t_ns": hop.t_ns} | _rest(hop) for hop in journey.hops], "end": _ending(journey.end)}


def _flow(journey: Journey) -> int | None:
    """The same number for all packets of one connection, in both directions and across NAT, and for errors about them."""
    packet = journey.packet.quoted or journey.packet
    entries = _entries(journey.hops)
    if packet.asked is not None:
        return None
    # as the client sent it: in the namespace nearest to the client
    one = entries[0 if journey.kind == "request" else -1].original if entries else packet
    return _number(packet.proto, one.icmp_id, one.src, one.sport, one.dst, one.dport)


@of_way
def _entries(hops: Sequence[Hop]) -> list[Entry]:
    return [hop.entry for hop in hops if hop.entry]


@lru_cache(KEPT)
def _number(proto: str, icmp_id: int | None, src: str, sport: int | None, dst: str, dport: int | None) -> int:
    ends = sorted((address, str(icmp_id if port is None else port)) for address, port in ((src, sport), (dst, dport)))
    return crc32(repr((proto, ends)).encode())


@lru_cache(KEPT)  # the same few tables, routes and entries stand at many hops
def _flat(value: Rule | Table | Rewrite | RouteChoice | Direction) -> dict[str, object]:
    """As asdict(), which is slow, for what holds no other data class."""
    return {name: getattr(value, name) for name in value.__slots__}


@lru_cache(KEPT)
def _packet(packet: Packet) -> str:
    return _json(_headers(packet))


def _headers(packet: Packet) -> dict[str, object]:
    return {name: getattr(packet, name) for name in packet._fields} | {
        "quoted": _headers(packet.quoted) if packet.quoted else None}


@lru_cache(KEPT)
def _entry(entry: Entry) -> dict[str, object]:
    return {"original": _flat(entry.original), "reply": _flat(entry.reply)}


def _hops(hops: Sequence[Hop]) -> str:
    parts = _without_times(hops).copy()
    parts[1::2] = map(str, hops.times if isinstance(hops, Hops) else [hop.t_ns for hop in hops])
    return "".join(parts)


@of_way
def _without_times(hops: Sequence[Hop]) -> list[str]:
    """Parts, of which each second one is where a time belongs."""
    texts = ", ".join(['{"t_ns": \0, ' + _after_time(hop) for hop in hops]).split("\0")  # JSON has no NUL
    return [part for text in texts for part in (text, "")][:-1]


def _after_time(hop: Hop) -> str:
    rest, key = hop[1:], (hop.netns, hop.device, hop.stage._value_, hop.detail)
    known = _HOPS.get(key)
    if known is None or known[0] != rest:
        if len(_HOPS) >= KEPT:
            _HOPS.clear()
        known = _HOPS[key] = rest, _json(_rest(hop))[1:]
    return known[1]


def _rest(hop: Hop) -> dict[str, object]:
    """All but the time."""
    return {
        "netns": inode(hop.netns), "node": hop.node, "device": hop.device, "ifindex": hop.ifindex,
        "stage": hop.stage, "role": hop.role,  # both are strings
        "rules": [_flat(rule) for rule in hop.rules], "rules_unknown": hop.rules_unknown,
        "rewrite": _flat(hop.rewrite) if hop.rewrite else None, "route": _flat(hop.route) if hop.route else None,
        "detail": hop.detail, "bridge": hop.bridge,
        "tables": None if hop.tables is None else [_flat(table) for table in hop.tables],
        "stopped_at": [_flat(table) for table in hop.stopped_at], "conntrack": hop.conntrack,
        "entry": _entry(hop.entry) if hop.entry else None, "timed": hop.timed,
        "inferred": hop.inferred,
    }
