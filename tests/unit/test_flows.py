"""Statistics by flow: which journeys belong together, what is counted, and that memory does not grow."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from statistics import quantiles

import pytest

from tests.unit import recording, test_render_fixtures as given
from tracer.journey.flows import ROWS, Flows
from tracer.model.journey import Cause, Direction, End, Entry, Hop, Hops, Journey, Packet, Result, Stage
from tracer.model.report import FlowSummary

CLIENT, PUBLISHED, SERVER = "198.51.100.1", "198.51.100.2", "172.17.0.3"


def tcp(src: str, sport: int, dst: str, dport: int, flags: str = "ACK") -> Packet:
    return Packet(4, "tcp", src, dst, 52, sport, dport, flags, payload=0)


def hops(*times: int, entry: Entry | None = None) -> tuple[Hop, ...]:
    """Through c1's eth0, a veth, docker0's hook and c2's eth0."""
    places = (("c1", "eth0", Stage.EGRESS), ("host", "veth1", Stage.INGRESS), ("host", "docker0", Stage.FORWARD),
              ("c2", "eth0", Stage.INGRESS))
    return tuple(Hop(t, 1, node, device, 1, stage, entry=entry if stage is Stage.FORWARD else None)
                 for t, (node, device, stage) in zip(times, places, strict=False))


def journey(packet: Packet, kind: str = "packet", source: str | None = None, target: str | None = None,
            way: Sequence[Hop] = (), end: End = End(Result.DELIVERED)) -> Journey:  # noqa: B008  # it is frozen
    return Journey(1, packet, way or hops(0, 1000, 2000, 3000), end, kind, source=source, target=target)


def counted(*journeys: Journey) -> tuple[FlowSummary, ...]:
    flows = Flows()
    for each in journeys:
        flows.add(each)
    return flows.summary().flows


def test_recorded_runs() -> None:
    """A ping and its answers, the neighbour lookup before it; a connection to a published port and its refusal."""
    flows = Flows()
    for each in recording.load("one_bridge").journeys():
        flows.add(each)
    said = flows.summary()
    assert [(flow.name, flow.proto, flow.journeys, flow.request.journeys, flow.reply.journeys, flow.connections)
            for flow in said.flows] == [("c1 → c2", "icmp", 4, 2, 2, None), ("c1 → c2", "arp", 2, 1, 1, None)]
    assert (said.journeys, said.delivered, said.copies, said.bridges) == (6, 6, 1, {"docker0": ("switch",)})
    assert [(step.before.stage, step.after.stage) for step in said.flows[0].request.steps][:4] == [
        ("route", "output"), ("output", "postrouting"), ("postrouting", "egress"), ("egress", "ingress")]
    flow = counted(*recording.load("published").journeys())[0]
    assert (flow.name, flow.connections, flow.request.journeys, flow.reply.journeys, flow.drops) == (
        "outside → host:8080", 1, 1, 1, {"NO_SOCKET": 1})


def test_of_journeys_little_is_kept_until_it_is_counted() -> None:
    flows, rest = Flows(), tuple(hop[1:] for hop in hops(0, 1, 2, 3))
    for turn in range(3 * ROWS + 5):
        flows.add(journey(tcp(CLIENT, 40000, SERVER, 80), way=Hops([0, 10, 20, 30 + turn], rest)))
        flows.add(journey(tcp(SERVER, 80, CLIENT, 40000), way=hops(0, 1, 2, 3)))  # took a way of its own
        (kept,) = flows._flows.values()
        assert all(sum(len(rows) for _hops, rows in way._rows.values()) < ROWS for way in kept.ways.values())
    (flow,) = flows.summary().flows
    for way in (flow.request, flow.reply):
        assert [step.latency.count for step in way.steps] == [3 * ROWS + 5] * 3
    assert 10 <= flow.request.steps[0].latency.median_ns <= 11 and flow.request.steps[2].latency.p99_ns > 90


def test_the_ways_of_a_translated_connection_are_one_flow() -> None:
    there, back = Direction(CLIENT, PUBLISHED, 40000, 8080), Direction(SERVER, CLIENT, 80, 40000)
    request = journey(tcp(CLIENT, 40000, PUBLISHED, 8080, "SYN"), "request", "outside", "host",
                      hops(0, 1, 2, entry=Entry(there, back)))
    reply = journey(tcp(SERVER, 80, CLIENT, 40000, "SYN ACK"), "reply", "c2", "outside",
                    hops(0, 1, 2, entry=Entry(there, back)))
    without_hooks = journey(tcp(SERVER, 80, CLIENT, 40000))
    error = journey(Packet(4, "icmp", SERVER, CLIENT, 80, icmp_type=3, icmp_code=3, quoted=tcp(CLIENT, 40000, SERVER, 80)),
                    "error", "c2", "outside")
    for order in ((request, reply, without_hooks, error), (reply, error, without_hooks, request)):
        (flow,) = counted(*order)
        assert (flow.name, flow.client, flow.service, flow.port) == ("outside → host:8080", "outside", "host", 8080)
        assert (flow.journeys, flow.request.journeys, flow.reply.journeys, flow.connections) == (4, 1, 2, 1)


def test_connections_of_one_client_to_one_service_are_one_flow() -> None:
    made = [journey(tcp("172.17.0.2", port, SERVER, 80, "SYN"), "packet", "c1", "c2") for port in range(40000, 40010)]
    back = [journey(tcp(SERVER, 80, "172.17.0.2", port), "packet", "c2", "c1") for port in range(40000, 40010)]
    (flow,) = counted(*made, *back)
    assert (flow.name, flow.connections, flow.request.journeys, flow.reply.journeys) == ("c1 → c2:80", 10, 10, 10)
    others = journey(tcp("172.17.0.2", 40000, SERVER, 443)), journey(tcp(SERVER, 40000, "172.17.0.2", 80))
    assert len(counted(*made, *others)) == 3


def test_two_that_are_masqueraded_alike_stay_two() -> None:
    def out(src: str, port: int, name: str) -> Journey:
        entry = Entry(Direction(src, "203.0.113.1", port, 443), Direction("203.0.113.1", PUBLISHED, 443, port))
        return journey(tcp(src, port, "203.0.113.1", 443), "request", name, None, hops(0, 1, 2, entry=entry))
    assert {flow.name for flow in counted(out("172.17.0.2", 40000, "c1"), out("172.17.0.3", 40001, "c2"))} == {
        "c1 → 203.0.113.1:443", "c2 → 203.0.113.1:443"}


def test_pings_in_both_directions_are_two() -> None:
    def echo(src: str, dst: str, kind: int, number: int) -> Journey:
        return journey(Packet(4, "icmp", src, dst, 84, icmp_type=kind, icmp_code=0, icmp_id=number, icmp_seq=1))
    flows = counted(echo("a", "b", 8, 1), echo("b", "a", 0, 1), echo("b", "a", 8, 2), echo("a", "b", 0, 2))
    assert [(flow.name, flow.request.journeys, flow.reply.journeys) for flow in flows] == [("a → b", 1, 1), ("b → a", 1, 1)]


def test_drops_by_cause_else_by_reason() -> None:
    end = End(Result.DROPPED, reason="NETFILTER_DROP")
    caused = end._replace(causes=(Cause("told_anyway", "", remark=True), Cause("networks_isolated", "")))
    (flow,) = counted(*(journey(tcp("a", 4000, "b", 80), "request", "c1", "c3", end=each) for each in (
        caused, caused, end, End(Result.DROPPED), End(Result.UNKNOWN))))
    assert flow.drops == {"networks_isolated": 2, "NETFILTER_DROP": 1, "no reason known": 1}
    assert (flow.delivered, flow.ends) == (0, {"dropped": 4, "unknown": 1})


def test_copies_are_no_journeys_of_their_own() -> None:
    flows = Flows()
    for each in (given.ARP, *given.FLOOD):
        flows.add(each)
    said = flows.summary()
    assert (said.journeys, said.copies, said.drops) == (1, 60, {"OTHERHOST": 1})


def test_quantiles_are_right_to_a_sixteenth() -> None:
    draw = random.Random(1)
    times = [int(draw.lognormvariate(10, 2)) for _ in range(5000)]
    flows = Flows()
    for ns in times:
        flows.add(replace(journey(tcp("a", 4000, "b", 80), "request"), hops=hops(0, ns)))
    (step,) = flows.summary().flows[0].request.steps
    exact = quantiles(times, n=100, method="inclusive")
    assert step.latency.count == 5000
    assert step.latency.median_ns == pytest.approx(exact[49], rel=1 / 16)
    assert step.latency.p99_ns == pytest.approx(exact[98], rel=1 / 16)


def test_a_hop_without_a_time_of_its_own_is_no_end_of_a_step() -> None:
    way = hops(0, 1000, 2000, 3000)
    (flow,) = counted(journey(tcp("a", 4000, "b", 80), way=(way[0], way[1]._replace(timed=False), *way[2:])))
    assert [(step.before.device, step.after.device) for step in flow.request.steps] == [
        ("eth0", "docker0"), ("docker0", "eth0")]


def test_the_busiest_are_kept_and_the_rest_is_counted_together() -> None:
    flows = Flows(kept=4, connections=64)
    for at in range(1000):
        flows.add(journey(tcp(f"10.0.{at // 250}.{at % 250}", 40000, SERVER, 80), "request",
                          end=End(Result.DROPPED if at % 2 else Result.DELIVERED)))
        for busy in "ab":
            flows.add(journey(tcp(busy, 40000, SERVER, 80), "request", busy, "c2"))
    said = flows.summary()
    assert [(flow.name, flow.journeys, flow.connections) for flow in said.flows[:2]] == [
        ("a → c2:80", 1000, 1), ("b → c2:80", 1000, 1)]
    assert flows.talkers(1) == [("a → c2:80", 1000)]
    assert len(said.flows) == 4
    assert said.other_journeys + sum(flow.journeys for flow in said.flows) == said.journeys == 3000
    assert said.other_dropped + sum(sum(flow.drops.values()) for flow in said.flows) == 500
    assert len(flows._flows) <= 8
    assert len(flows._known) <= 64


def test_ways_that_keep_changing_do_not_grow() -> None:
    flows = Flows()
    for at in range(1000):
        way = (Hop(0, 1, "c1", f"veth{at}", 1, Stage.EGRESS), Hop(1000, 1, "host", "docker0", 1, Stage.INGRESS))
        flows.add(journey(tcp("a", 4000, "b", 80), way=way))
    (flow,) = flows.summary().flows
    assert len(flow.request.steps) == 48
    assert flow.request.more_steps == 1000 - 48
