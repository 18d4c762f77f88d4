"""Without the userland proxy, containers reach published ports on the host's address by DNAT alone: a neighbour's, and their
own, which leaves by the bridge port that it came in by (hairpin)."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.conftest import missing
from tests.functional.conftest import Dnettrace, Ping, pinging
from tests.functional.engine import Engine, EngineMissing, in_netns, private_engine
from tests.functional.way import end, leaving, read, rewrites, switched, without_hooks

HOST = {4: "198.51.100.2", 6: "2001:db8::2"}
GATEWAY = {4: "172.17.0.1", 6: "fd00:17::1"}


@pytest.fixture(scope="module")
def proxyless() -> Iterator[Engine]:
    try:
        with private_engine("np", **{"userland-proxy": False}) as running:
            yield running
    except EngineMissing as error:
        missing(str(error))


@pytest.fixture(scope="module")
def own(proxyless: Engine) -> dict[int, str]:
    """The addresses of c2."""
    return {version: proxyless.address("c2", version) for version in (4, 6)}


@pytest.fixture
def ping(dnettrace: Dnettrace, proxyless: Engine) -> Ping:
    return pinging(dnettrace, proxyless, "-c", "1", "--json")


def kept_on_the_bridge(source: str, target: str) -> list[str]:
    """br_netfilter's NAT looks up the way, and the bridge passes the frame on to the MAC that this gave."""
    way = switched(source, target)
    at = way.index("host docker0 prerouting") + 1
    return [*way[:at], "host docker0 route", *way[at:]]


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("known", [True, False])
def test_container_to_its_own_published_port(ping: Ping, proxyless: Engine, version: int, known: bool,
                                                 own: dict[int, str]) -> None:
    """`known`: the host knows the container's MAC, and the kernel has a short way for that."""
    proxyless.on_host("ip", "neigh", "replace" if known else "del", own[version], "dev", "docker0",
                      *(["lladdr", proxyless.mac("c2"), "nud", "reachable"] if known else []))
    output = read(ping("c2", HOST[version], "--tcp", "8080"))
    for kind in ("request", "reply", "close"):
        assert output.way(output.only(kind)) == kept_on_the_bridge("c2", "c2"), kind
    there = [("prerouting", {"dst": [HOST[version], own[version]], "dport": [8080, 80]}),
             ("postrouting", {"src": [own[version], GATEWAY[version]]})]
    assert rewrites(output.only("request")) == rewrites(output.only("close")) == there
    assert rewrites(output.only("reply")) == [
        ("prerouting", {"dst": [GATEWAY[version], own[version]]}),
        ("postrouting", {"src": [own[version], HOST[version]], "sport": [80, 8080]})]
    assert [end(output, kind) for kind in ("request", "reply", "close")] == [("delivered", "c2", None)] * 3
    assert output.summary["states"] == {"open": 1}


@pytest.mark.parametrize("version", [4, 6])
def test_container_to_a_neighbours_published_port(ping: Ping, version: int, own: dict[int, str]) -> None:
    output = read(ping("c1", HOST[version], "--tcp", "8080"))
    request, reply, close = output.only("request"), output.only("reply"), output.only("close")
    for journey in (request, close):
        assert without_hooks(output.way(journey), "c2") == without_hooks(kept_on_the_bridge("c1", "c2"), "c2")
        assert rewrites(journey) == [("prerouting", {"dst": [HOST[version], own[version]], "dport": [8080, 80]})]
    assert without_hooks(output.way(reply), "c2") == without_hooks(switched("c2", "c1"), "c2")
    assert rewrites(reply) == [("postrouting", {"src": [own[version], HOST[version]], "sport": [80, 8080]})]
    assert [end(output, kind)[:2] for kind in ("request", "reply", "close")] == [
        ("delivered", "c2"), ("delivered", "c1"), ("delivered", "c2")]
    assert output.summary["bridges"] == {"docker0": ["switch"]}


def test_a_bridge_that_nat_keeps_frames_on_is_told_as_such(dnettrace: Dnettrace, proxyless: Engine) -> None:
    said = " ".join(dnettrace("ping", "c1", HOST[4], "--tcp", "8080", "-c", "1", netns=proxyless.host_netns,
                              env=proxyless.env() | {"COLUMNS": "300"}).stdout.split())
    assert "br_netfilter's NAT gave it that MAC, so it stays on the bridge" in said
    assert said.endswith("docker0 was a switch: it passed frames from port to port by their MAC addresses.")


def test_host_to_a_published_port(ping: Ping, own: dict[int, str]) -> None:
    request = (output := read(ping("host", HOST[4], "--tcp", "8080"))).only("request")
    assert output.way(request)[:8] == [
        "host - route", "host lo output", "host docker0 route", "host docker0 postrouting", "host docker0 egress nic",
        "host docker0 l2_forward switch", "host veth>c2 egress", "c2 eth0 ingress"]
    assert end(output, "request")[:2] == ("delivered", "c2")
    assert rewrites(request) == [("output", {"dst": [HOST[4], own[4]], "dport": [8080, 80]}),
                                 ("postrouting", {"src": [HOST[4], GATEWAY[4]]})]


def test_without_hairpin_mode_it_cannot_go_back(ping: Ping, proxyless: Engine, own: dict[int, str]) -> None:
    def hairpin(state: str) -> None:
        own = in_netns(f"/proc/{proxyless.pid('c2')}/ns/net", "ip", "-j", "link", "show", "eth0")
        index = json.loads(own.stdout)[0]["link_index"]
        links = json.loads(proxyless.on_host("ip", "-j", "link").stdout)
        port = next(link["ifname"] for link in links if link["ifindex"] == index)
        done = proxyless.on_host("bridge", "link", "set", "dev", port, "hairpin", state)
        assert done.returncode == 0, done.stderr

    hairpin("off")
    try:
        output = read(ping("c2", HOST[4], "--tcp", "8080", "-W", "1"), status=1)
        request = output.only("request")
        assert output.way(request) == [*leaving("c2"), "host docker0 prerouting", "host docker0 route"]
        assert rewrites(request) == [("prerouting", {"dst": [HOST[4], own[4]], "dport": [8080, 80]})]
        assert end(output, "request")[:2] == ("dropped", "host")
        assert "br_handle_frame_finish" in request["end"]["detail"]
    finally:
        hairpin("on")
