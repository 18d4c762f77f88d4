"""A real Podman with netavark's bridge: names, ways, and whose the rules are, in Podman's own words."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.functional.conftest import Dnettrace
from tests.functional.podman import Podman, private_podman
from tests.functional.way import Output, Row, arriving, end, leaving, published, read, rewrites, switched, without_hooks

C1, C2, GATEWAY, HOST, OUTSIDE = "10.88.0.2", "10.88.0.3", "10.88.0.1", "198.51.100.2", "203.0.113.1"


ROOT = os.environ.get("DNETTRACE_PODMAN_ROOT")


@pytest.fixture(scope="module")
def podman() -> Iterator[Podman]:
    assert ROOT
    with private_podman(Path(ROOT)) as running:
        yield running


class Ping:
    def __init__(self, dnettrace: Dnettrace, podman: Podman) -> None:
        self.dnettrace = dnettrace
        self.podman = podman

    def __call__(self, *words: str, status: int = 0) -> Output:
        return read(self.dnettrace("ping", *words, "-c", "1", "-W", "1.5", "--json", netns=self.podman.host_netns,
                                   env=self.podman.env()), status)

    def said(self, *words: str) -> str:
        return self.dnettrace(*words, netns=self.podman.host_netns, env=self.podman.env()).stderr


@pytest.fixture
def ping(dnettrace: Dnettrace, podman: Podman) -> Ping:
    return Ping(dnettrace, podman)


def owners(journey: Row) -> set[str | None]:
    """Of the rules in chains that packets did not come to by the kernel alone."""
    return {rule["owner"] for hop in journey["hops"] for rule in hop["rules"] if rule["rule"]}


def test_container_to_container(ping: Ping) -> None:
    output = ping("c1", "c2")
    assert output.way(output.only("request")) == switched("c1", "c2", "podman0")
    assert output.way(output.only("reply")) == switched("c2", "c1", "podman0")
    assert output.summary["bridges"] == {"podman0": ["switch"]}
    assert owners(output.only("request")) == {"podman", "podman, network podman"}


def test_container_to_outside(ping: Ping, podman: Podman) -> None:
    output = ping("c1", OUTSIDE)
    outside = f"{podman.name}-wan"
    assert output.way(output.only("request")) == [
        *leaving("c1"), "host podman0 prerouting", "host podman0 l2_local nic", "host eth0 route", "host podman0 forward",
        "host podman0 postrouting", "host eth0 egress", *arriving(outside)]
    assert rewrites(output.only("request")) == [("postrouting", {"src": [C1, HOST]})]
    assert end(output, "reply") == ("delivered", "c1", None)
    rules = [rule for hop in output.only("request")["hops"] for rule in hop["rules"]]
    assert {rule["owner"] for rule in rules if "MASQUERADE" in (rule["rule"] or "")} == {"podman"}


def test_outside_to_a_published_port(ping: Ping, podman: Podman) -> None:
    output = ping(f"netns:{podman.name}-wan", HOST, "--tcp", "8080")
    ways = published(f"{podman.name}-wan", "c2")
    for kind in ("request", "reply"):
        way = [hop.replace("docker0", "podman0") for hop in ways[kind]]
        assert without_hooks(output.way(output.only(kind)), "c2") == way, kind
    assert rewrites(output.only("request")) == [("prerouting", {"dst": [HOST, C2], "dport": [8080, 80]})]
    assert "podman, port 8080 of c2" in owners(output.only("request"))


def test_a_neighbours_published_port_is_reached_without_a_proxy(ping: Ping) -> None:
    output = ping("c1", HOST, "--tcp", "8080")
    assert rewrites(output.only("request")) == [("prerouting", {"dst": [HOST, C2], "dport": [8080, 80]}),
                                                ("postrouting", {"src": [C1, GATEWAY]})]
    assert (end(output, "request"), end(output, "reply")) == (("delivered", "c2", None), ("delivered", "c1", None))
    assert output.summary["bridges"] == {"podman0": ["switch"]}


def test_another_network_is_reached_by_way_of_the_host(ping: Ping, podman: Podman) -> None:
    """Unlike Docker, netavark isolates networks only where it is told so."""
    podman.podman("network", "create", "web")
    try:
        podman.run("c3", "--network", "web")
        output = ping("c1", "c3")
        assert end(output, "request") == ("delivered", "c3", None)
        assert output.summary["bridges"] == {"podman0": ["nic", "switch"], "podman1": ["nic", "switch"]}
    finally:
        podman.remove("c3")
        podman.podman("network", "rm", "web")


def test_an_internal_network(ping: Ping, podman: Podman) -> None:
    podman.podman("network", "create", "--internal", "shut")
    try:
        podman.run("i1", "--network", "shut")
        failure = ping("i1", OUTSIDE, status=1).summary["failures"][0]["cause"]
        assert (failure["name"], failure["mend"]) == ("no_route_in_sender", "podman network connect podman i1")
    finally:
        podman.remove("i1")
        podman.podman("network", "rm", "shut")


def test_rules_that_were_flushed_and_their_mend(ping: Ping, podman: Podman) -> None:
    for command in ("-F FORWARD", "-P FORWARD DROP"):
        podman.on_host("iptables", *command.split())
    try:
        found = ping("c1", OUTSIDE, status=1).only("request")["end"]
        assert [cause["name"] for cause in found["causes"]] == ["docker_chains_missing", "chain_policy"]
        assert found["causes"][0]["sentence"].startswith("podman's rules are gone from filter/FORWARD")
        assert found["mend"] == "podman network reload --all"
        podman.beside(*found["mend"].split()[1:])
        assert end(ping("c1", OUTSIDE), "reply") == ("delivered", "c1", None)
    finally:
        podman.on_host("iptables", "-P", "FORWARD", "ACCEPT")


def test_one_that_does_not_run(ping: Ping, podman: Podman) -> None:
    podman.podman("create", "--name", "gone", "bb:latest", "true")
    try:
        assert "start it with `podman start gone`" in ping.said("ping", "gone", "c1")
    finally:
        podman.remove("gone")
