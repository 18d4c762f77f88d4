"""Recorded runs told as journeys: the sequence (node, device, stage), the roles, the rewrites and the end, in full."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.unit.recording import Recording, load
from tracer.model.journey import Hop, Journey, Result, Rewrite, Role, Stage
from tracer.model.layout import Place

REQUEST_ON_ONE_BRIDGE = [
    "c1 eth0 route", "c1 eth0 output", "c1 eth0 postrouting", "c1 eth0 egress",
    "host veth-c1 ingress", "host docker0 prerouting", "host docker0 l2_forward", "host docker0 forward",
    "host docker0 postrouting", "host veth-c2 egress",
    "c2 eth0 ingress", "c2 eth0 prerouting", "c2 - route", "c2 eth0 input", "c2 - deliver"]


def swapped(way: list[str]) -> list[str]:
    return [hop.replace("c1", "C").replace("c2", "c1").replace("C", "c2") for hop in way]


def told(name: str) -> tuple[Recording, list[Journey]]:
    recording = load(name)
    return recording, recording.journeys()


def only(journeys: list[Journey], kind: str, seq: int | None = 1) -> Journey:
    (found,) = [j for j in journeys if j.kind == kind and j.seq == seq]
    return found


def test_both_ways_over_one_bridge() -> None:
    recording, journeys = told("one_bridge")
    for seq in (1, 2):
        request, reply = only(journeys, "request", seq), only(journeys, "reply", seq)
        assert recording.way(request) == REQUEST_ON_ONE_BRIDGE
        assert recording.way(reply) == swapped(REQUEST_ON_ONE_BRIDGE)
        assert (request.end.result, request.end.node, request.end.detail) == \
            (Result.DELIVERED, "c2", "ICMP echo, answered")
        assert (reply.end.result, reply.end.node, reply.end.detail) == \
            (Result.DELIVERED, "c1", "ICMP echo reply, received by the sender")
        assert (request.source, request.target, request.packet.length) == ("c1", "c2", 84)
        assert request.complete and not any(hop.inferred for hop in request.hops)


def test_tables_and_conntrack_at_each_hook() -> None:
    _recording, journeys = told("one_bridge")
    at = {hop.stage: hop for hop in only(journeys, "request").hops if hop.node == "host"}
    assert [(t.table, t.chain) for t in at[Stage.PREROUTING].tables] == [("nat", "PREROUTING")]
    assert [(t.table, t.chain) for t in at[Stage.FORWARD].tables] == [("filter", "FORWARD")]
    assert [(t.table, t.chain) for t in at[Stage.POSTROUTING].tables] == [("nat", "POSTROUTING")]
    assert at[Stage.PREROUTING].conntrack == "NEW"
    assert [hop.conntrack for hop in only(journeys, "reply").hops if hop.conntrack] == ["ESTABLISHED"]


def test_the_switch_names_the_row_that_it_used() -> None:
    recording, journeys = told("one_bridge")
    (hop,) = [hop for hop in only(journeys, "request").hops if hop.role]
    assert (hop.stage, hop.role, hop.bridge) == (Stage.L2_FORWARD, Role.SWITCH, "docker0")
    assert recording.steady(hop.detail) == "as a SWITCH: to the port of c2 (fdb learned: 02:42:ac:11:00:03 dev veth-c2)"


def test_that_br_netfilter_is_not_loaded_is_said_where_the_bridge_decides() -> None:
    recording = load("one_bridge")
    said = "; br_netfilter is not loaded: iptables does not see bridged packets"

    def decisions(settings: dict[str, str]) -> set[bool]:
        spaces = {inode: replace(space, sysctls=settings) for inode, space in recording.topology.namespaces.items()}
        journeys = replace(recording, topology=replace(recording.topology, namespaces=spaces)).journeys()
        return {hop.detail.endswith(said) for journey in journeys if journey.kind in ("request", "reply")
                for hop in journey.hops if hop.stage is Stage.L2_FORWARD}

    assert decisions({"net.ipv4.ip_forward": "1"}) == {True}
    assert decisions({"net.bridge.bridge-nf-call-iptables": "0"}) == {False}
    assert decisions({}) == {False}  # not read


def test_the_lookup_that_the_ping_caused_is_a_journey_and_its_other_branch_a_copy() -> None:
    recording, journeys = told("one_bridge")
    question, answer = [j for j in journeys if j.kind == "arp"]
    assert recording.way(question) == ["c1 eth0 egress", "host veth-c1 ingress", "host docker0 l2_flood",
                                       "host veth-c2 egress", "c2 eth0 ingress", "c2 - deliver"]
    assert question.end.detail == "ARP, 172.17.0.3 is its own"
    assert (answer.source, answer.target) == ("c2", "c1")
    assert answer.end.detail == "ARP, answer taken in: 172.17.0.3 is at 02:42:ac:11:00:03"
    (copy,) = [j for j in journeys if j.kind == "copy"]
    assert copy.parent == question.id
    assert recording.way(copy) == ["host docker0 l2_local", "host - deliver"]
    assert copy.end.detail == "ARP, 172.17.0.3 is not its own"


def test_journeys_count_in_the_order_of_first_sight() -> None:
    _recording, journeys = told("one_bridge")
    assert sorted(j.id for j in journeys) == list(range(1, len(journeys) + 1))
    assert journeys[0].kind == "request" and journeys[0].id == 1


def test_ipv6_looks_its_neighbour_up_through_the_hooks() -> None:
    recording, journeys = told("one_bridge_v6")
    assert recording.way(only(journeys, "request")) == swapped(REQUEST_ON_ONE_BRIDGE)
    question, answer = [j for j in journeys if j.kind == "arp"]
    flood = [hop for hop in question.hops if hop.stage is Stage.L2_FLOOD]
    assert [hop.detail for hop in flood] == ["as a SWITCH: to every port (multicast)"]
    assert (question.packet.asked, question.packet.asking) == ("fd00:17::2", "fd00:17::3")
    assert (question.source, question.target, answer.target) == ("c2", "c1", "c2")
    assert answer.end.detail == "neighbour discovery, answer taken in: fd00:17::2 is at 02:42:ac:11:00:02"


def test_older_kernels_free_all_that_icmpv6_took_as_if_it_were_dropped() -> None:
    recording = load("one_bridge_v6")
    unsaid = next(number for number, name in recording.reasons.items() if name == "NOT_SPECIFIED")
    freed = [event._replace(place=Place.DROP, reason=unsaid) if event.place == Place.CONSUME and "icmpv6_rcv" in event.stack
             else event for event in recording.events]
    older = {number: name for number, name in recording.reasons.items() if not name.startswith("IPV6_NDISC_")}

    def results(reasons: dict[int, str]) -> set[Result]:
        journeys = replace(recording, events=freed, reasons=reasons).journeys()
        return {journey.end.result for journey in journeys if journey.kind == "request"}

    assert freed != recording.events
    assert results(older) == {Result.DELIVERED}
    assert results(recording.reasons) == {Result.DROPPED}


def test_to_the_gateway_docker0_is_a_nic() -> None:
    recording, journeys = told("gateway")
    request, reply = only(journeys, "request"), only(journeys, "reply")
    assert recording.way(request) == [
        "c1 eth0 route", "c1 eth0 output", "c1 eth0 postrouting", "c1 eth0 egress", "host veth-c1 ingress",
        "host docker0 prerouting", "host docker0 l2_local", "host - route", "host docker0 input", "host - deliver"]
    assert [(h.role, h.detail) for h in request.hops if h.role] == [
        (Role.NIC, "as a NIC: the frame is for docker0's own MAC, up to the host's IP layer")]
    assert recording.way(reply) == [
        "host docker0 route", "host docker0 output", "host docker0 postrouting", "host docker0 egress",
        "host docker0 l2_forward", "host veth-c1 egress", "c1 eth0 ingress", "c1 eth0 prerouting", "c1 - route",
        "c1 eth0 input", "c1 - deliver"]
    assert [h.role for h in reply.hops if h.role] == [Role.NIC, Role.SWITCH]


def test_masquerade_changes_the_source_and_the_reply_changes_it_back() -> None:
    recording, journeys = told("outside")
    request, reply = only(journeys, "request"), only(journeys, "reply")
    assert recording.way(request) == [
        "c1 eth0 route", "c1 eth0 output", "c1 eth0 postrouting", "c1 eth0 egress", "host veth-c1 ingress",
        "host docker0 prerouting", "host docker0 l2_local", "host eth0 route", "host docker0 forward",
        "host docker0 postrouting", "host eth0 egress", "outside eth0 ingress", "outside eth0 prerouting",
        "outside - route", "outside eth0 input", "outside - deliver"]
    assert {h.stage: h.rewrite for h in request.hops if h.rewrite} == {
        Stage.POSTROUTING: Rewrite(src=("172.17.0.2", "198.51.100.2"))}
    assert {h.stage: h.rewrite for h in reply.hops if h.rewrite} == {
        Stage.PREROUTING: Rewrite(dst=("198.51.100.2", "172.17.0.2"))}
    assert (reply.end.node, reply.end.result) == ("c1", Result.DELIVERED)


def test_a_drop_names_the_table() -> None:
    recording, journeys = told("isolated")
    request = only(journeys, "request")
    assert recording.way(request)[-1] == "host docker0 forward"
    end = request.end
    assert (end.result, end.node, end.device, end.stage, end.reason) == \
        (Result.DROPPED, "host", "docker0", Stage.FORWARD, "NETFILTER_DROP")
    assert end.detail.startswith("by table filter, chain FORWARD or one that it calls")
    assert not [j for j in journeys if j.kind == "reply"]


def test_an_expired_ttl_and_the_error_about_it() -> None:
    recording, journeys = told("ttl")
    request, error = only(journeys, "request"), only(journeys, "error")
    assert (request.end.result, request.end.reason, request.end.detail) == \
        (Result.DROPPED, "IP_INHDR", "its time to live ran out, in forwarding (ip_forward)")
    assert (error.source, error.target, error.end.result) == ("host", "c1", Result.DELIVERED)
    assert error.packet.quoted and error.packet.quoted.icmp_seq == 1
    assert recording.way(error)[0] == "host docker0 route"


def test_nobody_has_the_address() -> None:
    recording, journeys = told("nobody")
    request = only(journeys, "request")
    assert recording.way(request) == ["c1 eth0 route", "c1 eth0 output", "c1 eth0 postrouting"]
    assert (request.end.result, request.end.node, request.end.reason) == (Result.DROPPED, "c1", "NEIGH_FAILED")
    assert len([j for j in journeys if j.kind == "arp"]) == 3
    assert request.target is None


def test_loopback_never_leaves() -> None:
    recording, journeys = told("itself")
    request = only(journeys, "request")
    assert (request.source, request.target) == ("c1", "c1")
    assert recording.way(request) == ["c1 - route", "c1 lo output", "c1 lo postrouting", "c1 lo egress",
                                      "c1 lo ingress", "c1 lo prerouting", "c1 lo input", "c1 - deliver"]


@pytest.mark.parametrize("name", ["one_bridge", "gateway", "outside", "isolated", "ttl", "nobody", "itself"])
def test_a_probe_is_settled_only_when_all_of_it_is_known(name: str) -> None:
    recording = load(name)
    late = recording.events[-1].time + 10**9
    assembler = recording.assembler()
    assert assembler.settled(1, late)
    first = assembler.take(1)
    assert first[0].kind == "request"
    assert not assembler.take(1), "told once"


def test_a_drop_stops_at_the_tables_behind_the_last_link() -> None:
    _recording, journeys = told("isolated")
    last = only(journeys, "request").hops[-1]
    assert last.tables == ()
    assert [t.table for t in last.stopped_at] == ["filter"]
    assert not any(hop.stopped_at for hop in only(told("one_bridge")[1], "request").hops)


def test_a_route_hop_has_the_row_and_the_rows_that_lost() -> None:
    _recording, journeys = told("outside")
    routes = {hop.node: hop for hop in only(journeys, "request").hops if hop.route}
    assert {node: hop.detail for node, hop in routes.items()} == {
        "c1": "default via 172.17.0.1 dev eth0 (table main)", "host": "default via 198.51.100.1 dev eth0 (table main)",
        "outside": "203.0.113.1 is local (table local)"}
    there = routes["host"].route
    assert there
    assert (there.destination, there.gateway, there.device, there.table) == ("0.0.0.0/0", "198.51.100.1", "eth0", "main")
    back = {hop.node: hop.route for hop in only(journeys, "reply").hops if hop.route}["host"]
    assert back
    assert (back.destination, back.losers) == ("172.17.0.0/16", ("default via 198.51.100.1 dev eth0",))


@pytest.mark.parametrize("name", ["fragments", "fragments_v6"])
def test_fragments_are_one_journey(name: str) -> None:
    recording, journeys = told(name)
    assert recording.way(only(journeys, "request")) == REQUEST_ON_ONE_BRIDGE
    assert recording.way(only(journeys, "reply")) == swapped(REQUEST_ON_ONE_BRIDGE)
    assert only(journeys, "request").packet.length > 4000
    assert [h.inferred for h in only(journeys, "request").hops if h.stage is Stage.DELIVER] == [name == "fragments_v6"]


def test_dnat_of_a_published_port_and_the_refusal() -> None:
    recording, journeys = told("published")
    request, reply = only(journeys, "request"), only(journeys, "reply")
    assert request.packet.tcp_flags == "SYN"
    assert [h.rewrite for h in request.hops if h.rewrite] == [
        Rewrite(dst=("198.51.100.2", "172.17.0.3"), dport=(8080, 80))]
    assert [h.rewrite for h in reply.hops if h.rewrite] == [Rewrite(src=("172.17.0.3", "198.51.100.2"), sport=(80, 8080))]
    assert (request.end.result, request.end.node, request.end.reason) == (Result.DROPPED, "c2", "NO_SOCKET")
    assert (reply.source, reply.target, reply.end.result) == ("c2", "outside", Result.DELIVERED)
    assert recording.way(request)[4:12] == [
        "host eth0 ingress", "host eth0 prerouting", "host docker0 route", "host eth0 forward", "host eth0 postrouting",
        "host docker0 egress", "host docker0 l2_forward", "host veth-c2 egress"]


def test_an_arp_probe_is_a_request_with_its_reply() -> None:
    recording, journeys = told("arp")
    for seq in (1, 2):
        assert recording.way(only(journeys, "request", seq))[-2:] == ["c2 eth0 ingress", "c2 - deliver"]
        assert only(journeys, "reply", seq).end.node == "c1"


def test_a_late_event_of_a_journey_that_was_told_begins_no_new_one() -> None:
    recording = load("one_bridge")
    assembler = recording.assembler()
    events = [e for e in recording.events if e.journey == recording.events[1].journey]
    assert assembler.take(1)
    from tracer.model.probes import Batch
    assembler.feed(Batch(events[-3:], 0))
    assert all(journey.seq == 2 for journey in assembler.rest() if journey.seq is not None)


def test_what_is_kept_does_not_grow_with_the_number_of_probes() -> None:
    from tracer.model.probes import Batch
    recording = load("one_bridge")
    assembler = recording.assembler()
    assembler.rest()
    for turn in range(1, 2001):
        assembler.feed(Batch([e._replace(journey=e.journey + turn * 1000) for e in recording.events], 0))
        assembler.answered(1)
        assembler.take(1)
        assembler.rest()
    tracks = assembler._tracks
    assert not tracks.live
    assert not assembler._answered - {2}
    assert max(map(len, (tracks._told, tracks._devices, tracks._learned, tracks._lookups))) <= 4096


def test_an_arp_request_for_another_mac_is_passed_over() -> None:
    """A neighbour's stale entry is asked for at its old MAC, and a bridge that does not know it floods the question."""
    recording, _ = told("arp")
    unicast = [e._replace(ethernet=bytes.fromhex("024200000099") + e.ethernet[6:])
               if any(e.ethernet) and e.ethernet[0] & 1 else e for e in recording.events]
    request = next(j for j in replace(recording, events=unicast).journeys() if j.kind == "request")
    assert (request.end.result, request.end.inferred) == (Result.DROPPED, True)
    assert "its frame is for 02:42:00:00:00:99" in request.end.detail


# -- functions that were probed ----------------------------------------------------------------------------------------


def with_and_without(name: str, kind: str = "request") -> tuple[Recording, Journey, Journey]:
    """A journey as it was seen, and as it would be told where functions cannot be probed."""
    recording, journeys = told(name)
    bare = replace(recording, events=[event for event in recording.events if event.place != Place.FUNCTION], attached=[])
    seen, concluded = only(journeys, kind), only(bare.journeys(), kind)
    assert [hop.stage for hop in seen.hops] == [hop.stage for hop in concluded.hops]
    assert any(event.place == Place.FUNCTION for event in recording.events)
    return recording, seen, concluded


def at_stage(journey: Journey, stage: Stage) -> tuple[Hop, Hop, Hop]:
    """The hop, and those beside it."""
    (at,) = [at for at, hop in enumerate(journey.hops) if hop.stage is stage]
    return journey.hops[at - 1], journey.hops[at], journey.hops[at + 1]


@pytest.mark.parametrize("kind", ["request", "reply"])
def test_a_decision_that_was_seen_itself_has_its_own_time(kind: str) -> None:
    recording, seen, concluded = with_and_without("probed", kind)
    assert recording.way(seen) == (REQUEST_ON_ONE_BRIDGE if kind == "request" else swapped(REQUEST_ON_ONE_BRIDGE))
    before, hop, behind = at_stage(seen, Stage.L2_FORWARD)
    assert hop.timed and not hop.inferred and before.t_ns < hop.t_ns < behind.t_ns
    _before, other, behind = at_stage(concluded, Stage.L2_FORWARD)
    assert not other.timed and other.t_ns == behind.t_ns
    assert (hop.detail, hop.device, hop.role) == (other.detail, other.device, other.role)


def test_a_flood_to_the_only_other_port_is_seen_where_its_function_is() -> None:
    _recording, seen, concluded = with_and_without("probed_flood")
    before, hop, behind = at_stage(seen, Stage.L2_FLOOD)
    assert hop.timed and not hop.inferred and before.t_ns < hop.t_ns < behind.t_ns
    assert hop.detail == "as a SWITCH: to every port (no fdb row for 02:42:ac:11:00:03)"
    assert at_stage(concluded, Stage.L2_FLOOD)[1].inferred


def test_no_row_was_read_and_yet_the_bridge_did_not_flood() -> None:
    recording, journeys = told("probed_unread")  # it had learned the MAC in between
    hop = at_stage(only(journeys, "request"), Stage.L2_FORWARD)[1]
    assert hop.detail == "as a SWITCH: to the port of c2 (by a row of its fdb that was not read)" and not hop.inferred
    blind = replace(recording, attached=["__br_forward"])  # that it flooded would not have been seen
    assert at_stage(only(blind.journeys(), "request"), Stage.L2_FLOOD)[1].inferred


def test_the_way_up_to_the_host_is_seen_before_its_device_has_the_packet() -> None:
    _recording, seen, concluded = with_and_without("probed_host")
    hop, other = (at_stage(journey, Stage.L2_LOCAL)[1] for journey in (seen, concluded))
    assert hop.timed and not hop.inferred and hop.t_ns < other.t_ns
    assert hop._replace(t_ns=0) == other._replace(t_ns=0)
    assert at_stage(only(told("probed_host")[1], "reply"), Stage.L2_FORWARD)[1].timed


def test_a_packet_that_waits_for_its_next_hops_mac() -> None:
    request = only(told("probed_waiting")[1], "request")
    before, hop, behind = at_stage(request, Stage.NEIGHBOR)
    assert (before.stage, behind.stage) == (Stage.POSTROUTING, Stage.EGRESS)
    assert before.t_ns < hop.t_ns < behind.t_ns and (hop.timed, hop.inferred) == (True, False)
    assert (hop.node, hop.device, hop.detail) == ("c1", "eth0", "waits: the MAC of 172.17.0.3 is not known")
    assert not any(hop.stage is Stage.NEIGHBOR for hop in only(told("probed")[1], "request").hops)  # it is known there


def test_a_packet_that_waited_in_vain() -> None:
    recording, journeys = told("probed_nobody")
    request = only(journeys, "request")
    assert (request.hops[-1].stage, request.end.stage, request.end.reason) == (
        Stage.NEIGHBOR, Stage.NEIGHBOR, "NEIGH_FAILED")
    cut = replace(recording, events=[e for e in recording.events if e.place != Place.DROP])  # its end is not seen yet
    end = only(cut.journeys(), "request").end
    assert (end.result, end.detail) == (Result.UNKNOWN, "it was waiting for the next hop's MAC")


@pytest.mark.parametrize(("name", "detail"), [
    ("probed_udp", "UDP to port 53: a socket took it"), ("probed_fragments_v6", "ICMPv6 echo, answered")])
def test_what_took_a_packet_is_seen(name: str, detail: str) -> None:
    _recording, seen, concluded = with_and_without(name)
    assert (seen.hops[-1].stage, seen.hops[-1].inferred, seen.end.detail) == (Stage.DELIVER, False, detail)
    # of fragments, the end of the whole would not have been seen without its beginning, but it is in this file
    assert concluded.hops[-1].inferred == (name == "probed_udp")
