"""Sentences: times, names, tables, ends and what the bridge was."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.unit import test_render_fixtures as given
from tests.unit.test_render_fixtures import REQUEST, START, SUMMARY, packet, table
from tracer.model.journey import End, Hop, Packet, Result, Rewrite, Rule, Stage, Table
from tracer.model.report import OnBridge, Place
from tracer.render import words


@pytest.mark.parametrize(("ns", "said"), [
    (0, "0.0 µs"), (3_449, "3.4 µs"), (9_949, "9.9 µs"), (9_960, "10 µs"), (47_000, "47 µs"), (999_400, "999 µs"),
    (999_600, "1 ms"), (1_250_000, "1.25 ms"), (61_400_000, "61.4 ms"), (999_600_000, "1.00 s"), (3_020_000_000, "3.02 s"),
])
def test_a_duration_has_three_digits_at_most(ns: int, said: str) -> None:
    assert words.spelled(ns) == said


@pytest.mark.parametrize(("made", "said"), [
    (packet(), "echo request"), (packet(icmp_type=0), "echo reply"),
    (packet(icmp_type=3, icmp_code=1, quoted=packet()), "ICMP error: host unreachable"),
    (packet(icmp_type=11, quoted=packet()), "ICMP error: time exceeded"),
    (packet(icmp_type=99), "icmp type 99"), (packet(icmp_type=None), "icmp type None"),
    (packet(proto="icmpv6", family=6, icmp_type=135), "neighbor solicitation"),
    (packet(proto="icmpv6", family=6, icmp_type=1, icmp_code=4), "ICMP error: port unreachable"),
    (packet(proto="tcp", sport=40000, dport=80), "tcp 40000 → 80"), (packet(proto="47"), "47"),
    (Packet(0, "arp", "a", "b", 28, arp_op=2), "ARP reply"),
])
def test_a_packet_is_called_what_it_is(made: Packet, said: str) -> None:
    assert words.packet_name(made) == said


def test_tables_stand_in_the_order_of_priorities_with_conntrack_at_its_own() -> None:
    hop = REQUEST.hops[2]._replace(tables=(table("nat", "PREROUTING", -100), table("early", "pre", -200, "inet"),
                                           table("raw", "PREROUTING", -300)))
    assert words.tables(hop) == "raw · inet early · conntrack NEW · nat"
    assert words.tables(hop._replace(tables=())) == "conntrack NEW"
    assert words.tables(hop._replace(tables=(), conntrack=None)) == ""


def test_both_ends_of_a_rewrite_are_told() -> None:
    hop = REQUEST.hops[0]._replace(rewrite=Rewrite(("10.0.0.1", "10.0.0.2"), ("10.0.0.3", "10.0.0.4")))
    assert words.rewrites(hop) == "src 10.0.0.1 → 10.0.0.2, dst 10.0.0.3 → 10.0.0.4"


@pytest.mark.parametrize(("end", "title", "verdict"), [
    (End(Result.DELIVERED, "c2"), "delivered in 47 µs", None),
    (End(Result.LEFT, "host", "eth0"), "left by eth0 after 47 µs", None),
    (End(Result.LEFT, detail="to 198.51.100.1"), "left this host after 47 µs", "→ to 198.51.100.1"),
    (End(Result.RELAYED, "host"), "relayed to a proxy after 47 µs", None),
    (End(Result.DROPPED), "✗ dropped after 47 µs", "✗ dropped in c2, at deliver"),
    (End(Result.UNKNOWN), "? not seen again after c2", "? not seen again after c2 (deliver)"),
])
def test_an_end_is_told_in_the_title_and_below(end: End, title: str, verdict: str | None) -> None:
    journey = replace(REQUEST, end=end)
    assert words.title_end(journey) == title
    assert words.verdict(journey) == verdict


def test_a_packet_that_was_never_seen() -> None:
    journey = replace(REQUEST, hops=(), end=End(Result.UNKNOWN))
    assert words.title_end(journey) == words.verdict(journey) == "? never seen"


def test_rules_that_counters_tell() -> None:
    legacy = Table("ip", "filter", "FORWARD", 0, legacy=True)
    jump = Rule("ip", "filter", "FORWARD", "-A FORWARD -j X", "jump X", exact=False, legacy=True, by="counter")
    drop = replace(jump, chain="X", rule="-A X -j DROP", verdict="drop")
    accept = Rule("ip", "filter", "FORWARD", "-A FORWARD -j ACCEPT", "accept")
    hop = Hop(0, 1, "host", "docker0", 2, Stage.FORWARD, tables=(table("filter", "FORWARD", 0),), stopped_at=(legacy,),
              rules=(accept, jump, drop))
    assert words.tables(hop) == "filter: FORWARD accept · filter (legacy): FORWARD → X drop"
    assert words.each_rule(hop)[1:] == ["by counters filter (legacy): -A FORWARD -j X",
                                        "by counters filter (legacy): -A X -j DROP"]
    journey = replace(REQUEST, hops=(hop,), end=End(Result.DROPPED, "host", "docker0", Stage.FORWARD, rule=drop))
    assert words.verdict(journey) == "✗ dropped at filter (legacy)/X by rule, as counters tell"
    assert words.perhaps_stopped_by(journey) == []
    perhaps = [replace(rule, by="candidate") for rule in (drop, replace(drop, rule=None, chain="FORWARD", policy=True))]
    hop = hop._replace(rules=(accept, *perhaps))
    assert words.tables(hop) == "filter: FORWARD accept · not past filter (legacy)"
    journey = replace(journey, hops=(hop,), end=journey.end._replace(rule=None))
    assert words.perhaps_stopped_by(journey) == ["perhaps by filter (legacy): -A X -j DROP",
                                                 "perhaps by filter (legacy): policy of FORWARD"]
    passed = hop._replace(tables=(legacy,), stopped_at=(), rules=tuple(replace(r, verdict="accept") for r in perhaps))
    assert words.tables(passed) == "filter (legacy): one of 2 rules"


def test_where_the_two_ends_hang() -> None:
    c1, c2 = START.source, START.destination
    assert words.where(START) == ", both on docker0 (172.17.0.1/16)"
    itself = OnBridge("docker0", "172.17.0.1/16", itself=True)
    host = Place("host", "172.17.0.1", itself)
    assert words.where(replace(START, destination=host)) == (
        ", c1 on docker0 (172.17.0.1/16), 172.17.0.1 is docker0's own address")
    assert words.where(replace(START, source=host, destination=c2)) == (
        ", 172.17.0.1 is docker0's own address, c2 on docker0 (172.17.0.1/16)")
    c3 = Place("c3", "10.1.0.2", OnBridge("br-web"))
    assert words.where(replace(START, destination=c3)) == ", c1 on docker0 (172.17.0.1/16), c3 on br-web"
    outside = Place("203.0.113.1", "203.0.113.1")
    assert words.where(replace(START, destination=outside)) == ", c1 on docker0 (172.17.0.1/16)"
    assert words.where(replace(START, source=replace(c1, on=None), destination=outside)) == ""


def test_what_each_bridge_was() -> None:
    assert words.bridge_roles({"docker0": ("switch",)}) == [
        "docker0 was a switch: it passed frames from port to port by their MAC addresses, and the host routed nothing."]
    assert words.bridge_roles({"docker0": ("switch",)}, routed=True) == [
        "docker0 was a switch: it passed frames from port to port by their MAC addresses."]
    assert words.bridge_roles({"docker0": ("nic",), "br0": ("switch",), "br1": ("nic", "switch"), "br2": ()}) == [
        "docker0 was a NIC, the host's own on that network: packets went up through it into the host's IP layer, or came "
        "down from there.",
        "br0 was a switch: it passed frames from port to port by their MAC addresses.",
        "br1 had both its identities: a NIC, through which packets went up into the host's IP layer or came down from "
        "there, and a switch, which passed frames to the right port by their MAC addresses."]
    assert words.bridge_roles({}) == []


def test_totals_and_losses() -> None:
    assert words.totals(SUMMARY) == "3 sent, 3 answered, rtt min/avg/max 0.041/0.053/0.080 ms."
    assert words.totals(given.FAILED) == "3 sent, 1 answered, rtt 0.081 ms."
    assert words.totals(replace(SUMMARY, answered=0, rtt=None)) == "3 sent, 0 answered."
    assert words.losses(SUMMARY) is None
    assert (words.losses(replace(SUMMARY, lost_events=1)) or "").startswith("1 event was lost")
    assert words.incomplete(replace(REQUEST, complete=False)) == "! a hop may be missing above"
