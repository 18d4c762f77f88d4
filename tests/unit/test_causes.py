"""Causes: recorded runs with a fault written into them as the kernel or a table would show it, and what only looks alike."""

from __future__ import annotations

import re
from dataclasses import replace
from ipaddress import ip_address, ip_interface, ip_network
from typing import Any

import pytest

from tests.unit.recording import Recording, load
from tracer.journey import causes as table, reasons
from tracer.journey.causes import CAUSES, LAST_RESORTS, NAMES, REMARKS, explain, explain_failure
from tracer.model.journey import Cause, End, Journey, Result, RouteChoice, Rule, Stage
from tracer.model.layout import Place
from tracer.model.probes import Missing
from tracer.model.topology import (
    Attachment,
    BridgePort,
    Container,
    EngineNetwork,
    LinkKey,
    Listener,
    Namespace,
    Neighbor,
    PolicyRule,
    Published,
    Route,
    Topology,
)


def network(name: str, device: str, subnet: str, **more: Any) -> EngineNetwork:
    return EngineNetwork(name * 8, name, "bridge", device, (ip_network(subnet),), **more)


def container(name: str, on: str, *ports: Published, state: str = "running") -> Container:
    return Container(name * 8, name, 7, state, "bridge", (Attachment(on, (), None),), ports)


# Of tracer/map/findings.py: no packet tells them.
FOUND_BEFORE = {"bridge_filter_off", "mtu_unequal", "subnets_overlap", "veth_without_bridge", "two_backends"}
BRIDGE, WEB = network("bridge", "docker0", "172.17.0.0/16"), network("web", "br-6c6162776562", "172.18.0.0/16")
C1, C2, C3 = container("c1", "bridge"), container("c2", "bridge"), container("c3", "web")


class Run:
    """A recorded run, to be changed into one with a fault."""

    def __init__(self, name: str, kind: str = "request") -> None:
        self.recording: Recording = load(name)
        self.kind = kind
        self.journeys = [j for j in self.recording.journeys() if j.seq in (1, None)]
        self.topology: Topology = replace(self.recording.topology, networks=(BRIDGE, WEB), containers=(C1, C2, C3))

    @property
    def subject(self) -> Journey:
        return next(j for j in self.journeys if j.kind == self.kind and j.seq == 1)

    def space(self, name: str) -> Namespace:
        return next(n for n in self.topology.namespaces.values() if self.topology.node(n.netns) == name)

    def read(self, name: str, **changes: Any) -> Run:
        """What was read of this namespace is different."""
        changed = replace(self.space(name), **changes)
        self.topology = replace(self.topology, namespaces={**self.topology.namespaces, changed.netns: changed})
        return self

    def engine(self, **changes: Any) -> Run:
        self.topology = replace(self.topology, **changes)
        return self

    def link(self, name: str, device: str, /, **changes: Any) -> Run:
        links = self.space(name).links
        return self.read(name, links={i: replace(link, **changes) if link.name == device else link
                                      for i, link in links.items()})

    def without(self, *kinds: str) -> Run:
        self.journeys = [j for j in self.journeys if j.kind not in kinds]
        return self

    def ended(self, node: str, stage: Stage, *, result: Result = Result.DROPPED, reason: str | None = None,
              function: str | None = None, device: str | None = None, rules: tuple[Rule, ...] = ()) -> Run:
        """It got to this stage of that node, no further. The last of `rules`, which it met there, ended it."""
        hops = self.subject.hops
        at = next(i for i, hop in enumerate(hops) if (hop.node, hop.stage) == (node, stage))
        end = End(result, node, device or hops[at].device, stage, reason, function=function,
                  rule=rules[-1] if rules else None)
        changed = replace(self.subject, hops=(*hops[:at], hops[at]._replace(rules=rules, rules_unknown=None)), end=end)
        self.journeys = [changed if j is self.subject else j for j in self.journeys]
        return self

    def causes(self, silent: bool = True, missing: tuple[Missing, ...] = ()) -> tuple[Cause, ...]:
        told = explain(self.journeys, self.topology, {1} if silent else (), missing)
        return next(j for j in told if j.kind == self.kind and j.seq == 1).end.causes

    def names(self, silent: bool = True) -> list[str]:
        return [cause.name for cause in self.causes(silent)]

    def port_of(self, name: str) -> str:
        return next(d for d, steady in self.recording.names.items() if steady == f"veth-{name}")


def rule(chain: str, text: str | None, verdict: str = "drop", **more: Any) -> Rule:
    return Rule("ip", more.pop("table", "filter"), chain, text, verdict, **more)


POLICY = rule("FORWARD", None, policy=True)
ISOLATION = rule("DOCKER-ISOLATION-STAGE-2", "-A DOCKER-ISOLATION-STAGE-2 -o br-6c6162776562 -j DROP", owner="Docker")


def dropped_at_forward(name: str, *rules: Rule) -> Run:
    return Run(name).without("reply").ended("host", Stage.FORWARD, reason="NETFILTER_DROP", function="nft_do_chain",
                                            rules=rules)


# rules -------------------------------------------------------------------------------------------------------------------


def test_two_networks() -> None:
    (found,) = dropped_at_forward("isolated", ISOLATION).causes()
    assert found == Cause(
        "networks_isolated",
        "c1 (network bridge) and c3 (network web) are on different Docker networks, which Docker isolates.",
        ("filter/DOCKER-ISOLATION-STAGE-2: -A DOCKER-ISOLATION-STAGE-2 -o br-6c6162776562 -j DROP",),
        "docker network connect web c1")
    (unknown,) = Run("isolated").causes()  # rules are not traced
    assert (unknown.name, unknown.evidence) == ("networks_isolated", ("which rule dropped it is not known",))
    (bare,) = dropped_at_forward("isolated", ISOLATION).engine(networks=(), containers=()).causes()  # no engine told
    assert bare.sentence.startswith("c1 (on docker0) and c3 (on br-6c6162776562) are on different")
    assert bare.mend is None


def test_a_rule_of_somebody_else_between_two_networks_isolates_nothing() -> None:
    user = rule("DOCKER-USER", "-A DOCKER-USER -s 172.17.0.2/32 -j DROP")
    assert dropped_at_forward("isolated", user).names() == ["docker_user_rule"]
    own = rule("FORWARD", "-A FORWARD -s 172.17.0.2/32 -j DROP")
    (found,) = dropped_at_forward("isolated", own).causes()
    assert (found.name, found.mend) == ("firewall_rule", "iptables -t filter -D FORWARD -s 172.17.0.2/32 -j DROP")


def test_an_internal_network() -> None:
    inside = replace(WEB, internal=True)
    text = "-A DOCKER-ISOLATION-STAGE-1 ! -s 172.18.0.0/16 -o br-6c6162776562 -j DROP"
    run = dropped_at_forward("isolated", rule("DOCKER-ISOLATION-STAGE-1", text))
    assert run.engine(networks=(BRIDGE, inside)).names() == ["network_internal"]


def test_direct_access() -> None:
    raw = rule("PREROUTING", "-A PREROUTING -d 172.18.0.2/32 ! -i br-6c6162776562 -j DROP", table="raw")
    run = Run("isolated").ended("host", Stage.PREROUTING, reason="NETFILTER_DROP", rules=(raw,))
    (found,) = run.causes()  # from another network of Docker's, it is what isolates the two
    assert (found.name, found.mend) == ("networks_isolated", "docker network connect web c1")
    assert found.sentence.startswith("c1 (network bridge) and c3 (network web) are on different Docker networks")
    (found,) = run.engine(networks=(WEB,)).causes()
    assert (found.name, found.mend) == ("direct_access_blocked", "docker network connect web c1")
    assert "no rule in DOCKER-USER" in found.sentence and "came by docker0" in found.sentence
    other = replace(raw, rule="-A PREROUTING -d 172.18.0.9/32 ! -i br-6c6162776562 -j DROP")
    assert Run("isolated").ended("host", Stage.PREROUTING, reason="NETFILTER_DROP", rules=(other,)).names() == [
        "firewall_rule"]


@pytest.mark.parametrize("last", [
    rule("DOCKER", "-A DOCKER ! -i docker0 -o docker0 -j DROP", owner="Docker"), POLICY])
def test_a_port_that_is_not_published(last: Rule) -> None:
    jump = rule("FORWARD", "-A FORWARD -j DOCKER-USER", "jump DOCKER-USER")
    run = Run("published").without("reply").ended("host", Stage.FORWARD, reason="NETFILTER_DROP", rules=(jump, last))
    device = replace(next(iter(run.space("outside").links.values())), addresses=(ip_interface("172.17.0.3/16"),))
    c2 = Namespace(99, "c2", "/proc/7/ns/net", links={device.ifindex: device})
    run.engine(names={**run.topology.names, 99: "c2"}, namespaces={**run.topology.namespaces, 99: c2},
               containers=(C1, container("c2", "bridge", Published("tcp", 443, None, 8443))))
    found = run.causes()[0]
    assert (found.name, found.sentence.split(":")[0]) == ("port_not_published", "Port 80 of c2 is not published")
    assert found.evidence[0] == "c2 publishes 443/tcp at 8443"
    run.engine(containers=(C1, container("c2", "bridge", Published("tcp", 80, None, 8080))))
    assert "port_not_published" not in run.names()


def test_icc() -> None:
    off = rule("FORWARD", "-A FORWARD -i docker0 -o docker0 -j DROP")
    closed = replace(BRIDGE, icc=False)
    (found,) = dropped_at_forward("one_bridge", off).engine(networks=(closed,)).causes()
    assert found.name == "icc_off" and "daemon.json" in str(found.mend)
    assert dropped_at_forward("one_bridge", off).names()[0] == "icc_off"  # the engine does not know of it
    assert "icc_off" not in dropped_at_forward("one_bridge", POLICY).names()
    assert "icc_off" not in dropped_at_forward("outside", rule("FORWARD", "-A FORWARD -i docker0 -o eth0 -j DROP")).names()


def test_bridged_traffic_and_the_policy() -> None:
    setting = {"net.bridge.bridge-nf-call-iptables": "1"}
    jump = rule("FORWARD", "-A FORWARD -j DOCKER-USER", "jump DOCKER-USER")
    back = rule("DOCKER-USER", "-A DOCKER-USER -j RETURN", "return")
    found = dropped_at_forward("one_bridge", jump, back, POLICY).read("host", sysctls=setting).causes()
    assert [c.name for c in found] == ["bridged_traffic_filtered", "chain_policy"]
    assert [c.mend for c in found] == ["sysctl -w net.bridge.bridge-nf-call-iptables=0",
                                       "iptables -I DOCKER-USER -i docker0 -o docker0 -j ACCEPT"]
    routed = dropped_at_forward("outside", jump, back, POLICY).read("host", sysctls=setting).causes()
    assert [c.name for c in routed] == ["chain_policy"]


def test_docker_s_chains_are_missing() -> None:
    assert dropped_at_forward("outside", POLICY).names() == ["docker_chains_missing", "chain_policy"]


def test_accepted_in_one_table_and_dropped_in_another() -> None:
    one, two = Rule("inet", "one", "f", "accept", "accept"), Rule("inet", "two", "f", "ip daddr 203.0.113.1 drop", "drop")
    (found,) = dropped_at_forward("outside", one, two).causes()
    assert found.name == "accepted_then_dropped"
    assert found.sentence.startswith("inet one/f accepted it, and then inet two/f dropped it")
    (alone,) = dropped_at_forward("outside", two).causes()
    assert alone.name == "firewall_rule"


def test_the_host_s_firewall() -> None:
    deny = rule("ufw-user-input", "-A ufw-user-input -p tcp --dport 22 -j DROP", owner="ufw")
    run = Run("gateway").without("reply").ended("host", Stage.INPUT, reason="NETFILTER_DROP", rules=(deny,))
    (found,) = run.causes()
    assert (found.name, found.mend) == ("host_input_blocked", "ufw allow in on docker0")


def test_a_flushed_nat_table() -> None:
    run = Run("published").without("reply")
    assert run.subject.hops[0].node == "outside"
    hops = tuple(h._replace(rewrite=None) for h in run.subject.hops)
    run.journeys = [replace(run.subject, hops=hops)]
    run.ended("host", Stage.PREROUTING, reason="NO_SOCKET", function="tcp_v4_rcv").read("host", listeners=())
    run.engine(containers=(container("c2", "bridge", Published("tcp", 80, None, 8080)),))
    (found,) = run.causes()
    assert (found.name, found.mend) == ("docker_rules_missing", "systemctl restart docker")
    run.engine(containers=())
    assert run.names() == ["nothing_listens"]


def test_a_full_conntrack_table() -> None:
    run = Run("gateway").without("reply").ended("host", Stage.PREROUTING, reason="NETFILTER_DROP", function="nf_hook_slow")
    full = {"net.netfilter.nf_conntrack_count": "64", "net.netfilter.nf_conntrack_max": "64"}
    assert run.read("host", sysctls=full).names() == ["conntrack_full"]
    assert run.read("host", sysctls=full | {"net.netfilter.nf_conntrack_count": "63"}).names() == []


# routing -----------------------------------------------------------------------------------------------------------------


def test_forwarding_is_off_only_where_it_was_read() -> None:
    run = Run("outside").without("reply").ended("host", Stage.ROUTE, reason="IP_INADDRERRORS", function="ip_error",
                                                device="docker0")
    off = {"net.ipv4.ip_forward": "0", "net.ipv4.conf.docker0.forwarding": "0"}
    (found,) = run.read("host", sysctls=off).causes()
    assert (found.name, found.mend, found.evidence) == (
        "forwarding_off", "sysctl -w net.ipv4.ip_forward=1", ("net.ipv4.conf.docker0.forwarding = 0",))
    one = {"net.ipv4.ip_forward": "1", "net.ipv4.conf.docker0.forwarding": "0"}
    assert run.read("host", sysctls=one).causes()[0].mend == "sysctl -w net.ipv4.conf.docker0.forwarding=1"
    on = {"net.ipv4.ip_forward": "1", "net.ipv4.conf.docker0.forwarding": "1"}
    assert run.read("host", sysctls=on).names() == []


def test_a_route_went_with_its_device() -> None:
    run = Run("outside").without("reply").ended("host", Stage.ROUTE, reason="IP_INNOROUTES", function="ip_error")
    hops = (*run.subject.hops, run.subject.hops[-1]._replace(
        stage=Stage.ROUTE, detail="no route to 203.0.113.1 in table main",
        route=RouteChoice("main", None, None, None, None, None)))
    run.journeys = [replace(run.subject, hops=hops)]
    run.read("host", routes=())
    (found,) = run.causes()
    assert (found.sentence, found.mend) == (
        "The host has no route to 203.0.113.1.", "ip route add 203.0.113.1 via GATEWAY")
    (found,) = run.link("host", "eth0", up=False).causes()
    assert found.sentence == "The host has no route to 203.0.113.1: eth0 is down, and its routes went with it."
    assert found.evidence == ("no route to 203.0.113.1 in table main", "eth0: state down (ip link)")
    assert found.mend == "ip link set eth0 up && ip route add default via GATEWAY"
    inside = f"nsenter --net={run.space('host').path} "
    (found,) = run.engine(host=0).causes()  # each of them where it belongs
    assert found.mend == f"{inside}ip link set eth0 up && {inside}ip route add default via GATEWAY"


def test_a_queue_that_drops_for_want_of_a_carrier_is_not_full() -> None:
    run = Run("outside").without("reply").ended("host", Stage.EGRESS, reason="QDISC_DROP", function="__dev_queue_xmit",
                                                device="eth0")
    assert run.names() == ["queue_full"]
    (found,) = run.link("host", "eth0", carrier=False).causes()
    assert (found.name, found.sentence, found.mend) == (
        "no_carrier", "eth0 of the host has no carrier: no cable, or its other end is down.",
        "plug its cable in, or set its other end up")
    run.link("host", "eth0", peer=LinkKey(run.space("c1").netns, next(
        i for i, link in run.space("c1").links.items() if link.name == "eth0"))).link("c1", "eth0", up=False)
    (found,) = run.causes()
    assert found.sentence == "eth0 of the host has no carrier: eth0 of c1, its other end, is down."
    assert found.mend == f"nsenter --net={run.space('c1').path} ip link set eth0 up"


def test_a_time_to_live_that_ran_out_is_not_a_broken_header() -> None:
    (found,) = Run("ttl").causes()
    assert found.name == "ttl_expired"
    assert found.evidence == ("it was sent with a time to live of 1",
                              "an ICMP error told c1: type 11, code 0, from 172.17.0.1")
    run = Run("ttl").ended("host", Stage.ROUTE, reason="IP_INHDR", function="ip_rcv_core")
    assert run.names() == ["bad_header"]


def test_martians() -> None:
    run = Run("outside").without("reply").ended("host", Stage.ROUTE, reason="IP_LOCALNET", function="ip_rcv_finish_core")
    assert run.names() == ["martian"]
    run = Run("outside").without("reply").ended("host", Stage.ROUTE, reason="IP_LOCAL_SOURCE", function="ip_rcv_finish_core")
    assert run.names() == ["source_is_own"]


# neighbours and frames ---------------------------------------------------------------------------------------------------


def test_nobody_has_the_address() -> None:
    (found,) = Run("nobody").causes()
    assert found.name == "nobody_has_address"
    assert found.evidence == ("c1 asked 3 times for the MAC of 172.17.0.99 by ARP; no answer was seen",
                              "an ICMP error told c1: type 3, code 1, from 172.17.0.2")
    (waits,) = Run("nobody").ended("c1", Stage.POSTROUTING, result=Result.UNKNOWN).causes()
    assert waits.name == "nobody_has_address"
    assert Run("nobody").without("arp").names() == []  # nobody was seen to ask


def test_a_lookup_that_was_dropped_hands_its_cause_on() -> None:
    run = Run("nobody")
    question = next(j for j in run.journeys if j.kind == "arp")
    lost = replace(question, end=End(Result.DROPPED, "host", run.port_of("c1"), Stage.INGRESS, "BRIDGE_INGRESS_STP_STATE",
                                     function="br_handle_frame"))
    run.journeys = [lost if j is question else j for j in run.journeys]
    run.link("host", "docker0", up=False)
    found = run.causes()[0]
    assert (found.name, found.mend) == ("bridge_down", "ip link set docker0 up")


def test_a_mac_that_somebody_has_is_not_called_wrong() -> None:
    run = Run("one_bridge").without("reply").ended("c2", Stage.INGRESS, reason="OTHERHOST", function="ip_rcv_core")
    index = next(i for i, link in run.space("c1").links.items() if link.name == "eth0")
    wrong = Neighbor(ip_address("172.17.0.3"), index, "02:42:00:00:00:99", "PERMANENT")
    (found,) = run.read("c1", neighbors=(wrong,)).causes()
    assert (found.name, found.evidence) == ("wrong_mac", ("172.17.0.3 lladdr 02:42:00:00:00:99 PERMANENT (ip neigh of c1)",))
    right = replace(wrong, mac=next(link.mac for link in run.space("c2").links.values() if link.name == "eth0"))
    assert run.read("c1", neighbors=(right,)).names() == []


@pytest.mark.parametrize("function", ["br_dev_queue_push_xmit", "br_nf_dev_queue_xmit", "__dev_forward_skb2"])
def test_a_port_s_mtu(function: str) -> None:
    run = Run("one_bridge").without("reply")
    port = run.port_of("c2")
    run.ended("host", Stage.POSTROUTING, reason="NOT_SPECIFIED", function=function, device=port)
    (found,) = run.link("host", port, mtu=60).causes()
    assert (found.name, found.mend) == ("port_mtu_too_small", f"ip link set {port} mtu 1500")
    assert f"MTU of {port}: 60" in found.evidence and "length of the packet: 84" in found.evidence
    assert run.link("host", port, mtu=84).names() == []


def test_ports_of_a_bridge() -> None:
    run = Run("one_bridge").without("reply").ended("host", Stage.PREROUTING, reason="NO_TX_TARGET",
                                                   function="br_handle_frame_finish")
    one, two = run.port_of("c1"), run.port_of("c2")
    assert run.names() == []
    isolated = BridgePort("forwarding", hairpin=False, isolated=True)
    assert run.link("host", one, port=isolated).names() == []
    assert run.link("host", two, port=isolated).names() == ["ports_isolated"]
    run.link("host", one, port=None).link("host", two, port=BridgePort("blocking", False, False))
    assert run.names() == ["port_blocked"]
    assert run.link("host", two, port=None, up=False).names() == ["port_down"]
    run.link("host", two, port=BridgePort("forwarding", False, False, flood=False), up=True)
    assert run.names() == []  # it has learned c2's MAC
    (found,) = run.read("host", fdb=()).causes()
    assert (found.name, found.evidence, found.mend) == (
        "flood_off", (f"{two}: flood off (bridge -d link)",), f"bridge link set dev {two} flood on")


def test_a_device_s_name_is_one_word_of_a_command() -> None:
    run = Run("one_bridge").without("reply").ended("host", Stage.PREROUTING, reason="NO_TX_TARGET",
                                                   function="br_handle_frame_finish")
    (found,) = run.link("host", run.port_of("c2"), name="a;reboot", up=False).causes()
    assert found.mend == "ip link set 'a;reboot' up"


# transport and silence ---------------------------------------------------------------------------------------------------


def test_nothing_listens_or_elsewhere() -> None:
    def run() -> Run:
        run = Run("published")
        inode = run.subject.hops[-1].netns
        return run.engine(namespaces={**run.topology.namespaces, inode: Namespace(inode, "c2", "/proc/7/ns/net")})

    assert run().names(silent=False) == ["nothing_listens"]
    loopback = Listener("tcp", ip_address("127.0.0.1"), 80)
    assert run().read("c2", listeners=(loopback,)).names(silent=False) == ["listens_elsewhere"]
    for other in (replace(loopback, port=81), replace(loopback, protocol="udp")):
        assert run().read("c2", listeners=(other,)).names(silent=False) == ["nothing_listens"]


@pytest.mark.parametrize(("reason", "name"), [
    ("TCP_CSUM", "bad_checksum"), ("IP_CSUM", "bad_checksum"), ("SOCKET_RCVBUFF", "socket_full"), ("XDP", "xdp_drop"),
    ("SOCKET_FILTER", "socket_filter"), ("TC_EGRESS", "tc_drop"), ("QDISC_DROP", "queue_full"), ("NOMEM", "no_memory"),
    ("XFRM_POLICY", "ipsec_policy"), ("IPV6DISABLED", "ipv6_disabled"), ("DEV_READY", "device_not_ready")])
def test_reasons_that_say_it_all(reason: str, name: str) -> None:
    run = Run("one_bridge").without("reply").ended("c2", Stage.INPUT, reason=reason, function="tcp_v4_rcv")
    (found,) = run.causes()
    assert (found.name, found.evidence) == (name, (f"{reason}, in TCP (tcp_v4_rcv)",))


def test_silence_after_a_delivery() -> None:
    def run() -> Run:
        return Run("one_bridge").without("reply")

    assert run().names() == ["no_reply_seen"]
    assert run().names(silent=False) == []
    ignoring = {"net.ipv4.icmp_echo_ignore_all": "1"}
    assert run().read("c2", sysctls=ignoring).names() == ["echo_ignored"]
    assert Run("one_bridge").read("c2", sysctls=ignoring).names() == []  # it did reply
    assert run().read("c2", routes=(Route(ip_network("10.0.0.0/8"), None, 2, 254, "unicast", None, 0),)).names() == [
        "no_way_back"]


def test_what_left_untranslated() -> None:
    def run() -> Run:
        run = Run("outside").without("reply")
        run.journeys = [replace(run.subject, hops=tuple(h._replace(rewrite=None) for h in run.subject.hops))]
        return run.read("outside", routes=(Route(ip_network("198.51.100.0/24"), None, 2, 254, "unicast", None, 0),))

    (found,) = run().causes()
    assert (found.name, found.mend) == (
        "source_not_translated", "iptables -t nat -A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE")
    back = run().read("outside", routes=(Route(ip_network("172.17.0.0/16"), None, 2, 254, "unicast", None, 0),))
    assert "source_not_translated" not in back.names()
    assert "source_not_translated" not in Run("outside").without("reply").names()  # it was
    left = run()
    left.ended("host", Stage.EGRESS, result=Result.LEFT)
    assert left.names() == ["source_not_translated"]
    plain = Run("outside").without("reply").ended("host", Stage.EGRESS, result=Result.LEFT)
    assert plain.names() == ["beyond_this_host"]


def test_probes_that_are_missing_are_named() -> None:
    run = Run("one_bridge").without("reply").ended("host", Stage.INGRESS, result=Result.UNKNOWN)
    assert run.names() == []
    (found,) = run.causes(missing=(Missing("kfree_skb", "drops and their reasons: Operation not permitted"),))
    assert (found.name, found.evidence) == ("not_observed", ("kfree_skb: drops and their reasons: Operation not permitted",))


def test_a_remark_is_no_cause() -> None:
    run = Run("published")
    hops = run.subject.hops
    assert any(h.rewrite for h in hops)
    run.journeys = [replace(run.subject, end=End(Result.DELIVERED, hops[-1].node, "eth0", Stage.DELIVER))]
    filter_input = replace(run.space("host").chains[0], hook="input", table="filter", name="INPUT", family="ip") \
        if run.space("host").chains else None
    assert filter_input
    (found,) = run.read("host", chains=(filter_input,)).causes(silent=False)
    assert (found.name, found.remark) == ("input_not_met", True)
    assert run.read("host", chains=()).causes(silent=False) == ()


def test_what_never_left() -> None:
    run = Run("one_bridge")
    name = "ENETUNREACH"
    bare = run.read("c1", routes=()).space("c1")
    plain = explain_failure(name, bare, "203.0.113.1", run.topology)
    assert plain and (plain.name, plain.evidence) == (
        "no_route_in_sender", ("the send failed: ENETUNREACH", "no route of c1 holds 203.0.113.1"))
    assert plain.mend == f"nsenter --net={bare.path} ip route add default via 172.17.0.1"
    inside = run.engine(networks=(replace(BRIDGE, internal=True), WEB)).topology
    internal = explain_failure(name, bare, "203.0.113.1", inside)
    assert internal and internal.mend == "docker network connect web c1" and "internal" in internal.sentence
    black = replace(bare, routes=(Route(ip_network("203.0.113.0/24"), None, None, 254, "blackhole", None, 0),))
    refused = explain_failure("EINVAL", black, "203.0.113.1", run.topology)
    assert refused and refused.name == "route_refuses"
    assert explain_failure("EPERM", bare, "203.0.113.1", run.topology) is None
    c1 = Run("one_bridge").space("c1")  # has a default route
    ended = explain_failure(name, c1, "203.0.113.1", run.topology)
    assert ended and (ended.name, ended.mend) == ("no_route_in_sender", f"nsenter --net={c1.path} ip rule")
    assert "found no route to 203.0.113.1, though its tables have default" in ended.sentence
    rules = (PolicyRule(4, 9, 0, "from all to 203.0.113.0/24 unreachable", None, ip_network("203.0.113.0/24")),
             PolicyRule(4, 10, 0, "from 10.0.0.0/8 prohibit", ip_network("10.0.0.0/8")),
             PolicyRule(6, 9, 0, "from all unreachable"), PolicyRule(4, 11, 77, "from all lookup 77"))
    ruled = explain_failure(name, replace(c1, rules=rules), "203.0.113.1", run.topology)
    assert ruled and (ruled.name, ruled.mend) == (
        "route_refuses", f"nsenter --net={c1.path} ip rule del from all to 203.0.113.0/24 unreachable priority 9")


def test_a_row_of_ip_rule_that_refuses() -> None:
    run = Run("outside").without("reply").ended("host", Stage.ROUTE, reason="NOT_SPECIFIED", function="ip_error")
    lookup = run.subject.hops[-1]._replace(stage=Stage.ROUTE, detail="no route to 203.0.113.1",
                                           route=RouteChoice("0", None, None, None, None, None))
    run.journeys = [replace(run.subject, hops=(*run.subject.hops, lookup))]
    assert run.names() == ["no_route"]
    refuses = PolicyRule(4, 100, 0, "from 172.17.0.0/16 prohibit", ip_network("172.17.0.0/16"))
    (found,) = run.read("host", rules=(refuses, replace(refuses, source=ip_network("10.0.0.0/8")))).causes()
    assert (found.name, found.mend) == ("route_refuses", "ip rule del from 172.17.0.0/16 prohibit priority 100")
    assert found.evidence == ("no route to 203.0.113.1",
                              "concluded: it is the only row there that refuses packets from 172.17.0.2 to 203.0.113.1")
    other = replace(refuses, words="not from 172.17.0.0/16 prohibit", inverted=True)
    assert run.read("host", rules=(other,)).names() == ["no_route"]
    assert run.read("host", rules=(refuses, other)).names() == ["no_route"]  # which may have other conditions
    assert run.read("host", rules=(refuses, replace(refuses, priority=101))).names() == ["no_route"]  # which one?


def test_what_conntrack_calls_invalid() -> None:
    run = Run("outside")
    assert "INVALID" not in {h.conntrack for j in run.journeys for h in j.hops}
    recording = run.recording
    first = next(e for e in recording.events if e.place == Place.HOOK and e.conntrack)
    later = [e._replace(conntrack=0, conntrack_info=0, tuples=b"") if e.conntrack and e.time > first.time else e
             for e in recording.events]
    journeys = replace(recording, events=later).journeys()
    request = next(j for j in journeys if j.kind == "request")
    assert [h.stage for h in request.hops if h.conntrack == "INVALID" and h.node == "host"] == [Stage.PREROUTING]
    assert explain([request], run.topology, {1})[0].end.causes[0].name != "invalid_skips_nat"  # it was translated
    plain = replace(request, hops=tuple(h._replace(rewrite=None) for h in request.hops))
    assert "invalid_skips_nat" in [c.name for c in explain([plain], run.topology, {1})[0].end.causes]


def test_what_is_not_tracked_is_not_translated() -> None:
    run = Run("outside").without("reply").read("outside", routes=(
        Route(ip_network("198.51.100.0/24"), None, 2, 254, "unicast", None, 0),))
    notrack = rule("PREROUTING", "-A PREROUTING -i docker0 -j CT --notrack", "continue", table="raw")
    run.journeys = [replace(run.subject, hops=tuple(
        h._replace(rewrite=None, conntrack="UNTRACKED", rules=(notrack,)) if h.stage is Stage.PREROUTING else
        h._replace(rewrite=None) for h in run.subject.hops))]
    found = run.causes()[0]
    assert found.name == "untracked_skips_nat" and f"raw/PREROUTING: {notrack.rule}" in found.evidence


def test_addresses_that_two_have() -> None:
    eth0 = Run("one_bridge").space("c1").by_name("eth0")
    assert eth0
    both = Run("one_bridge", "reply").link("c2", "eth0", addresses=eth0.addresses)
    assert both.names(silent=False) == ["address_twice"]
    lost = Run("one_bridge").without("reply").link("c2", "eth0", mac=eth0.mac)
    assert "mac_twice" in lost.ended("host", Stage.L2_FORWARD, result=Result.UNKNOWN).names()


def test_a_reply_by_the_same_bridge_takes_no_other_way() -> None:
    """A port of the bridge and the bridge itself are one way."""
    reply = Run("gateway", "reply")
    assert {h.device for h in reply.subject.hops if h.node == "host"} != set()
    assert reply.ended("c1", Stage.INGRESS, reason="TCP_OLD_DATA").names() == []


def test_real_traffic_is_no_probe() -> None:
    """What is told at the same time belongs to other flows."""
    run = Run("outside")
    case = table.Case(replace(run.subject, seq=None), tuple(replace(j, seq=None) for j in run.journeys), run.topology, False)
    assert (case.replies, case.of_kind("request")) == ([], [])


def test_a_lookup_that_fails_though_there_is_a_row() -> None:
    run = Run("outside")
    failed = tuple(h._replace(route=RouteChoice("local", None, None, None, None, None), detail="no route to 203.0.113.1")
                   if h.route and h.node == "host" else h for h in run.subject.hops)
    run.journeys = [replace(run.subject, hops=failed)]
    run.ended("host", Stage.ROUTE, reason="IP_INNOROUTES")
    (found,) = run.causes()
    assert (found.name, found.mend, "row of `ip rule`" in found.sentence) == ("no_route", "ip rule", True)


# the table itself --------------------------------------------------------------------------------------------------------


def test_every_cause_has_a_name_with_a_meaning() -> None:
    told = {check.__name__ for check in (*CAUSES, *LAST_RESORTS, *REMARKS)} - {"question_lost"}
    assert told | FOUND_BEFORE | {"no_route_in_sender", "send_refused"} == set(NAMES)
    assert all(re.fullmatch("[a-z_0-9]+", name) for name in NAMES)


@pytest.mark.parametrize("name", ["one_bridge", "one_bridge_v6", "gateway", "from_host", "outside", "fragments",
                                  "fragments_v6", "itself", "arp"])
def test_a_run_in_which_all_went_well_has_no_cause(name: str) -> None:
    recording = load(name)
    topology = replace(recording.topology, networks=(BRIDGE, WEB), containers=(C1, C2, C3))
    assert [j.end.causes for j in explain(recording.journeys(), topology) if j.end.causes] == []


def test_no_more_than_three(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "CAUSES", [lambda case: Cause("one", "")] * 5)
    assert len(Run("one_bridge").causes()) == 3


def test_reasons_by_name_and_subsystem() -> None:
    known = {6: "SOCKET_RCVBUFF", 2 << 16: "OPENVSWITCH"}
    assert reasons.name(6, known) == "SOCKET_RCVBUFF"
    assert reasons.name(7, known) == "7"
    assert reasons.name((2 << 16) + 3, known) == "OPENVSWITCH reason 3"
    assert reasons.name((5 << 16) + 1, known) == "subsystem 5 reason 1"
    assert reasons.name(6, {}) == reasons.NO_REASONS
    assert reasons.words("NOT_SPECIFIED", "neigh_invalidate") == reasons.WORDS["NEIGH_FAILED"]
    assert reasons.words("NOT_SPECIFIED", "who_knows") == ""
    assert (reasons.place("tcp_v4_rcv"), reasons.place("who_knows"), reasons.place(None)) == (
        "in TCP (tcp_v4_rcv)", "in who_knows()", "")
