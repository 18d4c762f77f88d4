"""`dnettrace ping` with a real Docker engine and real containers."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from tests.functional.conftest import Dnettrace, Ping, pinging
from tests.functional.engine import Engine
from tests.functional.way import from_host, read, switched, to_host


@pytest.fixture
def ping(dnettrace: Dnettrace, engine: Engine) -> Ping:
    return pinging(dnettrace, engine)


@pytest.fixture
def extra(engine: Engine) -> Iterator[Callable[..., None]]:
    """Runs containers that are removed after the test."""
    made: list[str] = []

    def run(name: str, *args: str, **kw: tuple[str, ...]) -> None:
        made.append(name)
        engine.run(name, *args, **kw)

    yield run
    if made:
        engine.remove(*made)


def test_container_to_container(ping: Ping) -> None:
    output = read(ping("c1", "c2", "-c", "3", "-i", "0.2", "--json"))
    for seq in (1, 2, 3):
        assert output.way(output.only("request", seq)) == switched("c1", "c2")
        assert output.way(output.only("reply", seq)) == switched("c2", "c1")
    assert [j["end"]["result"] for j in output.journeys if j["kind"] in ("request", "reply")] == ["delivered"] * 6
    assert output.summary["sent"] == output.summary["answered"] == 3
    assert output.summary["bridges"] == {"docker0": ["switch"]}
    assert output.summary["lost_events"] == 0
    assert {probe["name"] for probe in output.start["probes"]["missing"]} == set()


def test_the_tables_are_docker_s(ping: Ping, engine: Engine) -> None:
    request = read(ping("c1", "c2", "-c", "1", "--json")).only("request")
    tables = {hop["stage"]: [(t["table"], t["chain"]) for t in hop["tables"]] for hop in request["hops"]
              if hop["node"] == "host" and hop["device"] == "docker0"}
    raw = [("raw", "PREROUTING")] if "*raw" in engine.on_host("iptables-save").stdout.split() else []  # from Docker 28 on
    assert tables["prerouting"] == [*raw, ("nat", "PREROUTING")]
    assert tables["forward"] == [("filter", "FORWARD")]
    assert tables["postrouting"] == [("nat", "POSTROUTING")]


def test_container_to_host(ping: Ping) -> None:
    output = read(ping("c1", "host", "-c", "1", "--json"))
    assert output.way(output.only("request")) == to_host("c1")
    assert output.way(output.only("reply")) == from_host("c1")
    assert output.summary["bridges"] == {"docker0": ["nic", "switch"]}


def test_times_are_the_kernel_s_and_in_order(ping: Ping) -> None:
    before = time.time_ns()
    request = read(ping("c1", "c2", "-c", "1", "--json")).only("request")
    times = [hop["t_ns"] for hop in request["hops"]]
    assert times[0] == 0
    assert times == sorted(times)
    assert 0 < times[-1] < 1e9
    assert before < request["wall_ns"] < time.time_ns()


def test_the_lookup_is_one_line_and_with_v_a_journey(ping: Ping, extra: Callable[..., None]) -> None:
    extra("fresh1")
    extra("fresh2")
    plain = ping("fresh1", "fresh2", "-c", "1")
    assert plain.returncode == 0
    assert "fresh1 (" in plain.stdout and ") asked for the MAC of fresh2 (" in plain.stdout, plain.stdout
    assert "ARP request" not in plain.stdout
    extra("fresh3")
    assert "ARP request" in ping("fresh3", "fresh1", "-c", "1", "-v").stdout


def test_a_container_that_starts_after_the_tool_has_its_name(ping: Ping, engine: Engine, extra: Callable[..., None]) -> None:
    extra("early")
    address = engine.docker("inspect", "-f", "{{.NetworkSettings.IPAddress}}", "early")
    engine.remove("early")

    def later() -> None:
        time.sleep(1.5)
        engine.run("late")  # Docker gives out the free address that was the last one's

    starter = threading.Thread(target=later)
    starter.start()
    try:
        output = read(ping("c1", address, "-c", "20", "-i", "0.5", "-W", "4", "--json"), None)
    finally:
        starter.join()
        engine.remove("late")
    answered = [j for j in output.of("request") if j["end"]["result"] == "delivered"]
    assert answered, output.done.stdout
    assert {j["end"]["node"] for j in answered} == {"late"}
    assert not [hop for j in output.journeys for hop in j["hops"] if hop["node"].startswith("netns:")]
    assert output.way(answered[-1]) == switched("c1", "late")


def test_twenty_pings_under_foreign_traffic(ping: Ping, engine: Engine, extra: Callable[..., None]) -> None:
    """No foreign packet in the output, no hop missing: other pings, UDP, and pings between the very same containers."""
    extra("noise1", command=("sh", "-c", "while :; do ping -q -c 100 -A 172.17.0.3 >/dev/null; done"))
    extra("noise2", command=("sh", "-c", "while :; do nc -u -w 1 172.17.0.1 9 </dev/zero; done"))
    loop = "while :; do ping -q -c 50 -A 172.17.0.3 >/dev/null; done"
    foreign = subprocess.Popen(["docker", "exec", "c1", "sh", "-c", loop], env=engine.env(), stdout=subprocess.DEVNULL,
                               stderr=subprocess.DEVNULL)
    try:
        time.sleep(0.5)
        output = read(ping("c1", "c2", "-c", "20", "-i", "0.1", "--json"))
    finally:
        foreign.terminate()
        foreign.wait()
        engine.docker("exec", "c1", "kill", "-9", "-1")  # all but the container's first process and this one
    assert sorted(j["seq"] for j in output.of("request")) == list(range(1, 21))
    for seq in range(1, 21):
        assert output.way(output.only("request", seq)) == switched("c1", "c2")
        assert output.way(output.only("reply", seq)) == switched("c2", "c1")
    assert {j["kind"] for j in output.journeys} <= {"request", "reply", "arp", "copy"}
    assert len({j["packet"]["icmp_id"] for j in output.of("request") + output.of("reply")}) == 1
    for row in output.of("arp"):
        assert {row["packet"]["src"], row["packet"]["dst"]} == {"172.17.0.2", "172.17.0.3"}


def test_shared_namespace_host_network_and_several_networks(ping: Ping, engine: Engine, extra: Callable[..., None]) -> None:
    extra("guest", "--network", "container:c1")
    output = read(ping("guest", "c2", "-c", "1", "--json"))
    assert output.way(output.only("request"))[0] == "guest eth0 route"
    extra("onhost", "--network", "host")
    assert read(ping("onhost", "c1", "-c", "1", "--json")).only("request")["hops"][0]["node"] == "host"
    engine.docker("network", "create", "second")
    try:
        extra("both")
        engine.docker("network", "connect", "second", "both")
        extra("there", "--network", "second")
        bridge = "br-" + engine.docker("network", "inspect", "-f", "{{.Id}}", "second")[:12]
        output = read(ping("both", "there", "-c", "1", "--json"))
        assert output.way(output.only("request"))[6] == f"host {bridge} l2_forward switch"
        assert output.way(output.only("request"))[3] == "both eth1 egress"
    finally:
        engine.remove("both", "there")
        engine.docker("network", "rm", "second")


@pytest.mark.parametrize(("args", "sentence"), [
    (("c1", "c9"), "did you mean c"),
    (("c1", "c1"), "same"),
    (("gone", "c2"), "docker start gone"),
    (("netns:nope", "c2"), "netns:nope"),
    (("c1", "c2", "-c", "0"), "0 is not in the range"),
    (("c1", "none", "-6"), "IPv6 address"),
])
def test_bad_input_is_one_sentence(ping: Ping, engine: Engine, extra: Callable[..., None], args: tuple[str, ...],
                                   sentence: str) -> None:
    if "none" in args:
        extra("none", "--network", "none")
    if "gone" in args:
        extra("gone", command=("true",))
        time.sleep(0.5)
    done = ping(*args)
    assert done.returncode == 2
    assert sentence in done.stderr
    assert done.stderr.count("\n") == 1
    assert not done.stdout


def test_an_engine_that_does_not_run(dnettrace: Dnettrace, engine: Engine) -> None:
    env = engine.env() | {"DOCKER_HOST": "unix:///nowhere.sock"}
    done = dnettrace("ping", "web1", "web2", netns=engine.host_netns, env=env)
    assert (done.returncode, done.stdout) == (2, "")
    assert "no Docker engine answers at /nowhere.sock" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_flood_is_one_journey_with_its_other_copies(ping: Ping, engine: Engine, extra: Callable[..., None]) -> None:
    """The bridge lost c2's row, the sender still has its MAC: the request goes to every port, and c2's branch is the way."""
    extra("third")
    read(ping("c1", "c2", "-c", "1", "--json"))
    with unlearned(engine) as mac:
        output = read(ping("c1", "c2", "-c", "1", "--json"))
    request = output.only("request")
    assert output.way(request) == [h.replace("l2_forward", "l2_flood") for h in switched("c1", "c2")]
    assert f"to every port (no fdb row for {mac})" in next(h["detail"] for h in request["hops"] if h["role"])
    assert output.way(output.only("reply")) == switched("c2", "c1")
    ends = {(copy["end"]["node"], copy["end"]["result"], copy["end"]["reason"]) for copy in output.of("copy", 1)}
    assert ("third", "dropped", "OTHERHOST") in ends


def test_a_flooded_packet_that_a_socket_takes_arrives(ping: Ping, engine: Engine) -> None:
    """The host's request goes to c1 itself, and to c2 a copy, which has lost its device when it ends."""
    read(ping("host", "c2", "-c", "1", "--json"))
    with unlearned(engine):
        output = read(ping("host", "c2", "--tcp", "80", "-c", "1", "--json"))
    end = output.only("request")["end"]
    assert (end["result"], end["node"]) == ("delivered", "c2")
    assert "host docker0 l2_flood switch" in output.way(output.only("request"))


@contextmanager
def unlearned(engine: Engine) -> Iterator[str]:
    """Without the bridge's row for c2's MAC, which any packet of c2's would bring back; it is back afterwards."""
    mac = engine.docker("inspect", "-f", "{{.NetworkSettings.MacAddress}}", "c2")
    port = next(line.split()[2] for line in engine.on_host("bridge", "fdb", "show", "br", "docker0").stdout.splitlines()
                if line.startswith(mac))
    assert engine.on_host("bridge", "link", "set", "dev", port, "learning", "off").returncode == 0
    try:
        assert engine.on_host("bridge", "fdb", "del", mac, "dev", port, "master").returncode == 0
        yield mac
    finally:
        engine.on_host("bridge", "link", "set", "dev", port, "learning", "on")
        assert engine.on_host("bridge", "fdb", "replace", mac, "dev", port, "master", "dynamic").returncode == 0


def test_a_promiscuous_bridge_makes_a_copy_for_the_host(ping: Ping, engine: Engine) -> None:
    """As tcpdump on docker0 makes it: the copy that goes up is a branch, and the way is the same."""
    assert engine.on_host("ip", "link", "set", "docker0", "promisc", "on").returncode == 0
    try:
        output = read(ping("c1", "c2", "-c", "1", "--json"))
    finally:
        engine.on_host("ip", "link", "set", "docker0", "promisc", "off")
    assert output.way(output.only("request")) == switched("c1", "c2")
    (copy,) = output.of("copy", 1)[:1]
    assert copy["parent"] in {output.only("request")["id"], output.only("reply")["id"]}
    assert "host docker0 l2_local nic" in output.way(copy)
