"""Names stay true while containers, devices and namespaces come and go: on a real engine, and with 200 namespaces."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest

from tests.functional.conftest import CHECKOUT, program
from tests.functional.engine import NETNS, Engine, in_netns
from tests.functional.pinging import answers
from tracer.kernel.probes import Probes
from tracer.model.selection import Selection
from tracer.model.topology import Topology
from tracer.topology import changes, netns
from tracer.topology.directory import Claim
from tracer.topology.engine import Engine as Client, EngineError
from tracer.topology.host import Host
from tracer.topology.lives import Life, Lives
from tracer.topology.watcher import Watcher

MINE = f"dnt{os.getpid()}"
HOST, SERVER = f"{MINE}-names", f"{MINE}-server"
ADDRESS = "10.9.0.2"
CLIENTS, AT_ONCE, PINGS = 200, 10, 2
LIFE_S = 0.4  # of a client, after its pings: a container that does one thing lives longer


def ip(*lines: str) -> None:
    subprocess.run(["ip", "-batch", "-"], input="\n".join(lines), text=True, check=True, capture_output=True)


def until(watcher: Watcher, true: Callable[[Topology], bool], seconds: float = 5) -> Topology:
    end = time.monotonic() + seconds
    while not true(watcher.topology) and time.monotonic() < end:
        time.sleep(0.02)
    assert true(watcher.topology), watcher.topology.names
    assert watcher.poll() is not None
    return watcher.topology


def ends(topology: Topology) -> list[tuple[str, str]]:
    """(node, device) behind each of the host's bridge ports."""
    links = topology.namespaces[topology.host].links.values()
    return sorted(peer for link in links if link.master and (peer := topology.peer(topology.host, link.ifindex)))


@pytest.fixture
def watcher(engine: Engine) -> Iterator[Watcher]:
    with Watcher(Host(engine.host_netns, Client(engine.docker_host), netns.named)) as running:
        yield running


def test_what_is_there_is_named_from_the_start(watcher: Watcher) -> None:
    assert {"c1", "c2"} <= {node for node, _device in ends(watcher.topology)}
    until(watcher, lambda t: {("c1", "eth0"), ("c2", "eth0")} <= set(ends(t)))  # the busier the machine, the later


def test_containers_come_get_other_names_and_networks_and_go(watcher: Watcher, engine: Engine) -> None:
    with ExitStack() as stack:
        engine.run("n1")
        stack.callback(engine.remove, "n1")
        until(watcher, lambda t: ("n1", "eth0") in ends(t))
        engine.docker("network", "create", "names")
        stack.callback(engine.docker, "network", "rm", "names")
        engine.docker("network", "connect", "names", "n1")
        stack.callback(engine.docker, "network", "disconnect", "-f", "names", "n1")
        topology = until(watcher, lambda t: ("n1", "eth1") in ends(t) and any(n.name == "names" for n in t.networks))
        engine.docker("rename", "n1", "n2")
        stack.callback(engine.docker, "rename", "n2", "n1")
        topology = until(watcher, lambda t: {("n2", "eth0"), ("n2", "eth1")} <= set(ends(t)))
        assert "n1" not in topology.names.values()
        assert "n2" in {container.name for container in topology.containers}


def test_the_next_container_may_have_the_inode_but_not_the_name(watcher: Watcher, engine: Engine) -> None:
    engine.run("n1")
    first = netns.identify(f"/proc/{engine.pid('n1')}/ns/net")
    until(watcher, lambda t: ("n1", "eth0") in ends(t))
    before = time.monotonic_ns()
    engine.remove("n1")
    topology = until(watcher, lambda t: bool(t.former) and ("n1", "eth0") not in ends(t.at(time.monotonic_ns())))
    assert topology.node(first) == "n1"  # for packets that are yet to be told
    assert ("n1", "eth0") in ends(topology.at(before))
    engine.run("n2")
    try:
        second = netns.identify(f"/proc/{engine.pid('n2')}/ns/net")
        topology = until(watcher, lambda t: ("n2", "eth0") in ends(t))
        assert (topology.node(first), topology.node(second)) == ("n1", "n2")
        assert ("n1", "eth0") in ends(topology.at(before))
        assert "n1" not in {node for node, _device in ends(topology.at(time.monotonic_ns()))}
    finally:
        engine.remove("n2")


def test_an_engine_that_goes_away_is_no_error(engine: Engine, tmp_path: Path) -> None:
    with Watcher(Host(engine.host_netns, Client(f"unix://{tmp_path}/none.sock"), netns.named)) as watcher:
        assert watcher.topology.node(watcher.topology.host) == "host"
        time.sleep(0.3)
        watcher.poll()


def test_the_first_named_namespace_brings_the_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = tmp_path / "netns"
    monkeypatch.setattr(netns, "NAMED", str(folder))
    lives = Lives(netns.named, lambda: None)
    try:
        folder.mkdir()
        (folder / "one").touch()
        subprocess.run(["unshare", "--net", "mount", "--bind", "/proc/self/ns/net", folder / "one"], check=True)
        time.sleep(0.5)
        (folder / "two").touch()
        subprocess.run(["unshare", "--net", "mount", "--bind", "/proc/self/ns/net", folder / "two"], check=True)
        time.sleep(0.1)
        two = netns.identify(str(folder / "two"))
        for name in ("one", "two"):
            subprocess.run(["umount", folder / name], check=True)
            (folder / name).unlink()
        found = lives.take()
    finally:
        lives.close()
    assert [life.name for life in found] == ["one", "two"]
    assert found[1].netns == two


def test_a_container_is_found_without_a_word_of_the_engine(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """That it starts, which a busy engine says too late."""
    monkeypatch.setattr(Lives, "_started", lambda *_arguments: None)
    lives = Lives(netns.named, lambda: None, Client(engine.docker_host), engine.host_netns)
    found: list[Life] = []
    try:
        engine.run("n3")
        number = netns.identify(f"/proc/{engine.pid('n3')}/ns/net")
        end = time.monotonic() + 5
        while not found and time.monotonic() < end:
            time.sleep(0.05)
            found += [life for life in lives.take() if life.claim is Claim.GUEST]  # else it is a named one
    finally:
        lives.close()
        engine.remove("n3")
    assert [(life.name, life.netns) for life in found] == [("n3", number)]


def test_what_an_engine_tells_counts_where_it_does_not_answer(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    def silent(*_arguments: object) -> None:
        raise EngineError("no answer")

    monkeypatch.setattr(Client, "inspect", silent)
    lives = Lives(netns.named, lambda: None, Client(engine.docker_host), engine.host_netns)
    heard: list[tuple[str, str]] = []
    try:
        engine.run("n4")
        end = time.monotonic() + 5
        while ("n4", "start") not in heard and time.monotonic() < end:
            time.sleep(0.05)
            heard += [(event.name, event.action) for event in lives.hear()[1]]
    finally:
        lives.close()
        engine.remove("n4")
    assert ("n4", "start") in heard


@pytest.fixture
def bridged() -> Iterator[None]:
    """A host with a bridge, and a server on it."""
    try:
        ip(f"netns add {HOST}", f"netns add {SERVER}", f"link add br0 netns {HOST} type bridge",
           f"link add server netns {HOST} type veth peer name eth0 netns {SERVER}")
        in_netns(str(NETNS / HOST), "sh", "-c", "ip link set br0 up; ip link set server master br0 up; ip link set lo up",
                 check=True)
        in_netns(str(NETNS / SERVER), "sh", "-c", f"ip addr add {ADDRESS}/16 dev eth0; ip link set eth0 up", check=True)
        yield
    finally:
        for name in (HOST, SERVER):
            subprocess.run(["ip", "netns", "del", name], capture_output=True)


def test_what_is_attached_in_a_namespace_goes_with_it(bridged: None) -> None:
    table = "add table ip t; add chain ip t c { type filter hook input priority 0; }"  # for a netfilter link behind it
    in_netns(str(NETNS / SERVER), "nft", table, check=True)
    host = Host(str(NETNS / HOST), None, netns.named)
    server = host.topology([host.find(SERVER).netns]).namespaces[netns.identify(str(NETNS / SERVER))]
    selection = Selection(4, "icmp", 77, (), IPv4Address(ADDRESS))
    with Probes(selection) as probes, changes.Changes() as changed:
        probes.watch(server)
        changed.watch(server)
        probes.arm()
        ip(f"netns del {SERVER}")
        end = time.monotonic() + 3
        while "server@" in (there := in_netns(str(NETNS / HOST), "ip", "-o", "link").stdout) and time.monotonic() < end:
            probes.read(50)
            changed.seen()
        assert "server@" not in there


def client(number: int) -> bool:
    """A namespace of its own, with the name of the host's device and, likely, the inode of one that has just ended."""
    name, device = f"{MINE}-n{number}", f"v{number % AT_ONCE}"
    try:
        ip(f"netns add {name}", f"link add {device} netns {HOST} type veth peer name eth0 netns {name}")
        in_netns(str(NETNS / HOST), "ip", "link", "set", device, "master", "br0", "up", check=True)
        in_netns(str(NETNS / name), "sh", "-c", f"ip addr add {own(number)}/16 dev eth0; ip link set eth0 up", check=True)
        answered = [answers(str(NETNS / name), ADDRESS) for _ in range(PINGS)]
        time.sleep(LIFE_S)
        return all(answered)
    finally:
        subprocess.run(["ip", "netns", "del", name], capture_output=True, check=True)
        while f" {device}@" in in_netns(str(NETNS / HOST), "ip", "-o", "link").stdout:  # the kernel's own time for it
            time.sleep(0.01)


def own(number: int) -> str:
    return f"10.9.{1 + number // 200}.{1 + number % 200}"


def row(number: int) -> list[bool]:
    """One after the other, so that each takes over the device's name of the one before."""
    return [client(n) for n in range(number, CLIENTS, AT_ONCE)]


class Live:
    """`live icmp --json` on a host, and what it told when it has ended."""

    def __init__(self, host: str, env: dict[str, str] | None = None) -> None:
        self._command = ["nsenter", f"--net={host}", *program(), "live", "icmp", "--json"]
        self._env = env
        self.journeys: list[dict[str, Any]] = []

    def __enter__(self) -> Live:
        self._lines = tempfile.NamedTemporaryFile("w+")
        self._live = subprocess.Popen(self._command, cwd=CHECKOUT, env=self._env, stdin=subprocess.DEVNULL,
                                      stdout=self._lines, stderr=subprocess.PIPE, text=True)
        while not Path(self._lines.name).read_text() and self._live.poll() is None:
            time.sleep(0.05)
        return self

    def __exit__(self, *_exception: object) -> None:
        time.sleep(1.5)  # for what waits for a name
        self._live.send_signal(signal.SIGINT)
        _none, said = self._live.communicate(timeout=20)
        assert self._live.returncode == 0, said
        rows = [json.loads(line) for line in Path(self._lines.name).read_text().splitlines()]
        self._lines.close()
        self.journeys = [row for row in rows if row["type"] == "journey" and row["kind"] in ("request", "reply", "packet")]


def test_200_namespaces_come_and_go_during_a_trace(bridged: None) -> None:
    with Live(str(NETNS / HOST)) as live:
        with ThreadPoolExecutor(AT_ONCE) as pool:
            answered = [one for found in pool.map(row, range(AT_ONCE)) for one in found]
        links = in_netns(str(NETNS / HOST), "ip", "-o", "link").stdout
    assert answered == [True] * CLIENTS
    assert links.count("@") == 1, links  # the server's: no other was kept alive
    journeys = [j for j in live.journeys if ADDRESS in (j["packet"]["src"], j["packet"]["dst"])]
    problems = [problem for one in journeys if (problem := misnamed(one))]
    assert not [problem for problem in problems if problem.startswith("wrong")], problems[:10]
    assert len(problems) <= len(journeys) // 50, problems[:10]  # a busy machine may be late with a name or two, and says so
    counted = [sum(own(number) in (j["packet"]["src"], j["packet"]["dst"]) for j in journeys) for number in range(CLIENTS)]
    assert counted == [2 * PINGS] * CLIENTS


def test_containers_come_and_go_during_a_trace(engine: Engine) -> None:
    """Each sends its first packets before the engine says that it runs, and is gone a second later."""
    target = engine.docker("inspect", "-f", "{{.NetworkSettings.IPAddress}}", "c1")

    def start(number: int) -> str:
        return engine.docker("run", "--rm", "--name", f"short{number}", "bb", "sh", "-c",
                             f"ip -4 -o addr show eth0; ping -c 2 -i 0.2 -q {target}").split(" inet ")[1].partition("/")[0]

    with Live(engine.host_netns, engine.env()) as live, ThreadPoolExecutor(3) as pool:
        addresses = list(pool.map(start, range(12)))
    late = [number for number, address in enumerate(addresses) if not_named(number, address, live.journeys)]
    unknown = {hop["node"] for j in live.journeys for hop in j["hops"] if hop["node"].startswith("netns:")}
    assert len(late) <= 1 and len(unknown) == len(late), (late, unknown)  # a busy machine may be late with one, and says so


def not_named(number: int, address: str, journeys: list[dict[str, Any]]) -> bool:
    """A container whose hops are told under its namespace's number; an AssertionError where a name is wrong."""
    with_it = [j for j in journeys if address in (j["packet"]["src"], j["packet"]["dst"])]  # others had it before
    mine = [j for j in with_it if any(hop["node"] == f"short{number}" for hop in j["hops"])]
    if not mine:
        return True
    assert len(mine) == 4, "\n".join([f"short{number} at {address}:", *map(json.dumps, with_it)])
    assert {hop["node"] for j in mine for hop in j["hops"]} == {f"short{number}", "host", "c1"}
    at_port = [hop["detail"] for j in mine for hop in j["hops"] if (hop["device"] or "").startswith("veth")]
    assert all("peer of c1:eth0" in detail or f"peer of short{number}:eth0" in detail for detail in at_port), at_port
    return False


def misnamed(journey: dict[str, Any]) -> str | None:
    """What is wrong with the names of an echo request's or a reply's hops."""
    packet = journey["packet"]
    there = packet["src"] if packet["dst"] == ADDRESS else packet["dst"]
    third, fourth = map(int, there.split(".")[2:])
    number = 200 * (third - 1) + fourth - 1
    name, device = f"{MINE}-n{number}", f"v{number % AT_ONCE}"
    nodes = {hop["node"] for hop in journey["hops"]}
    at_port = [hop["detail"] for hop in journey["hops"] if hop["node"] == "host" and hop["device"] == device]
    mine = [f"peer of {name}:eth0" in detail for detail in at_port]
    if nodes == {name, SERVER, "host"} and mine and all(mine):
        return None
    strangers = {node for node in nodes - {name, SERVER, "host"} if not node.startswith("netns:")}
    others = [detail for detail in at_port if "peer of" in detail and f"peer of {name}:eth0" not in detail]
    wrong = strangers or others or not mine or len(nodes) != 3
    way = [(hop["node"], hop["stage"], hop["detail"]) for hop in journey["hops"]]
    return f"{'wrong' if wrong else 'late'}: {there}: {way}, {journey['end']}, complete: {journey['complete']}"


def test_what_passes_in_another_network_is_not_told(engine: Engine, bridged: None) -> None:
    """Though its namespaces have names."""
    target = engine.docker("inspect", "-f", "{{.NetworkSettings.IPAddress}}", "c2")
    with Live(engine.host_netns, engine.env()) as live:
        for _turn in range(3):
            assert client(0)
        assert answers(f"/proc/{engine.pid('c1')}/ns/net", target)
    assert [j["packet"]["src"] for j in live.journeys if ADDRESS in (j["packet"]["src"], j["packet"]["dst"])] == []
    assert len(live.journeys) == 2
