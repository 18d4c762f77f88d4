"""Names, addresses and snapshots of the lab and of a real Docker engine."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import missing
from tests.functional.engine import Engine
from tests.functional.pinging import answers
from tracer.errors import UserError
from tracer.model.topology import BaseChain, BridgePort, LinkKey, Published
from tracer.topology import lab
from tracer.topology.engine import find_engine
from tracer.topology.host import Host
from tracer.topology.netns import NAMED, here, identify, in_namespace, named
from tracer.topology.snapshot import read_namespace, route_get


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    """A lab under names of its own."""
    monkeypatch.setattr(lab, "PREFIX", f"dnt{os.getpid()}-topo-")
    lab.up()
    yield Host.lab()
    lab.down()


@pytest.fixture
def docker(engine: Engine) -> Iterator[Engine]:
    """The engine; containers that a test starts are removed after it."""
    before = set(engine.docker("ps", "-aq").split())
    yield engine
    if made := set(engine.docker("ps", "-aq").split()) - before:
        engine.remove(*made)


def at(engine: Engine) -> Host:
    """What the command sees when it runs in the engine's network namespace."""
    return Host(engine.host_netns, find_engine({"DOCKER_HOST": engine.docker_host}), named)


# -- namespaces ------------------------------------------------------------------------------------------------------


def test_inside_a_namespace_and_back(small: Host) -> None:
    path = lab.path("c1")
    assert in_namespace(path, here) == identify(path)
    assert here() == identify(f"/proc/{os.getpid()}/ns/net") != identify(path)
    with pytest.raises(ZeroDivisionError):
        in_namespace(path, lambda: 1 // 0)
    with pytest.raises(FileNotFoundError):
        in_namespace("/run/netns/none", lambda: 1)
    with pytest.raises(OSError, match="Invalid argument"):
        in_namespace("/proc/self/ns/mnt", lambda: 1)


def test_only_mounted_namespaces_are_named() -> None:
    left = Path(NAMED, f"dnt{os.getpid()}-left")
    Path(NAMED).mkdir(exist_ok=True)
    left.touch()
    try:
        assert left.name not in named()
    finally:
        left.unlink()


# -- snapshots -------------------------------------------------------------------------------------------------------


def test_a_snapshot_of_the_labs_host(small: Host) -> None:
    for node in ("c1", "c2", "c3", "outside"):
        small.find(node)
    assert answers(lab.path("c1"), "172.17.0.3")  # the bridge learns both, c1 learns its neighbour
    topology = small.topology()
    host = topology.namespaces[topology.host]
    docker0 = host.by_name("docker0")
    assert docker0 is not None
    assert docker0.kind == "bridge"
    assert {str(i) for i in docker0.addresses} >= {"172.17.0.1/16", "fd00:17::1/64"}
    ports = {topology.peer(host.netns, link.ifindex) for link in host.links.values() if link.master == docker0.ifindex}
    assert ports == {("c1", "eth0"), ("c2", "eth0")}
    c1 = next(n for n in topology.namespaces.values() if n.name == "c1")
    eth0 = c1.by_name("eth0")
    assert eth0 is not None
    assert eth0.mac == "02:42:ac:11:00:02"
    port = eth0.peer
    assert port is not None
    assert host.links[port.ifindex].peer == LinkKey(c1.netns, eth0.ifindex)
    assert topology.bridge(host.netns, port.ifindex) == docker0
    learned = [entry for entry in host.fdb if entry.mac == eth0.mac]
    assert [(e.bridge, e.port, e.local) for e in learned] == [(docker0.ifindex, port.ifindex, False)]
    assert any(e.local and e.port == docker0.ifindex for e in host.fdb)
    assert [(str(n.address), n.mac) for n in c1.neighbors if n.address == ip_address("172.17.0.3")] == [
        ("172.17.0.3", "02:42:ac:11:00:03")]
    default = [r for r in c1.routes if r.destination == ip_network("0.0.0.0/0")]
    assert [(str(r.gateway), r.ifindex, r.table, r.kind) for r in default] == [
        ("172.17.0.1", eth0.ifindex, 254, "unicast")]
    assert any(r.destination == ip_network("fd00:17::/64") for r in c1.routes)
    assert any(r.kind == "local" and r.table == 255 for r in c1.routes)


def test_chains_of_nftables_and_iptables_nft(small: Host) -> None:
    tables = """table inet both { chain late { type filter hook input priority 5; }; chain called { }; }
                table arp no { chain entry { type filter hook input priority 0; }; }"""
    in_namespace(lab.path("host"), lambda: subprocess.run(["nft", "-f", "-"], input=tables, text=True, check=True))
    chains = small.topology().namespaces[small.place.netns].chains
    assert chains is not None
    assert BaseChain("ip", "filter", "FORWARD", "forward", 0) in chains
    assert BaseChain("ip6", "nat", "POSTROUTING", "postrouting", 100, kind="nat") in chains
    assert BaseChain("ip", "nat", "PREROUTING", "prerouting", -100, kind="nat") in chains
    assert BaseChain("inet", "both", "late", "input", 5) in chains
    assert not [c for c in chains if c.table == "no" or c.name in ("called", "DOCKER")]


def test_chains_of_iptables_legacy(small: Host) -> None:
    done = in_namespace(lab.path("c1"), lambda: subprocess.run(
        ["iptables-legacy", "-t", "raw", "-A", "PREROUTING", "-j", "ACCEPT"], capture_output=True))
    if done.returncode:
        missing(f"iptables-legacy does not work here: {done.stderr.decode().strip()}")
    chains = read_namespace(lab.path("c1"), "c1", {}).chains
    assert chains == (BaseChain("ip", "raw", "PREROUTING", "prerouting", -300, True),
                      BaseChain("ip", "raw", "OUTPUT", "output", -300, True))
    assert read_namespace(lab.path("c3"), "c3", {}).chains == ()


def test_pairs_within_one_namespace_and_next_hops(small: Host) -> None:
    path = lab.path("c3")

    def change() -> None:
        for line in ("link add va type veth peer name vb", "link set va up", "link set vb up",
                     "addr add 10.9.0.1/24 dev va",
                     "route add 10.10.0.0/16 nexthop via 10.9.0.2 nexthop via 172.18.0.1",
                     "route add blackhole 10.11.0.0/16", "route add prohibit 10.12.0.0/16",
                     "route add unreachable 10.13.0.0/16", "route add 10.14.0.0/16 via inet6 fe80::1 dev va"):
            subprocess.run(["ip", *line.split()], check=True)

    in_namespace(path, change)
    namespace = read_namespace(path, "c3", {})
    a, b = namespace.by_name("va"), namespace.by_name("vb")
    assert a is not None
    assert b is not None
    assert a.peer == LinkKey(namespace.netns, b.ifindex)
    eth0 = namespace.by_name("eth0")
    assert eth0 is not None
    assert eth0.peer is None  # its other end is in a namespace that the caller does not know
    hops = [(str(r.gateway), r.ifindex) for r in namespace.routes if r.destination == ip_network("10.10.0.0/16")]
    assert hops == [("10.9.0.2", a.ifindex), ("172.18.0.1", eth0.ifindex)]
    assert {r.kind for r in namespace.routes} >= {"blackhole", "prohibit", "unreachable"}
    assert [str(r.gateway) for r in namespace.routes if r.destination == ip_network("10.14.0.0/16")] == ["fe80::1"]
    for unreachable in ("10.11.0.1", "10.12.0.1", "10.13.0.1"):
        assert route_get(path, ip_address(unreachable)) is None


def test_the_kernels_own_answer_about_a_route(small: Host) -> None:
    host = small.topology().namespaces[small.place.netns]
    docker0, eth0 = host.by_name("docker0"), host.by_name("eth0")
    assert docker0 is not None
    assert eth0 is not None
    far = route_get(host.path, ip_address("203.0.113.1"))
    assert far is not None
    assert (str(far.gateway), far.ifindex, str(far.source), far.kind) == (
        "198.51.100.1", eth0.ifindex, "198.51.100.2", "unicast")
    forwarded = route_get(host.path, ip_address("203.0.113.1"), ip_address("172.17.0.2"), docker0.ifindex)
    assert forwarded is not None
    assert forwarded.ifindex == eth0.ifindex
    own = route_get(host.path, ip_address("172.17.0.1"))
    assert own is not None
    assert own.kind == "local"
    six = route_get(host.path, ip_address("fd00:17::2"))
    assert six is not None
    assert six.ifindex == docker0.ifindex
    assert route_get(lab.path("outside"), ip_address("192.0.2.9")) is None
    assert route_get(lab.path("outside"), ip_address("2001:db8:9::9")) is None
    c1 = read_namespace(lab.path("c1"), "c1", {}).by_name("eth0")
    assert c1 is not None  # c1 does not forward
    assert route_get(lab.path("c1"), ip_address("203.0.113.1"), ip_address("172.17.0.9"), c1.ifindex) is None


def test_a_namespace_that_is_gone(small: Host) -> None:
    place = small.find("c3")
    subprocess.run(["ip", "netns", "del", f"{lab.PREFIX}c3"], check=True)
    assert place.netns not in small.topology().namespaces
    with pytest.raises(OSError, match="No such file"):
        read_namespace(place.path, "c3", {})


def test_what_is_set_for_devices_ports_and_the_whole(small: Host) -> None:
    path = lab.path("host")
    topology = small.topology()
    port = next(link for link in topology.namespaces[topology.host].links.values() if link.port)
    assert port.port == BridgePort("forwarding", hairpin=False, isolated=False)
    assert (port.carrier, port.operstate) == (True, "up")

    def change() -> dict[str, str]:
        for line in (f"bridge link set dev {port.name} hairpin on isolated on",
                     "sysctl -qw net.ipv4.conf.docker0.rp_filter=2 net.ipv6.conf.docker0.forwarding=0",
                     "sysctl -qw net.ipv4.conf.docker0.route_localnet=1 net.ipv4.icmp_echo_ignore_all=1",
                     "ip link add dev eth0.100 type bridge", "sysctl -qw net.ipv4.conf.eth0/100.rp_filter=1"):
            subprocess.run(line.split(), check=True)
        printed = subprocess.run(["sysctl", "-a"], text=True, capture_output=True).stdout
        return dict(line.split(" = ", 1) for line in printed.splitlines() if " = " in line)

    kernels = in_namespace(path, change)
    host = read_namespace(path, "host", {})
    assert host.sysctls.keys() <= kernels.keys()
    settings = host.sysctls.keys() - {"net.netfilter.nf_conntrack_count"}  # which goes on counting
    assert {name: host.sysctls[name] for name in settings} == {name: kernels[name] for name in settings}
    assert host.sysctls["net.ipv4.conf.docker0.rp_filter"] == "2"
    assert {"net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding", "net.ipv4.conf.all.rp_filter",
            "net.ipv4.conf.eth0/100.rp_filter"} <= host.sysctls.keys()
    assert host.links[port.ifindex].port == BridgePort("forwarding", hairpin=True, isolated=True)


# -- words -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("source", "word", "version", "address", "name"), [
    ("c1", "c2", None, "172.17.0.3", "c2"),
    ("c1", "c2", 6, "fd00:17::3", "c2"),
    ("c1", "host", None, "172.17.0.1", "host"),
    ("c3", "host", None, "172.18.0.1", "host"),
    ("c3", "host", 6, "fd00:18::1", "host"),
    ("outside", "host", None, "198.51.100.2", "host"),
    ("c1", "c3", None, "172.18.0.2", "c3"),
    ("c1", "netns:c3", None, "172.18.0.2", "c3"),
    ("c1", "172.18.0.2", None, "172.18.0.2", "c3"),
    ("c1", "203.0.113.1", None, "203.0.113.1", "outside"),
    ("c1", "198.51.100.2", None, "198.51.100.2", "host"),
    ("c1", "127.0.0.1", None, "127.0.0.1", "c1"),
    ("c1", "172.17.0.2", None, "172.17.0.2", "c1"),
    ("host", "c3", None, "172.18.0.2", "c3"),
    ("c1", "192.0.2.77", None, "192.0.2.77", "192.0.2.77"),
])
def test_destinations_in_the_lab(small: Host, source: str, word: str, version: int | None, address: str,
                                 name: str) -> None:
    found = small.destination(word, small.find(source), version)
    assert (str(found.address), found.name) == (address, name)
    assert (found.place is None) == (name == address)


def test_a_name_that_the_source_resolves(small: Host) -> None:
    c1 = small.find("c1")
    found = small.destination("web.example", c1, None, lambda *_: ip_address("172.18.0.2"))
    assert (str(found.address), found.name) == ("172.18.0.2", "web.example")
    assert found.place is not None
    assert found.place.name == "c3"

    def fails(*_: object) -> Any:
        raise OSError("no such name")

    with pytest.raises(UserError, match=r'of the lab is called "c4" \(c1 cannot resolve it .*: did you mean c1,'):
        small.destination("c4", c1, None, fails)


# -- a real engine ---------------------------------------------------------------------------------------------------


def test_containers_and_their_veth_pairs(docker: Engine) -> None:
    host = at(docker)
    c1 = host.find("c1")
    assert c1.container is not None
    assert host.find(c1.container.id[:8]).netns == c1.netns
    assert host.find(f"pid:{c1.container.pid}").name == "c1"
    found = host.destination("c2", c1)
    assert str(found.address) == "172.17.0.3"
    topology = host.topology()
    docker0 = topology.namespaces[topology.host].by_name("docker0")
    assert docker0 is not None
    eth0 = topology.namespaces[c1.netns].by_name("eth0")
    assert eth0 is not None
    assert eth0.peer is not None
    assert eth0.peer.netns == topology.host
    assert topology.bridge(eth0.peer.netns, eth0.peer.ifindex) == docker0
    assert str(host.destination("host", c1).address) == "172.17.0.1"
    owner = host.destination("172.17.0.3", c1)
    assert owner.place is not None
    assert owner.place.name == "c2"
    with pytest.raises(UserError, match=r'is called "c9": did you mean c1, c2\?'):
        host.find("c9")


def test_networks_and_published_ports(docker: Engine) -> None:
    docker.docker("network", "create", "--internal", "-o", "com.docker.network.bridge.enable_icc=false", "dark")
    try:
        host = at(docker)
        topology = host.topology()
        networks = {network.name: network for network in topology.networks}
        assert networks["bridge"].device == "docker0"
        dark = networks["dark"]
        assert dark.device
        device = topology.namespaces[topology.host].by_name(dark.device)
        assert device is not None
        assert {i.network for i in device.addresses if i.version == 4} == {n for n in dark.subnets if n.version == 4}
        assert (dark.internal, dark.icc) == (True, False)
        c2 = next(c for c in topology.containers if c.name == "c2")
        assert Published("tcp", 80, ip_address("0.0.0.0"), 8080) in c2.ports
        host.find("c2")
        assert next(c for c in host.topology().containers if c.name == "c2").ports == c2.ports
    finally:
        docker.docker("network", "rm", "dark")


def test_a_shared_namespace(docker: Engine) -> None:
    docker.run("c3", "--network", "container:c1")
    host = at(docker)
    c3 = host.find("c3")
    assert (c3.name, c3.notes) == ("c3", ("c3 shares the network namespace of c1",))
    assert host.topology().node(c3.netns) == "c3"  # as typed
    assert str(host.destination("c2", c3).address) == "172.17.0.3"
    with pytest.raises(UserError, match=r"one network namespace \(c3 = c1\)"):
        host.destination("c1", c3)
    other = at(docker)
    assert other.refresh(c3.netns)
    assert other.topology().node(c3.netns) in ("c1", "c3")


def test_stopped_paused_and_without_a_network(docker: Engine) -> None:
    docker.docker("run", "--name", "c5", "bb", "ls")
    docker.run("c6", "--network", "none")
    docker.run("c7")
    docker.docker("pause", "c7")
    host = at(docker)
    with pytest.raises(UserError, match=r"^c5 is not running \(exited\): start it with `docker start c5`\.$"):
        host.find("c5")
    c6 = host.find("c6")
    assert str(host.destination("c2", c6).address) == "172.17.0.3"
    with pytest.raises(UserError, match=r"^c6 has no IP address: connect it to a network with `docker network connect"):
        host.destination("c6", host.find("c1"))
    assert answers(host.find("c7").path, "172.17.0.3")
    docker.docker("unpause", "c7")


def test_the_hosts_network(docker: Engine) -> None:
    docker.run("c4", "--network", "host")
    host = at(docker)
    c4 = host.find("c4")
    assert (c4.name, c4.notes) == ("host", ("c4 runs with --network host: to the network it is the host",))
    assert c4.netns == host.place.netns
    found = host.destination("c4", host.find("c1"))
    assert (str(found.address), found.name) == ("172.17.0.1", "host")
    elsewhere = Host.here({"DOCKER_HOST": docker.docker_host})  # the command in another namespace than the engine
    assert "another namespace" in elsewhere.find("c4").notes[0]


def test_several_networks(docker: Engine) -> None:
    docker.docker("network", "create", "web")
    try:
        docker.run("c8", "--network", "web")
        docker.run("c9")
        docker.docker("network", "connect", "web", "c9")
        host = at(docker)
        from_c1 = host.destination("c9", host.find("c1"))
        from_c8 = host.destination("c9", host.find("c8"))
        assert from_c1.address in ip_network("172.17.0.0/16")
        assert from_c8.address not in ip_network("172.17.0.0/16")
        assert from_c1.place == from_c8.place
        assert answers(host.find("c8").path, str(from_c8.address))
    finally:
        docker.remove("c8", "c9")
        docker.docker("network", "rm", "web")


def test_a_container_that_starts_later_gets_its_name(docker: Engine) -> None:
    host = at(docker)
    host.find("c1")
    docker.run("late")
    number = identify(f"/proc/{docker.pid('late')}/ns/net")
    assert number not in host.directory.names
    assert host.refresh(number)
    topology = host.topology(extra=[number])
    assert topology.node(number) == "late"
    assert topology.peer(number, next(i for i, link in topology.namespaces[number].links.items() if not link.loopback))
    assert not host.refresh(4711)
