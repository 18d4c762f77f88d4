"""Every way around docker0 in IPv6, on a real engine, with neighbour discovery in ARP's place."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_address

import pytest

from tests.functional.conftest import Ping
from tests.functional.engine import Engine, in_netns
from tests.functional.way import (
    arriving,
    end,
    from_host,
    isolated,
    leaving,
    published,
    read,
    rewrites,
    routes,
    switched,
    to_host,
    without_hooks,
)

HOST, OUTSIDE, FAR = "2001:db8::2", "2001:db8::1", "2001:db8:1::1"


@pytest.fixture
def ping(ping: Ping, engine: Engine) -> Ping:
    """With neighbour tables that are empty: what a lookup looks like does not depend on the tests before."""
    for path in (engine.host_netns, *(f"/proc/{engine.pid(name)}/ns/net" for name in ("c1", "c2"))):
        in_netns(path, "ip", "-6", "neigh", "flush", "all")
    return ping


@pytest.fixture(scope="module")
def six(engine: Engine) -> dict[str, str]:
    """The containers' addresses."""
    return {name: engine.address(name, 6) for name in ("c1", "c2")}


@pytest.fixture
def web(engine: Engine) -> Iterator[str]:
    """A second IPv6 network with c3 on it; its bridge."""
    engine.docker("network", "create", "--ipv6", "--subnet", "fd00:18::/64", "web6")
    engine.run("c3", "--network", "web6")
    yield "br-" + engine.docker("network", "inspect", "-f", "{{.Id}}", "web6")[:12]
    engine.remove("c3")
    engine.docker("network", "rm", "web6")


def solicited(address: str) -> str:
    """The multicast group at which a neighbour is asked for (RFC 4291, 2.7.1)."""
    return str(ip_address("ff02::1:ff" + ip_address(address).exploded[-7:]))


def test_container_to_container(ping: Ping, six: dict[str, str]) -> None:
    output = read(ping("c1", "c2", "-6"))
    request, reply = output.only("request"), output.only("reply")
    assert output.way(request) == switched("c1", "c2")
    assert output.way(reply) == switched("c2", "c1")
    assert routes(request) == [("c1", "fd00:17::/64 dev eth0 (table main)"), ("c2", f"{six['c2']} is local (table local)")]
    assert (end(output, "request"), end(output, "reply")) == (("delivered", "c2", None), ("delivered", "c1", None))
    assert output.summary["bridges"] == {"docker0": ["switch"]}


def test_neighbour_discovery_is_shown(ping: Ping, six: dict[str, str]) -> None:
    output = read(ping("c1", "c2", "-6"))
    asks, tells = output.of("arp")
    assert (asks["packet"]["src"], asks["packet"]["dst"]) == (six["c1"], solicited(six["c2"]))
    assert [(j["packet"]["asked"], j["packet"]["asking"], j["end"]["node"]) for j in (asks, tells)] == [
        (six["c2"], six["c1"], "c2"), (six["c2"], six["c1"], "c1")]
    assert output.way(asks) == [
        "c1 eth0 output", "c1 eth0 postrouting", "c1 eth0 egress", "host veth>c1 ingress", "host docker0 prerouting",
        "host docker0 l2_flood switch", "host docker0 forward", "host docker0 postrouting", "host veth>c2 egress",
        "c2 eth0 ingress", "c2 eth0 prerouting", "c2 eth0 route", "c2 eth0 input", "c2 - deliver"]
    assert output.way(tells) == switched("c2", "c1")[1:]  # along the way that its question had
    assert routes(asks) == [("c2", "ff00::/8 dev eth0 (table local)")]
    copy, = output.of("copy")
    assert (copy["parent"], output.way(copy)) == (asks["id"], ["host docker0 l2_local nic", "host docker0 route"])


def test_container_to_its_gateway(ping: Ping) -> None:
    for target in (["host", "-6"], ["fd00:17::1"]):
        output = read(ping("c1", *target))
        assert output.way(output.only("request")) == to_host("c1")
        assert output.way(output.only("reply")) == from_host("c1")
        assert end(output, "request") == ("delivered", "host", None)


def test_host_to_container(ping: Ping, six: dict[str, str]) -> None:
    output = read(ping("host", "c1", "-6"))
    assert output.way(output.only("request")) == from_host("c1")
    assert output.way(output.only("reply")) == to_host("c1")
    assert routes(output.only("request"))[0] == ("host", "fd00:17::/64 dev docker0 (table main)")
    assert [(j["packet"]["asked"], j["packet"]["asking"], j["end"]["node"]) for j in output.of("arp")] == [
        (six["c1"], "fd00:17::1", "c1"), (six["c1"], "fd00:17::1", "host")]


def test_container_to_outside(ping: Ping, outside: str, six: dict[str, str]) -> None:
    output = read(ping("c1", FAR))
    request, reply = output.only("request"), output.only("reply")
    assert output.way(request) == [
        *leaving("c1"), "host docker0 prerouting", "host docker0 l2_local nic", "host eth0 route", "host docker0 forward",
        "host docker0 postrouting", "host eth0 egress", *arriving(outside)]
    assert output.way(reply) == [
        *leaving(outside)[:4], "host eth0 ingress", "host eth0 prerouting", "host docker0 route", "host eth0 forward",
        "host eth0 postrouting", "host docker0 egress nic", "host docker0 l2_forward switch", "host veth>c1 egress",
        *arriving("c1")]
    assert rewrites(request) == [("postrouting", {"src": [six["c1"], HOST]})]
    assert rewrites(reply) == [("prerouting", {"dst": [HOST, six["c1"]]})]
    assert routes(request)[:2] == [("c1", "default via fd00:17::1 dev eth0 (table main)"),
                                   ("host", f"default via {OUTSIDE} dev eth0 (table main)")]
    translated = next(hop["entry"] for hop in request["hops"] if hop["rewrite"])
    assert (translated["original"]["src"], translated["reply"]["dst"]) == (six["c1"], HOST)
    assert (end(output, "request"), end(output, "reply")) == (("delivered", outside, None), ("delivered", "c1", None))


def test_outside_to_a_published_port(ping: Ping, outside: str, six: dict[str, str]) -> None:
    output = read(ping(f"netns:{outside}", HOST, "--tcp", "8080"))
    request, reply, close = output.only("request"), output.only("reply"), output.only("close")
    for kind, way in published(outside, "c2").items():
        assert without_hooks(output.way(output.only(kind)), "c2") == way, kind
    translated = {"dst": [HOST, six["c2"]], "dport": [8080, 80]}
    assert rewrites(request) == rewrites(close) == [("prerouting", translated)]
    assert rewrites(reply) == [("postrouting", {"src": [six["c2"], HOST], "sport": [80, 8080]})]
    assert [end(output, kind)[:2] for kind in ("request", "reply", "close")] == [
        ("delivered", "c2"), ("delivered", outside), ("delivered", "c2")]
    assert output.summary["states"] == {"open": 1}


def test_network_to_network_is_isolated(ping: Ping, web: str, engine: Engine) -> None:
    output = read(ping("c1", "c3", "-6"), status=1)
    assert output.only("request")["packet"]["dst"] == engine.address("c3", 6, "web6")
    assert output.way(output.only("request")) == isolated(engine, "c1", "docker0", web)
    assert end(output, "request") == ("dropped", "host", "NETFILTER_DROP")
    assert [t["table"] for t in output.only("request")["hops"][-1]["stopped_at"]] == [
        "raw" if engine.guards else "filter"]


def test_container_to_itself_never_leaves(ping: Ping) -> None:
    output = read(ping("c1", "::1"))
    for kind in ("request", "reply"):
        assert output.way(output.only(kind)) == [
            "c1 - route", "c1 lo output", "c1 lo postrouting", "c1 lo egress", "c1 lo ingress", "c1 lo prerouting",
            "c1 lo input", "c1 - deliver"]
    assert output.summary["bridges"] == {}


def test_fragments_are_one_journey(ping: Ping) -> None:
    output = read(ping("c1", "c2", "-6", "-s", "4000"))
    assert output.way(output.only("request")) == switched("c1", "c2")
    assert output.way(output.only("reply")) == switched("c2", "c1")
    assert output.only("request")["packet"]["length"] == 4048


def test_a_port_that_nobody_listens_on(ping: Ping) -> None:
    output = read(ping("c1", "c2", "-6", "--udp", "81"))
    assert output.way(output.only("request")) == switched("c1", "c2")[:-1]
    assert output.way(output.only("error")) == switched("c2", "c1")
    assert (end(output, "request"), end(output, "error")) == (("dropped", "c2", "NO_SOCKET"), ("delivered", "c1", None))
    assert output.summary["states"] == {"refused": 1}


def test_no_route_at_the_far_end_is_said(ping: Ping, outside: str, six: dict[str, str]) -> None:
    output = read(ping("c1", "2001:db8:1::9"), status=1)
    assert end(output, "request") == ("dropped", outside, "IP_INNOROUTES")
    assert rewrites(output.only("error")) == [("prerouting", {"dst": [HOST, six["c1"]]})]
    assert end(output, "error") == ("delivered", "c1", None)
