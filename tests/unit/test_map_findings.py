"""Findings: a recorded network with a fault written into it as a table would show it, and what only looks alike."""

from __future__ import annotations

import re
from dataclasses import replace
from ipaddress import ip_address, ip_interface, ip_network

import pytest

from tests.unit.topo import changed, network, port_of, relinked, source, space
from tracer.journey.causes import NAMES
from tracer.map.findings import CHECKS, findings, unchecked
from tracer.map.picture import ALL
from tracer.model.counters import CountedRule
from tracer.model.journey import Cause
from tracer.model.ruleset import Ruleset
from tracer.model.topology import BaseChain, BridgePort, Neighbor, Route, Topology

WHOLE = network().topology
RULES = next(ruleset for ruleset in network().rulesets if ruleset.netns == WHOLE.host)


def found(topology: Topology = WHOLE, ruleset: Ruleset | None = RULES) -> list[Cause]:
    return list(findings(topology, ruleset))


def only(topology: Topology = WHOLE, ruleset: Ruleset | None = RULES) -> Cause:
    (one,) = found(topology, ruleset)
    return one


def device(network_name: str) -> str:
    return next(n.device for n in WHOLE.networks if n.name == network_name) or ""


def sysctl(name: str, value: str | None) -> Topology:
    settings = {**WHOLE.namespaces[WHOLE.host].sysctls, name: value}
    return changed("host", sysctls={key: one for key, one in settings.items() if one is not None})


def test_a_network_without_a_fault() -> None:
    assert found() == []
    assert unchecked(WHOLE, RULES) == ()


def test_each_check_is_in_the_table_of_causes() -> None:
    assert {check.__name__ for check in CHECKS} <= set(NAMES)


def test_forwarding_is_off() -> None:
    one = only(sysctl("net.ipv4.ip_forward", "0"))
    assert (one.name, one.mend) == ("forwarding_off", "sysctl -w net.ipv4.ip_forward=1")
    assert one.sentence == "The host does not forward packets from one device to another: net.ipv4.ip_forward is 0."
    assert only(sysctl("net.ipv6.conf.all.forwarding", "0")).evidence[0] == "net.ipv6.conf.all.forwarding = 0"


@pytest.mark.parametrize("value", ["0", None])
def test_icc_is_off_and_br_netfilter_too(value: str | None) -> None:
    one = only(sysctl("net.bridge.bridge-nf-call-iptables", value))
    assert one.name == "bridge_filter_off"
    assert one.sentence.startswith("Containers on network quiet are not to talk to each other, but br_netfilter is off")
    assert any("-j DROP" in evidence for evidence in one.evidence)


def test_forward_drops_and_dockers_chains_are_gone() -> None:
    flushed = replace(RULES, rules=tuple(r for r in RULES.rules if r.chain != "FORWARD" or r.rule is None))
    one = only(ruleset=flushed)
    assert (one.name, one.mend) == ("docker_chains_missing", "systemctl restart docker")
    accepting = tuple(replace(r, target="ACCEPT") if (r.chain, r.rule) == ("FORWARD", None) else r for r in flushed.rules)
    assert found(ruleset=replace(RULES, rules=accepting)) == []


def test_both_backends() -> None:
    chains = (*(WHOLE.namespaces[WHOLE.host].chains or ()), BaseChain("ip", "filter", "FORWARD", "forward", 0, legacy=True))
    topology = changed("host", chains=chains)
    assert found(topology) == []  # an empty chain, as listing the rules makes it, is no use
    rule = CountedRule("ip", "filter", "FORWARD", "-A FORWARD -j ACCEPT", "ACCEPT", 0, None, legacy=True)
    one = only(topology, replace(RULES, rules=(*RULES.rules, rule)))
    assert one.name == "two_backends"
    assert one.evidence[0] == "iptables-legacy: ip filter"


def test_a_bridge_is_down() -> None:
    one = only(relinked("host", "docker0", up=False))
    assert (one.name, one.mend) == ("bridge_down", "ip link set docker0 up")
    assert found(relinked("host", "br-own", up=False, addresses=()))[0].name == "bridge_down"


def test_a_bridge_without_its_address() -> None:
    one = only(relinked("host", device("web"), addresses=()))
    assert (one.name, one.mend) == ("bridge_without_address", f"ip address add 172.18.0.1/16 dev {device('web')}")
    assert found(relinked("host", device("data"), addresses=())) == []  # internal: nobody needs a gateway


def test_a_port_is_down_or_blocked() -> None:
    port = port_of("c1")
    one = only(relinked("host", port.name, up=False))
    assert one.sentence == f"{port.name} of the host, between the bridge and c1, is down."
    inner = only(relinked("c1", "eth0", up=False))
    assert inner.name == "port_down"
    assert re.fullmatch(r"nsenter --net=\S+ ip link set eth0 up", inner.mend or "")
    assert only(relinked("host", port.name, port=BridgePort("blocking", False, False))).name == "port_blocked"


def test_a_veth_without_its_bridge() -> None:
    port = port_of("c1")
    one = only(relinked("host", port.name, master=None, port=None))
    assert (one.name, one.mend) == ("veth_without_bridge", f"ip link set {port.name} master docker0")
    host = WHOLE.namespaces[WHOLE.host]
    route = Route(ip_network("10.1.0.2/32"), None, port.ifindex, 254, "unicast", None, 0)
    routed = changed("host", relinked("host", port.name, master=None, port=None), routes=(*host.routes, route))
    assert found(routed) == []  # as some other engines make it


def test_sizes_that_differ() -> None:
    port = port_of("c1")
    one = only(relinked("host", port.name, mtu=1400))
    assert (one.name, one.mend) == ("mtu_unequal", f"ip link set {port.name} mtu 1500")
    both = relinked("c1", "eth0", relinked("host", port.name, mtu=1400), mtu=1400)
    assert "Ports of docker0 have MTUs from 1400 to 1500: larger frames to c1 are dropped" in only(both).sentence
    assert only(relinked("host", "eth0", mtu=1400)).sentence.startswith("eth0, the way out, takes no more than 1400")


def test_the_same_twice_on_one_bridge() -> None:
    c1, c2 = (space(WHOLE, name).by_name("eth0") for name in ("c1", "c2"))
    assert c1
    assert c2
    assert only(relinked("c2", "eth0", mac=c1.mac)).sentence.startswith(f"c1 and c2 have the same MAC {c1.mac} on docker0")
    one = only(relinked("c2", "eth0", addresses=c1.addresses[:1]))
    assert (one.name, one.sentence[:60]) == ("address_twice", "c1 and c2 have the same address 172.17.0.2 on docker0: who a")
    assert found(relinked("c8", "eth0", mac=c1.mac)) == []  # another bridge


def test_subnets_that_overlap() -> None:
    host = WHOLE.namespaces[WHOLE.host]
    eth0 = host.by_name("eth0")
    assert eth0

    def routed(destination: str) -> list[Cause]:
        row = Route(ip_network(destination), None, eth0.ifindex, 254, "unicast", None, 0)  # type: ignore[union-attr]
        return found(changed("host", routes=(*host.routes, row)))

    assert [one.name for one in routed("172.17.3.0/24")] == ["subnets_overlap"]
    assert [one.name for one in routed("172.17.0.0/16")] == ["subnets_overlap"]
    assert routed("172.16.0.0/12") == []  # less specific: the bridge's own row wins


def test_a_neighbour_with_anothers_mac() -> None:
    def told(mac: str, address: str = "172.17.0.3") -> list[Cause]:
        c1 = space(WHOLE, "c1")
        eth0 = c1.by_name("eth0")
        assert eth0
        return found(changed("c1", neighbors=(Neighbor(ip_address(address), eth0.ifindex, mac, "STALE"),)))

    (one,) = told("02:42:ac:11:00:63")
    assert one.name == "wrong_mac"
    assert one.sentence == ("c1 sends what is for 172.17.0.3 to the MAC 02:42:ac:11:00:63: its neighbour table says so, "
                            "while c2 has 02:42:ac:11:00:03.")
    assert told("02:42:ac:11:00:03") == []
    assert told("02:42:ac:11:00:63", "172.17.0.99") == []  # nobody known has it
    assert [one.name for one in told("02:42:ac:11:00:63", "172.17.0.1")] == ["wrong_mac"]  # the bridge


def test_names_from_outside_are_quoted_in_mends() -> None:
    port = port_of("c1")
    one = only(relinked("host", port.name, name="a;reboot", up=False))
    assert one.mend == "ip link set 'a;reboot' up"


def test_without_rules_it_says_so() -> None:
    assert found(ruleset=None) == []
    assert unchecked(WHOLE, None) == ("the rules, which a recording does not hold",)
    assert unchecked(WHOLE, replace(RULES, unknown=("why",))) == ("rules (why)",)


def test_findings_are_in_the_picture() -> None:
    assert [one.name for one in source(sysctl("net.ipv4.ip_forward", "0")).picture(ALL).findings] == ["forwarding_off"]


def test_addresses_that_are_link_local_are_not_twice() -> None:
    both = relinked("c2", "eth0", relinked("c1", "eth0", addresses=(ip_interface("fe80::1/64"),)),
                    addresses=(ip_interface("fe80::1/64"),))
    assert found(both) == []
