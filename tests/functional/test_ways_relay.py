"""The userland proxy in the path: the probe ends at it, and what it makes of it is linked."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.functional.conftest import Dnettrace, Ping
from tests.functional.engine import Engine
from tests.functional.way import Output, from_host, read, to_host


@pytest.fixture
def deaf(engine: Engine) -> Iterator[None]:
    """A container that publishes a port at which nothing listens."""
    engine.run("deaf", "-p", "8081:81")
    yield
    engine.remove("deaf")


def ends(output: Output) -> dict[str, tuple[str, str]]:
    return {kind: (output.only(kind)["end"]["result"], output.only(kind)["end"]["node"])
            for kind in ("request", "reply", "relay", "relay_reply")}


def test_a_container_to_its_neighbour_s_published_port(ping: Ping) -> None:
    output = read(ping("c1", "198.51.100.2", "--tcp", "8080"))
    request, relay = output.only("request"), output.only("relay")
    assert output.way(request) == to_host("c1")
    assert output.way(output.only("reply")) == [*from_host("c1")[:-2], "c1 eth0 input", "c1 - deliver"]
    assert output.way(relay) == from_host("c2")
    assert output.way(output.only("relay_reply")) == to_host("c2")
    assert ends(output) == {"request": ("relayed", "host"), "reply": ("delivered", "c1"), "relay": ("delivered", "c2"),
                            "relay_reply": ("delivered", "host")}
    assert "docker-proxy" in request["end"]["detail"] and "connects to c2 (172.17.0.3) port 80" in request["end"]["detail"]
    assert (request["packet"]["dst"], request["packet"]["dport"]) == ("198.51.100.2", 8080)
    assert (relay["packet"]["src"], relay["packet"]["dst"], relay["packet"]["dport"]) == ("172.17.0.1", "172.17.0.3", 80)
    assert {j["parent"] for j in (relay, output.only("relay_reply"))} == {request["id"]}
    assert output.summary["states"] == {"open": 1}


def test_the_host_to_its_own_published_port(ping: Ping) -> None:
    output = read(ping("host", "127.0.0.1", "--tcp", "8080"))
    assert output.way(output.only("request")) == [
        "host - route", "host lo output", "host lo postrouting", "host lo egress", "host lo ingress", "host lo prerouting",
        "host lo input", "host - deliver"]
    assert output.way(output.only("relay")) == from_host("c2")
    assert ends(output)["request"] == ("relayed", "host")


def test_the_proxy_answers_though_nothing_listens_behind_it(ping: Ping, deaf: None) -> None:
    output = read(ping("c1", "198.51.100.2", "--tcp", "8081"))
    assert output.only("reply")["packet"]["tcp_flags"] == "SYN ACK"
    assert output.only("request")["end"]["result"] == "relayed"
    assert output.only("relay")["end"]["reason"] == "NO_SOCKET"
    assert output.only("relay_reply")["packet"]["tcp_flags"] == "RST ACK"


def test_many_probes_through_the_proxy(dnettrace: Dnettrace, engine: Engine) -> None:
    """More than there are ports, so that each is taken up again."""
    output = read(dnettrace("ping", "c1", "198.51.100.2", "--tcp", "8080", "-c", "70", "-i", "0.01", "--json",
                            netns=engine.host_netns, env=engine.env()))
    requests = output.of("request", None)
    assert sorted(j["seq"] for j in requests) == list(range(1, 71))
    assert {j["end"]["result"] for j in requests} == {"relayed"}
    assert len(output.of("relay", None)) == 70


def test_ipv6(ping: Ping) -> None:
    output = read(ping("c1", "fd00:17::1", "--tcp", "8080"))
    assert ends(output)["request"] == ("relayed", "host")
    assert output.way(output.only("relay")) == from_host("c2")
