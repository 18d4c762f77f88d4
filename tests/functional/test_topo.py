"""`dnettrace topo` in the lab, and on a real engine with one of each kind."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.functional.conftest import Dnettrace, Done
from tests.functional.engine import Engine
from tests.functional.expecting import seen, told, way
from tests.functional.networks import every_kind
from tests.functional.pinging import answers
from tracer.errors import ExitStatus
from tracer.topology import lab as the_lab
from tracer.topology.netns import in_namespace

Topo = Callable[..., Done]


@pytest.fixture(scope="module")
def own(engine: Engine) -> Iterator[str]:
    with every_kind(engine) as name:
        yield name


@pytest.fixture
def topo(dnettrace: Dnettrace, engine: Engine, own: str) -> Topo:
    return lambda *args: dnettrace("topo", *args, netns=engine.host_netns, env=engine.env())


def picture(topo: Topo, *args: str) -> dict[str, Any]:
    done = topo(*args, "--format", "json")
    assert done.returncode in (ExitStatus.OK, ExitStatus.LOST), done.stderr
    row: dict[str, Any] = json.loads(done.stdout)
    return row


def findings(topo: Topo) -> dict[str, dict[str, Any]]:
    return {found["name"]: found for found in picture(topo)["findings"]}


# the lab ----------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("lab")
def test_the_lab(dnettrace: Dnettrace) -> None:
    done = dnettrace("--lab", "topo")
    assert done.returncode == ExitStatus.OK, done.stderr
    for word in ("docker0", "172.17.0.1/16", "c1", "c2", "c3", "02:42:ac:11:00:02", "NIC to the host", "switch to ports"):
        assert word in done.stdout
    assert done.stdout.endswith("No finding.\n")


@pytest.mark.usefixtures("lab")
def test_what_a_bridge_learned_and_a_neighbour_table_holds(dnettrace: Dnettrace) -> None:
    assert answers(the_lab.path("c1"), "172.17.0.3")
    done = dnettrace("--lab", "topo", "bridges", "--format", "json")
    fdb = json.loads(done.stdout.splitlines()[2])
    (age,) = (row["cells"][3] for row in fdb["rows"] if row["cells"][4] == "eth0 of c1")
    assert 0 <= int(age.removesuffix(" s")) < 30
    done = dnettrace("--lab", "topo", "neighbors", "--container", "c1", "--format", "json")
    assert ["c1", "172.17.0.3", "c2", "02:42:ac:11:00:03"] in [
        row["cells"][:4] for row in json.loads(done.stdout)["rows"]]


@pytest.mark.usefixtures("lab")
@pytest.mark.parametrize(("start", "goal"), [("c1", "172.17.0.3"), ("c1", "203.0.113.1"), ("host", "172.18.0.2"),
                                             ("c1", "172.17.0.2"), ("c1", "fd00:18::2")])
def test_the_row_is_the_kernels_own_choice(dnettrace: Dnettrace, start: str, goal: str) -> None:
    done = dnettrace("--lab", "topo", "routes", "--from", start, "--for", goal, "--format", "json")
    table = json.loads(done.stdout)
    (row,) = (row for row in table["rows"] if row["mark"] == ">")
    gateway, device = row["cells"][2], row["cells"][6]
    said = table["notes"][-1]
    assert f"dev {device} " in said or f"kernel says: local {goal} " in said
    assert gateway in ("0.0.0.0", "::") or f"via {gateway} " in said


@pytest.mark.usefixtures("lab")
def test_rules_of_a_pair_end_where_its_ping_ended(dnettrace: Dnettrace) -> None:
    done = dnettrace("--lab", "ping", "c1", "c3", "-c", "1", "-W", "0.5", "--json")
    ends = [row["end"] for row in map(json.loads, done.stdout.splitlines()) if row["type"] == "journey"]
    rule = next(end["rule"]["rule"] for end in ends if end["rule"])
    done = dnettrace("--lab", "topo", "rules", "--path", "c1:c3", "--format", "json")
    rows = json.loads(done.stdout.splitlines()[-1])["rows"]
    assert rows[-1]["cells"][3].strip() == rule


# a real engine ----------------------------------------------------------------------------------------------------------


def test_each_kind(topo: Topo, own: str) -> None:
    row = picture(topo)
    hung = {bridge["network"]["name"] if bridge["network"] else bridge["name"]: [
        port["peer"]["containers"] or [port["peer"]["node"]] for port in bridge["ports"]] for bridge in row["bridges"]}
    assert hung == {"bridge": [["c1"], ["c2"]], "web": [["c3", "c4"]], "data": [["c3", "c4"]], "six": [["c8"]],
                    "quiet": [["c10"]], "br-own": [[own]]}
    assert {one["name"]: one["kind"] for one in row["alone"]} == {
        "c5": "host", "c6": "none", "c7": "macvlan", "c9": "stopped"}
    assert row["findings"] == []
    assert row["unchecked"] == []


def test_both_ends_are_those_that_ip_link_names(topo: Topo, engine: Engine) -> None:
    docker0 = next(bridge for bridge in picture(topo)["bridges"] if bridge["name"] == "docker0")
    for port in docker0["ports"]:
        (name,) = port["peer"]["containers"]
        inner = engine.docker("exec", name, "ip", "-o", "link", "show", "eth0")
        assert inner.startswith(f"{port['peer']['ifindex']}: eth0@if{port['ifindex']}:")


def test_published_ports_and_one_network_alone(topo: Topo) -> None:
    done = topo("--network", "bridge")
    assert "published: host's 8080 → 80/tcp" in done.stdout
    assert "web" not in done.stdout
    assert [bridge["name"] for bridge in picture(topo, "--container", "c8")["bridges"]] != []


def test_from_a_recording_of_the_same_engine(dnettrace: Dnettrace, engine: Engine, topo: Topo, tmp_path: Any) -> None:
    trace = str(tmp_path / "run.pcapng")
    done = dnettrace("ping", "c1", "c2", "-c", "1", "-w", trace, netns=engine.host_netns, env=engine.env())
    assert done.returncode == ExitStatus.OK, done.stderr
    done = dnettrace("topo", trace, "--container", "c1", "--format", "json")
    ports = json.loads(done.stdout)["bridges"][0]["ports"]
    now = picture(topo, "--container", "c1")["bridges"][0]["ports"]
    assert [port["peer"]["device"] for port in ports] == [port["peer"]["device"] for port in now]


@pytest.mark.parametrize("ends", [("c1", "c2"), ("c1", "{c3}"), ("c3", "203.0.113.1")])
def test_the_way_that_a_packet_takes(dnettrace: Dnettrace, engine: Engine, own: str, ends: tuple[str, str]) -> None:
    c3 = engine.docker("inspect", "-f", "{{.NetworkSettings.Networks.web.IPAddress}}", "c3")
    source, destination = ends[0], ends[1].format(c3=c3)

    def on_engine(*args: str) -> Done:
        return dnettrace(*args, netns=engine.host_netns, env=engine.env())

    expected, actual = told(on_engine, f"{source}:{destination}"), seen(on_engine, source, destination)
    assert expected["end"]["result"] != "unknown", expected
    assert way(expected) == way(actual)
    assert expected["end"]["cause"] == actual["end"]["cause"]


def test_faults_that_are_built(topo: Topo, engine: Engine) -> None:
    host = engine.host_netns

    def on_host(*argv: str) -> None:
        subprocess.run(["nsenter", f"--net={host}", *argv], check=True, capture_output=True)

    def setting(name: str, value: str) -> None:
        def write() -> None:
            with open(f"/proc/sys/{name.replace('.', '/')}", "w", encoding="ascii") as file:
                file.write(value)
        in_namespace(host, write)

    port = next(p for b in picture(topo)["bridges"] if b["name"] == "docker0" for p in b["ports"]
                if p["peer"]["containers"] == ["c1"])
    saved = subprocess.run(["nsenter", f"--net={host}", "iptables-save", "-t", "filter"], check=True, capture_output=True)
    try:
        setting("net.ipv4.ip_forward", "0")
        setting("net.bridge.bridge-nf-call-iptables", "0")
        on_host("iptables", "-F", "FORWARD")
        on_host("ip", "link", "set", port["name"], "mtu", "1400")
        on_host("ip", "route", "add", "172.17.128.0/24", "via", "198.51.100.1")
        on_host("ip", "neigh", "replace", "172.17.0.2", "lladdr", "02:42:ac:11:00:63", "dev", "docker0")
        done = topo()
        found = findings(topo)
    finally:
        on_host("ip", "neigh", "del", "172.17.0.2", "dev", "docker0")
        on_host("ip", "route", "del", "172.17.128.0/24")
        on_host("ip", "link", "set", port["name"], "mtu", "1500")
        subprocess.run(["nsenter", f"--net={host}", "iptables-restore"], input=saved.stdout, check=True)
        setting("net.bridge.bridge-nf-call-iptables", "1")
        setting("net.ipv4.ip_forward", "1")
    assert done.returncode == ExitStatus.LOST
    assert set(found) == {"forwarding_off", "bridge_filter_off", "docker_chains_missing", "mtu_unequal", "subnets_overlap",
                          "wrong_mac"}
    assert found["wrong_mac"]["mend"] == "ip neigh del 172.17.0.2 dev docker0"
    assert findings(topo) == {}
