"""The expected way on a recorded network; and where the tables do not tell, that it says so rather than guess."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from ipaddress import ip_address, ip_interface, ip_network

import pytest

from tests.unit.topo import changed, console, network, port_of, relinked, source, space
from tracer.map.expected import expected
from tracer.map.passage import Trip
from tracer.model.counters import CountedRule
from tracer.model.journey import Journey, Result
from tracer.model.ruleset import Ruleset
from tracer.model.topology import BaseChain, BridgePort, Neighbor, PolicyRule, Route, Topology
from tracer.render.expected import ExpectedText, write_expected

WHOLE = network().topology
READ = {ruleset.netns: ruleset for ruleset in network().rulesets}
HOST = WHOLE.namespaces[WHOLE.host]


def way(start: str, goal: str, topology: Topology = WHOLE, rules: Ruleset | None = None, proto: str | None = None,
        port: int | None = None) -> Journey:
    rulesets = READ if rules is None else READ | {rules.netns: rules}
    return expected(topology, lambda one: rulesets[one.netns], Trip(space(topology, start), ip_address(goal), proto, port))


def why(start: str = "c1", goal: str = "172.17.0.3", topology: Topology = WHOLE, rules: Ruleset | None = None,
        proto: str | None = None) -> str:
    journey = way(start, goal, topology, rules, proto, 80 if proto else None)
    assert journey.end.result is Result.UNKNOWN, journey.end
    return journey.end.detail


def stages(journey: Journey) -> list[str]:
    return [f"{hop.node} {hop.stage.value}" for hop in journey.hops]


def test_a_switch_at_work() -> None:
    journey = way("c1", "172.17.0.3")
    assert journey.end.result is Result.DELIVERED
    assert stages(journey) == ["c1 route", "c1 output", "c1 postrouting", "c1 egress", "host ingress", "host prerouting",
                               "host l2_forward", "host forward", "host postrouting", "host egress", "c2 ingress",
                               "c2 prerouting", "c2 route", "c2 input", "c2 deliver"]
    assert [hop.role.value for hop in journey.hops if hop.role] == ["switch"]


def test_the_gateway_and_masquerade() -> None:
    journey = way("c1", "203.0.113.1")
    assert [hop.role.value for hop in journey.hops if hop.role] == ["nic"]
    (change,) = [hop.rewrite for hop in journey.hops if hop.rewrite]
    assert change.src == ("172.17.0.2", "198.51.100.2")
    assert journey.end.node == "test-wan"


def test_a_published_port() -> None:
    journey = way("test-wan", "198.51.100.2", proto="tcp", port=8080)
    (change,) = [hop.rewrite for hop in journey.hops if hop.rewrite]
    assert (change.dst, change.dport) == (("198.51.100.2", "172.17.0.3"), (8080, 80))
    assert (journey.end.result, journey.end.node) == (Result.DELIVERED, "c2")


def test_networks_that_docker_isolates() -> None:
    end = way("c1", "172.18.0.2").end
    assert (end.result, end.reason) == (Result.DROPPED, "NETFILTER_DROP")
    assert end.causes[0].name == "networks_isolated"
    assert (end.causes[0].mend or "").startswith("docker network connect ")


def test_settings_that_drop() -> None:
    off = changed("host", sysctls={**HOST.sysctls, "net.ipv4.conf.docker0.forwarding": "0", "net.ipv4.ip_forward": "0"})
    end = way("c1", "203.0.113.1", off).end
    assert (end.reason, end.causes[0].name) == ("IP_INADDRERRORS", "forwarding_off")
    strict = changed("host", sysctls={**HOST.sysctls, "net.ipv4.conf.all.rp_filter": "1"},
                     routes=(Route(ip_network("172.17.0.2/32"), None, 2, 254, "unicast", None, 0), *HOST.routes))
    end = way("c1", "203.0.113.1", strict).end
    assert (end.reason, end.causes[0].name) == ("IP_RPFILTER", "reverse_path")


def with_rule(text: str, target: str | None, *, chain: str = "DOCKER-USER", leads: str | None = None) -> Ruleset:
    rule = CountedRule("ip", "filter", chain, text, target, 0, leads, legacy=False)
    return replace(READ[WHOLE.host], rules=(rule, *READ[WHOLE.host].rules))


@pytest.mark.parametrize(("text", "target", "result"), [
    ("-A DOCKER-USER -d 172.17.0.3/32 -j DROP", "DROP", Result.DROPPED),
    ("-A DOCKER-USER -d 172.17.0.9/32 -m limit --limit 1/s -j DROP", "DROP", Result.DELIVERED),
    ("-A DOCKER-USER -m limit --limit 1/s -j LOG", "LOG", Result.DELIVERED),
    ("-A DOCKER-USER -m conntrack --ctstate INVALID -j DROP", "DROP", Result.DELIVERED),
    ("-A DOCKER-USER -m conntrack --ctstate NEW -j REJECT", "REJECT", Result.DROPPED),
    ("-A DOCKER-USER -m limit --limit 1/s -j DROP", "DROP", Result.UNKNOWN),
    ("-A DOCKER-USER -m set --match-set some src -j ACCEPT", "ACCEPT", Result.UNKNOWN),
    ("-A DOCKER-USER -j MARK --set-xmark 0x7/0xffffffff", "MARK", Result.UNKNOWN),
    ("-A DOCKER-USER -j NFQUEUE --queue-num 0", "NFQUEUE", Result.UNKNOWN),
])
def test_a_rule_decides_or_depends(text: str, target: str, result: Result) -> None:
    assert way("c1", "172.17.0.3", rules=with_rule(text, target)).end.result is result


def test_nothing_is_guessed() -> None:
    assert why(goal="172.17.0.99") == "on docker0 nobody known has 172.17.0.99"
    assert why("c6", "1.2.3.4") == "c6 has no route to 1.2.3.4"
    assert why("c7", "203.0.113.1") == "eth0 of c7 is a macvlan, and where that leads is not known"
    assert why(goal="172.17.0.2") == "172.17.0.2 is an address of c1 itself: the packet never leaves"
    assert why("host", "198.51.100.2").startswith("198.51.100.2 is an address of host itself")


def test_rules_that_were_not_read() -> None:
    assert why(rules=Ruleset(WHOLE.host, unknown=("why",))) == "rules of host could not be read"
    assert why(topology=changed("host", chains=None)) == "rules of host could not be read"
    bridge = (*(HOST.chains or ()), BaseChain("bridge", "own", "forward", "forward", 0))
    assert "families bridge or netdev" in why(topology=changed("host", chains=bridge))
    vmap = CountedRule("inet", "fw", "forward", "ct state vmap { new : drop }", None, 0, None, legacy=False)
    chains = (*(HOST.chains or ()), BaseChain("inet", "fw", "forward", "forward", 5))
    assert "looked up in a map" in why(topology=changed("host", chains=chains), rules=replace(
        READ[WHOLE.host], rules=(*READ[WHOLE.host].rules, vmap)))


def test_routes_that_do_not_tell() -> None:
    c1 = space(WHOLE, "c1")
    assert "`ip rule` of c1 asks another table first" in why(topology=changed(
        "c1", rules=(PolicyRule(4, 10, 100, "from all lookup 100"),)))
    default = next(row for row in c1.routes if row.destination == ip_network("0.0.0.0/0"))
    twice = changed("c1", routes=(*c1.routes, replace(default, gateway=ip_address("172.17.0.3"))))
    assert why(goal="203.0.113.1", topology=twice) == "c1 has several equal routes to 203.0.113.1"


def test_devices_and_neighbours_that_do_not_fit() -> None:
    port = port_of("c2")
    assert why(topology=relinked("host", port.name, up=False)) == f"{port.name} of host is down"
    assert why(topology=relinked("host", port.name, port=BridgePort("blocking", False, False))) == \
        f"{port.name} of host is in the state blocking"
    isolated = BridgePort("forwarding", False, True)
    both = relinked("host", port.name, relinked("host", port_of("c1").name, port=isolated), port=isolated)
    assert "are isolated ports" in why(topology=both)
    eth0 = space(WHOLE, "c1").by_name("eth0")
    assert eth0
    wrong = changed("c1", neighbors=(Neighbor(ip_address("172.17.0.3"), eth0.ifindex, "02:42:ac:11:00:63", "STALE"),))
    assert "has 02:42:ac:11:00:63 for 172.17.0.3" in why(topology=wrong)
    same = relinked("c1", "eth0", addresses=(*eth0.addresses, ip_interface("172.17.0.4/16")))
    assert way("c1", "172.17.0.3", same).end.result is Result.DELIVERED  # the route names the source


def test_how_it_is_shown() -> None:
    stream = io.StringIO()
    ExpectedText(console(stream, 80)).expected(way("c1", "172.18.0.2", proto="tcp", port=80), verbose=False)
    text = stream.getvalue()
    assert text.startswith("expected  tcp  c1 → c3:80")
    assert "✗ is dropped" in text.splitlines()[0]
    assert "cause: c1 (network bridge) and c3 (networks" in text
    assert "  mend:  docker network connect" in text
    assert max(map(len, text.splitlines())) <= 80
    stream = io.StringIO()
    write_expected(way("c1", "172.17.0.3"), stream)
    row = json.loads(stream.getvalue())
    assert (row["type"], row["end"]["result"], row["hops"][0]["stage"]) == ("expected", "delivered", "route")


def test_from_the_command() -> None:
    assert source().expected("c1:c2").end.result is Result.DELIVERED
