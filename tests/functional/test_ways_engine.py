"""Every way around docker0 on a real engine: the sequence (node, device, stage, role), the rewrites and the end, in full."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.functional.conftest import Ping
from tests.functional.engine import Engine
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


@pytest.fixture
def web(engine: Engine) -> Iterator[str]:
    """A second network with c3 on it; its bridge."""
    engine.docker("network", "create", "web")
    engine.run("c3", "--network", "web")
    yield "br-" + engine.docker("network", "inspect", "-f", "{{.Id}}", "web")[:12]
    engine.remove("c3")
    engine.docker("network", "rm", "web")


def test_container_to_container(ping: Ping) -> None:
    output = read(ping("c1", "c2"))
    assert output.way(output.only("request")) == switched("c1", "c2")
    assert output.way(output.only("reply")) == switched("c2", "c1")
    assert routes(output.only("request")) == [("c1", "172.17.0.0/16 dev eth0 (table main)"),
                                              ("c2", "172.17.0.3 is local (table local)")]


def test_container_to_its_gateway(ping: Ping) -> None:
    for target in ("host", "172.17.0.1"):
        output = read(ping("c1", target))
        assert output.way(output.only("request")) == to_host("c1")
        assert output.way(output.only("reply")) == from_host("c1")
        assert end(output, "request") == ("delivered", "host", None)


def test_host_to_container(ping: Ping) -> None:
    output = read(ping("host", "c1"))
    assert output.way(output.only("request")) == from_host("c1")
    assert output.way(output.only("reply")) == to_host("c1")
    assert routes(output.only("request"))[0] == ("host", "172.17.0.0/16 dev docker0 (table main)")


def test_container_to_outside(ping: Ping, outside: str) -> None:
    output = read(ping("c1", "203.0.113.1"))
    request, reply = output.only("request"), output.only("reply")
    assert output.way(request) == [
        *leaving("c1"), "host docker0 prerouting", "host docker0 l2_local nic", "host eth0 route", "host docker0 forward",
        "host docker0 postrouting", "host eth0 egress", *arriving(outside)]
    assert output.way(reply) == [
        f"{outside} eth0 route", f"{outside} eth0 output", f"{outside} eth0 postrouting", f"{outside} eth0 egress",
        "host eth0 ingress", "host eth0 prerouting", "host docker0 route", "host eth0 forward", "host eth0 postrouting",
        "host docker0 egress nic", "host docker0 l2_forward switch", "host veth>c1 egress", *arriving("c1")]
    assert rewrites(request) == [("postrouting", {"src": ["172.17.0.2", "198.51.100.2"]})]
    assert rewrites(reply) == [("prerouting", {"dst": ["198.51.100.2", "172.17.0.2"]})]
    assert routes(request)[:2] == [("c1", "default via 172.17.0.1 dev eth0 (table main)"),
                                   ("host", "default via 198.51.100.1 dev eth0 (table main)")]
    made = next(hop["entry"] for hop in request["hops"] if hop["conntrack"] == "NEW")
    assert (made["original"]["src"], made["reply"]["dst"]) == ("172.17.0.2", "172.17.0.2")
    translated = next(hop["entry"] for hop in request["hops"] if hop["rewrite"])
    assert (translated["original"]["src"], translated["reply"]["dst"]) == ("172.17.0.2", "198.51.100.2")
    host = next(hop["route"] for hop in reply["hops"] if hop["node"] == "host" and hop["route"])
    assert host["losers"] == ["default via 198.51.100.1 dev eth0"]
    assert (end(output, "request"), end(output, "reply")) == (("delivered", outside, None), ("delivered", "c1", None))
    assert output.summary["bridges"] == {"docker0": ["nic", "switch"]}


def test_outside_to_a_published_port(ping: Ping, outside: str) -> None:
    output = read(ping(f"netns:{outside}", "198.51.100.2", "--tcp", "8080"))
    request, reply, close = output.only("request"), output.only("reply"), output.only("close")
    for kind, way in published(outside, "c2").items():
        assert without_hooks(output.way(output.only(kind)), "c2") == way, kind
    assert rewrites(request) == [("prerouting", {"dst": ["198.51.100.2", "172.17.0.3"], "dport": [8080, 80]})]
    assert rewrites(reply) == [("postrouting", {"src": ["172.17.0.3", "198.51.100.2"], "sport": [80, 8080]})]
    assert (request["packet"]["tcp_flags"], reply["packet"]["tcp_flags"], close["packet"]["tcp_flags"]) == (
        "SYN", "SYN ACK", "RST ACK")
    assert rewrites(close) == rewrites(request)
    assert [end(output, kind)[:2] for kind in ("request", "reply", "close")] == [
        ("delivered", "c2"), ("delivered", outside), ("delivered", "c2")]
    assert output.summary["states"] == {"open": 1}


def test_container_to_a_port_that_nobody_listens_on(ping: Ping) -> None:
    output = read(ping("c1", "c2", "--tcp", "81"))
    assert end(output, "request") == ("dropped", "c2", "NO_SOCKET")
    assert output.only("reply")["packet"]["tcp_flags"] == "RST ACK"
    assert output.summary["states"] == {"refused": 1}
    output = read(ping("c1", "c2", "--udp", "81"))
    assert end(output, "request") == ("dropped", "c2", "NO_SOCKET")
    assert end(output, "error") == ("delivered", "c1", None)
    assert output.summary["states"] == {"refused": 1}


def test_arp(ping: Ping) -> None:
    output = read(ping("c1", "c2", "--arp"))
    assert output.way(output.only("request")) == [
        "c1 eth0 egress", "host veth>c1 ingress", "host docker0 l2_flood switch", "host veth>c2 egress", "c2 eth0 ingress",
        "c2 - deliver"]
    assert output.way(output.only("reply"))[2] == "host docker0 l2_forward switch"


def test_network_to_network_is_isolated(ping: Ping, engine: Engine, web: str) -> None:
    output = read(ping("c1", "c3"), status=1)
    assert output.way(output.only("request")) == isolated(engine, "c1", "docker0", web)
    assert end(output, "request") == ("dropped", "host", "NETFILTER_DROP")
    assert [t["table"] for t in output.only("request")["hops"][-1]["stopped_at"]] == [
        "raw" if engine.guards else "filter"]


def test_container_to_itself_never_leaves(ping: Ping) -> None:
    output = read(ping("c1", "127.0.0.1"))
    assert output.way(output.only("request")) == [
        "c1 - route", "c1 lo output", "c1 lo postrouting", "c1 lo egress", "c1 lo ingress", "c1 lo prerouting",
        "c1 lo input", "c1 - deliver"]
    assert output.summary["bridges"] == {}


def test_fragments_are_one_journey(ping: Ping) -> None:
    output = read(ping("c1", "c2", "-s", "4000"))
    assert output.way(output.only("request")) == switched("c1", "c2")
    assert output.way(output.only("reply")) == switched("c2", "c1")
    assert output.only("request")["packet"]["length"] == 4028


def test_macvlan_goes_by_no_bridge_and_that_is_said(ping: Ping, engine: Engine, outside: str) -> None:
    engine.docker("network", "create", "-d", "macvlan", "-o", "parent=eth0", "--subnet", "198.51.100.0/24",
                  "--gateway", "198.51.100.1", "mv")
    try:
        engine.run("m1", "--network", "mv", "--ip", "198.51.100.50")
        output = read(ping("m1", "198.51.100.1"))
        assert output.start["notes"] == ["m1 has a macvlan device: no bridge takes part in what goes by it"]
        assert output.summary["bridges"] == {}
        assert (end(output, "request"), end(output, "reply")) == (("delivered", outside, None), ("delivered", "m1", None))
        assert [hop["stage"] for hop in output.only("request")["hops"] if hop["node"] == "host"] == ["egress"]
    finally:
        engine.remove("m1")
        engine.docker("network", "rm", "mv")
