"""The objects that programs read, field by field as DESIGN.md has them."""

from __future__ import annotations

import io
import json
from typing import Any

from tests.unit.test_render_fixtures import ARP, FAILED, FLOOD, HOSTILE, MASQUERADED, REQUEST, START, SUMMARY
from tracer.render.base import Renderer
from tracer.render.json_lines import JsonRenderer


def printed(*calls: tuple[str, Any]) -> list[dict[str, Any]]:
    stream = io.StringIO()
    renderer: Renderer = JsonRenderer(stream)
    for method, argument in calls:
        getattr(renderer, method)(argument)
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_start() -> None:
    (start,) = printed(("header", START))
    on = {"bridge": "docker0", "address": "172.17.0.1/16", "itself": False}
    assert start == {
        "type": "start", "schema": 1, "version": "0.1.0", "kernel": "6.12.0",
        "probes": {"attached": ["net_dev_queue", "kfree_skb"], "missing": [
            {"name": "br_flood", "why": "no kprobes here"}, {"name": "br_pass_frame_up", "why": "no kprobes here"}]},
        "source": {"name": "c1", "address": "172.17.0.2", "on": on},
        "destination": {"name": "c2", "address": "172.17.0.3", "on": on}, "notes": ["c2 shares the namespace of c9."]}


def test_journey() -> None:
    (journey,) = printed(("journey", REQUEST))
    hops = journey.pop("hops")
    packet = journey.pop("packet")
    assert journey == {
        "type": "journey", "id": 1, "flow": 1, "direction": "request", "seq": 1,
        "end": {"result": "delivered", "node": "c2", "device": "eth0", "reason": None, "rule": None, "cause": None,
                "mend": None, "causes": [], "stage": None, "detail": "", "function": None},
        "complete": True, "lost_events": 0, "kind": "request", "parent": None, "source": "c1", "target": "c2",
        "wall_ns": 1_700_000_000_000_000_000, "duration_ns": 47000, "problem": None}
    assert {name: packet[name] for name in ("family", "proto", "src", "dst", "sport", "dport", "length", "icmp_type",
                                            "icmp_id", "icmp_seq")} == {
        "family": 4, "proto": "icmp", "src": "172.17.0.2", "dst": "172.17.0.3", "sport": None, "dport": None,
        "length": 84, "icmp_type": 8, "icmp_id": 0x1234, "icmp_seq": 1}
    assert len(hops) == 9
    assert hops[2] == {
        "t_ns": 12500, "netns": 4026531840, "node": "host", "device": "docker0", "ifindex": 4, "stage": "prerouting",
        "role": None, "rules": [], "rules_unknown": None, "rewrite": None, "route": None, "detail": "", "bridge": "docker0",
        "tables": [{"family": "ip", "table": "nat", "chain": "PREROUTING", "priority": -100, "legacy": False},
                   {"family": "ip", "table": "raw", "chain": "PREROUTING", "priority": -300, "legacy": False}],
        "stopped_at": [], "timed": True, "entry": None, "conntrack": "NEW", "inferred": False}
    assert (hops[4]["stage"], hops[4]["role"]) == ("l2_forward", "switch")
    assert (hops[8]["device"], hops[8]["ifindex"]) == (None, None)


def test_a_rewrite_and_a_conclusion() -> None:
    (journey,) = printed(("journey", MASQUERADED))
    assert journey["hops"][-1]["rewrite"] == {
        "src": ["172.17.0.2", "198.51.100.2"], "dst": None, "sport": None, "dport": None}
    assert journey["hops"][1]["inferred"] is True
    assert journey["target"] is None


def test_copies_follow_their_parent_whether_verbose_or_not() -> None:
    stream = io.StringIO()
    JsonRenderer(stream).journey(ARP, copies=FLOOD)
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [line["kind"] for line in lines] == ["arp"] + ["copy"] * 60
    assert {line["parent"] for line in lines[1:]} == {2}
    assert {(line["flow"], line["direction"]) for line in lines} == {(None, None)}


def test_summary() -> None:
    first, second = printed(("summary", SUMMARY), ("summary", FAILED))
    assert first == {
        "type": "summary", "sent": 3, "answered": 3, "journeys": 6, "events": 66, "lost_events": 0,
        "bridges": {"docker0": ["switch"]}, "rtt_ms": {"min": 0.041, "avg": 0.0534, "max": 0.08},
        "ends": {"delivered": 6}, "failures": [], "neighbor_lookups": 0, "states": {}, "notes": []}
    assert second["failures"][0] == {"seq": 2, "text": "no answer within 1 s", "cause": None}


def test_notes_and_warnings_are_objects_too() -> None:
    assert printed(("note", "a"), ("warning", "b")) == [{"type": "note", "text": "a"}, {"type": "warning", "text": "b"}]


def test_no_byte_of_it_can_move_a_cursor() -> None:
    stream = io.StringIO()
    renderer = JsonRenderer(stream)
    renderer.journey(HOSTILE)
    renderer.note("\x1b\x7f\x9b\u202e\udc80\n")
    lines = stream.getvalue().split("\n")
    assert len(lines) == 3
    assert all(line.isascii() and line.isprintable() for line in lines)
    assert json.loads(lines[1])["text"] == "\x1b\x7f\x9b\u202e\udc80\n"
