"""The ways of `ping`, causes, record and replay in the built-in lab: what must hold on every kernel, by whatever mechanism.

Reasons of drops are not compared: older kernels have fewer of them. Few runs, since an emulated machine takes ten seconds
for each.
"""

from __future__ import annotations

import json
import shlex
import signal
import socket
import subprocess
import sys
import textwrap
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.functional.conftest import Dnettrace, Done, program
from tests.functional.pinging import answers
from tests.functional.way import Output, from_host, leaving, published, read, rewrites, switched, to_host, without_hooks
from tracer.topology.netns import in_namespace

pytestmark = pytest.mark.usefixtures("lab")
LAB = "/run/netns/dnettrace-lab-"
OUTSIDE = "203.0.113.1"


def run(commands: str, check: bool = True) -> None:
    """One command a `;`, at the lab's host. {c1} enters a node, {p2} is the port of c2."""
    words = {node: f"nsenter --net={LAB}{node}" for node in ("c1", "c2", "outside")}
    inner = subprocess.run([*shlex.split(words["c2"]), "ip", "-o", "link", "show", "eth0"], capture_output=True, text=True)
    index = inner.stdout.partition("@if")[2].partition(":")[0]
    names = subprocess.run(["nsenter", f"--net={LAB}host", "ip", "-o", "link"], capture_output=True, text=True).stdout
    words["p2"] = next(line.split()[1].partition("@")[0] for line in names.splitlines() if line.startswith(f"{index}:"))
    for command in filter(None, map(str.strip, commands.split(";"))):
        done = subprocess.run(["nsenter", f"--net={LAB}host", *shlex.split(command.format_map(words))], capture_output=True,
                              text=True)
        assert not check or done.returncode == 0, f"{command}: {done.stderr}"


@pytest.fixture(scope="module", autouse=True)
def neighbors(lab: None) -> None:
    """So that who sends knows the MACs: a packet that waits for one begins later."""
    for node, address in (("c1", "172.17.0.3"), ("c1", "172.17.0.1"), ("host", "172.17.0.2"), ("c1", OUTSIDE),
                          ("c2", "172.17.0.1"), ("c1", "fd00:17::3")):
        assert answers(LAB + node, address), f"{address} does not answer {node}"


@pytest.mark.parametrize("version", [pytest.param("-4", marks=pytest.mark.core), "-6"])
def test_container_to_container(dnettrace: Dnettrace, version: str) -> None:
    output = read(dnettrace("--lab", "ping", "c1", "c2", "-c", "1", version, "--json"))
    assert output.start["probes"]["missing"] == []
    assert output.way(output.only("request")) == switched("c1", "c2")
    assert output.way(output.only("reply")) == switched("c2", "c1")
    (forward,) = [hop for hop in output.only("request")["hops"] if hop["stage"] == "forward"]
    assert (forward["rules"][0]["chain"], forward["rules"][-1]["verdict"]) == ("FORWARD", "accept")
    assert not any(hop["inferred"] for hop in output.only("request")["hops"])
    decided_itself(output, "l2_forward")


@pytest.mark.bare
def test_what_every_kernel_shows_of_the_bridge(dnettrace: Dnettrace) -> None:
    output = read(dnettrace("--lab", "ping", "c1", "c2", "-c", "1", "--json"))
    assert at_host(output.way(output.only("request"))) == at_host(switched("c1", "c2"))
    assert at_host(output.way(output.only("reply"))) == at_host(switched("c2", "c1"))
    assert not any("netfilter" in probe["name"] for probe in output.start["probes"]["missing"])


def at_host(way: list[str]) -> list[str]:
    """Less the hooks of others, at which nothing is registered: as a whole they are not seen then."""
    for node in ("c1", "c2", "outside"):
        way = without_hooks(way, node)
    return way


def decided_itself(output: Output, stage: str) -> None:
    """The bridge's decision about the request was seen itself, between the hops beside it."""
    assert {"__br_forward", "br_flood", "br_pass_frame_up"} <= set(output.start["probes"]["attached"])
    hops = output.only("request")["hops"]
    (at,) = [at for at, hop in enumerate(hops) if hop["stage"] == stage]
    assert (hops[at]["timed"], hops[at]["inferred"]) == (True, False), hops[at]
    assert hops[at - 1]["t_ns"] < hops[at]["t_ns"] < hops[at + 1]["t_ns"]


def test_a_bridge_that_does_not_know_the_mac_floods(dnettrace: Dnettrace) -> None:
    run("ip link set {p2} type bridge_slave learning off; ip link set docker0 type bridge fdb_flush")
    try:
        output = read(dnettrace("--lab", "ping", "c1", "c2", "-c", "1", "--json"))
    finally:
        run("ip link set {p2} type bridge_slave learning on")
    decided_itself(output, "l2_flood")


@pytest.mark.bare
def test_a_packet_that_waits_for_a_mac_is_seen(dnettrace: Dnettrace) -> None:
    # c2's first: else it asks once more for c1, which learns from that
    run("{c2} ip neigh flush to 172.17.0.2; {c1} ip neigh flush to 172.17.0.3")
    hops = read(dnettrace("--lab", "ping", "c1", "c2", "-c", "1", "--json")).only("request")["hops"]
    (at,) = [at for at, hop in enumerate(hops) if hop["stage"] == "neighbor"]
    assert hops[at]["detail"] == "waits: the MAC of 172.17.0.3 is not known"
    assert [hop["stage"] for hop in hops[at - 1:at + 2]] == ["postrouting", "neighbor", "egress"]
    assert hops[at - 1]["t_ns"] < hops[at]["t_ns"] < hops[at + 1]["t_ns"]


@pytest.mark.bare
@pytest.mark.parametrize(("transport", "kind"), [("--tcp", socket.SOCK_STREAM), ("--udp", socket.SOCK_DGRAM)])
def test_a_socket_that_takes_a_packet_is_seen(dnettrace: Dnettrace, transport: str, kind: socket.SocketKind) -> None:
    def listen() -> socket.socket:
        found = socket.socket(type=kind)
        found.bind(("172.17.0.3", 83))
        if kind == socket.SOCK_STREAM:
            found.listen()
        return found

    with in_namespace(f"{LAB}c2", listen):
        output = read(dnettrace("--lab", "ping", "c1", "c2", transport, "83", "-c", "1", "--json"), None)
    (deliver,) = [hop for hop in output.only("request")["hops"] if hop["stage"] == "deliver"]
    assert not deliver["inferred"], deliver


def whole(way: str) -> Output:
    """A ping to outside, with the hooks seen as on a kernel that has neither links nor chains' types."""
    code = f"""
        import sys
        from tracer.kernel import functions
        from tracer.kernel.catalogue import Mechanism
        functions.FUNCTION_WAYS = (Mechanism.{way},)
        functions._no_links = lambda _types: "not tried"
        functions._chain_name = lambda _types: (None, "")
        from tracer.cli.main import main
        sys.exit(main(["--lab", "ping", "c1", "{OUTSIDE}", "-c", "1", "-W", "2", "--json"]))
    """
    return read(subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True), None)


# a kprobe on a return has as many instances as 5.10 has CPUs: one here, where hooks lie in one another
@pytest.mark.parametrize("way", [pytest.param("FENTRY", marks=pytest.mark.bare), "KPROBE"])
def test_hooks_as_a_whole_show_the_rewrite(way: str) -> None:
    output = whole(way)
    assert {"nf_hook_slow", "nf_hook_slow%return"} <= set(output.start["probes"]["attached"])
    request, reply = output.only("request"), output.only("reply")
    hooks = [hop for hop in request["hops"] if hop["node"] == "host" and hop["tables"]]
    assert [(hop["stage"], hop["stopped_at"]) for hop in hooks] == [
        ("prerouting", []), ("forward", []), ("postrouting", [])]
    assert rewrites(request) == [("postrouting", {"src": ["172.17.0.2", "198.51.100.2"]})]
    assert rewrites(reply) == [("prerouting", {"dst": ["198.51.100.2", "172.17.0.2"]})]


@pytest.mark.parametrize("way", ["FENTRY", "KPROBE"])
def test_hooks_as_a_whole_tell_tables_of_iptables_legacy_apart(way: str) -> None:
    run(f"""iptables-legacy -t raw -A PREROUTING -j ACCEPT; iptables-legacy -t security -A FORWARD -j ACCEPT
            iptables-legacy -t mangle -A FORWARD -d {OUTSIDE} -j DROP""".replace("\n", ";"))
    try:
        output = whole(way)
    finally:
        run("iptables-legacy -t raw -F; iptables-legacy -t mangle -F; iptables-legacy -t security -F; "
            "rmmod iptable_raw iptable_mangle iptable_security", check=False)
    assert "ipt_do_table%return" in output.start["probes"]["attached"]
    request = output.only("request")
    hops = {hop["stage"]: hop for hop in request["hops"] if hop["node"] == "host"}
    assert "raw" in [table["table"] for table in hops["prerouting"]["tables"]]
    forward = hops["forward"]
    assert ([t["table"] for t in forward["tables"]], [t["table"] for t in forward["stopped_at"]]) == ([], ["mangle"])
    assert request["end"]["result"] == "dropped"


@pytest.mark.parametrize("way", ["FENTRY", "KPROBE"])
def test_function_probes_show_what_netfilter_links_do(way: str) -> None:
    code = f"""
        import sys
        from tracer.kernel import functions
        from tracer.kernel.catalogue import Mechanism
        functions.FUNCTION_WAYS = (Mechanism.{way},)
        functions._no_links = lambda _types: "not tried"
        from tracer.cli.main import main
        sys.exit(main(["--lab", "ping", "c1", "c2", "-c", "1", "--json"]))
    """
    output = read(subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True))
    assert output.start["probes"]["missing"] == []
    assert "nft_do_chain_ipv4" in output.start["probes"]["attached"]
    decided_itself(output, "l2_forward")
    assert output.way(output.only("request")) == switched("c1", "c2")
    assert output.way(output.only("reply")) == switched("c2", "c1")


@pytest.mark.bare
def test_host_and_container(dnettrace: Dnettrace) -> None:
    output = read(dnettrace("--lab", "ping", "host", "c1", "-c", "1", "--json"))
    assert at_host(output.way(output.only("request"))) == at_host(from_host("c1"))
    assert at_host(output.way(output.only("reply"))) == at_host(to_host("c1"))
    (up,) = [hop for hop in output.only("reply")["hops"] if hop["stage"] == "l2_local"]
    assert not up["inferred"]


@pytest.fixture(scope="module")
def kept(dnettrace: Dnettrace, tmp_path_factory: pytest.TempPathFactory) -> tuple[Done, Path]:
    """A ping to outside: what was shown, and its trace."""
    trace = tmp_path_factory.mktemp("kept") / "trace"
    return dnettrace("--lab", "ping", "c1", OUTSIDE, "-c", "1", "--json", "-w", str(trace)), trace


@pytest.mark.core
@pytest.mark.bare
def test_container_to_outside_and_its_translation(kept: tuple[Done, Path]) -> None:
    output = read(kept[0])
    request, reply = output.only("request"), output.only("reply")
    way, before = at_host(output.way(request)), at_host(leaving("c1"))
    assert way[:len(before)] == before
    # with br_netfilter, the bridge shows the frame to PREROUTING before it decides
    assert way[len(before):len(before) + 6] == [
        "host docker0 prerouting", "host docker0 l2_local nic", "host eth0 route", "host docker0 forward",
        "host docker0 postrouting", "host eth0 egress"]
    assert rewrites(request) == [("postrouting", {"src": ["172.17.0.2", "198.51.100.2"]})]
    assert rewrites(reply) == [("prerouting", {"dst": ["198.51.100.2", "172.17.0.2"]})]
    states = {hop["stage"]: hop["conntrack"] for hop in request["hops"] if hop["node"] == "host" and hop.get("conntrack")}
    assert states == {"prerouting": "NEW"}


@pytest.mark.bare
def test_a_published_port_from_outside(dnettrace: Dnettrace) -> None:
    with in_namespace(f"{LAB}c2", lambda: socket.create_server(("172.17.0.3", 80))):
        output = read(dnettrace("--lab", "ping", "outside", "198.51.100.2", "--tcp", "8080", "-c", "1", "--json"))
    ways = published("outside", "c2")
    for kind in ("request", "reply"):
        assert at_host(output.way(output.only(kind))) == at_host(ways[kind])
    assert [stage for stage, _change in rewrites(output.only("request"))] == ["prerouting"]


@dataclass(frozen=True)
class Fault:
    cause: str
    build: str
    undo: str
    ping: str
    result: str | None  # None: what it is depends on how long one waits
    node: str
    kind: str = "request"
    status: int = 1


FAULTS = [
    Fault("forwarding_off", "sysctl -qw net.ipv4.ip_forward=0", "sysctl -qw net.ipv4.ip_forward=1", f"c1 {OUTSIDE}",
          "dropped", "host"),
    Fault("networks_isolated", "", "", "c1 c3", "dropped", "host"),
    Fault("docker_user_rule", "iptables -I DOCKER-USER -s 172.17.0.2 -j DROP",
          "iptables -D DOCKER-USER -s 172.17.0.2 -j DROP", f"c1 {OUTSIDE}", "dropped", "host"),
    Fault("firewall_rule", "iptables -t raw -I PREROUTING -s 172.17.0.2 -p icmp -j DROP",
          "iptables -t raw -F", f"c1 {OUTSIDE}", "dropped", "host"),
    Fault("nobody_has_address", "", "", "c1 172.17.0.99 -W 5", "dropped", "c1"),
    Fault("wrong_gateway", "{c1} ip route replace default via 172.17.0.99",
          "{c1} ip route replace default via 172.17.0.1", f"c1 {OUTSIDE}", None, "c1"),
    Fault("bridge_down", "ip link set docker0 down",
          "ip link set docker0 up; ip -6 address replace fd00:17::1/64 dev docker0 nodad", "c1 172.17.0.1", "dropped",
          "host"),
    Fault("wrong_mac", "{c1} ip neigh replace 172.17.0.3 lladdr 02:42:00:00:00:99 dev eth0 nud permanent",
          "{c1} ip neigh del 172.17.0.3 dev eth0", "c1 c2", "dropped", "c2"),
    Fault("echo_ignored", "{c2} sysctl -qw net.ipv4.icmp_echo_ignore_all=1",
          "{c2} sysctl -qw net.ipv4.icmp_echo_ignore_all=0", "c1 c2", "delivered", "c2"),
    Fault("nothing_listens", "", "", "c1 c2 --tcp 81", "dropped", "c2", status=0),
]


BARE = ("forwarding_off", "firewall_rule", "nobody_has_address", "wrong_gateway", "wrong_mac", "echo_ignored",
        "nothing_listens")


def marks(fault: Fault) -> list[pytest.MarkDecorator]:
    return [pytest.mark.core] if fault.cause == "docker_user_rule" else [pytest.mark.bare] if fault.cause in BARE else []


@pytest.mark.parametrize("fault", [pytest.param(fault, id=fault.cause, marks=marks(fault)) for fault in FAULTS])
def test_a_fault_and_its_cause(dnettrace: Dnettrace, fault: Fault) -> None:
    run(fault.build)
    try:
        output = read(dnettrace("--lab", "ping", *fault.ping.split(), "-c", "1", "--json"), fault.status)
    finally:
        run(fault.undo, check=False)
    end = output.only(fault.kind)["end"]
    assert (end["cause"], end["node"]) == (fault.cause, fault.node), end
    assert fault.result in (end["result"], None)
    if fault.cause == "docker_user_rule":
        assert end["rule"]["rule"] == "-A DOCKER-USER -s 172.17.0.2/32 -j DROP"


@pytest.mark.core
@pytest.mark.bare
def test_a_replay_is_what_was_shown(dnettrace: Dnettrace, kept: tuple[Done, Path]) -> None:
    shown, trace = kept
    again = dnettrace("replay", str(trace), "--json")
    rows = [[json.loads(line) for line in done.stdout.splitlines()] for done in (shown, again)]
    ways = [[(row["kind"], row["hops"], row["end"]) for row in told if row["type"] == "journey"] for told in rows]
    assert ways[0] == ways[1] and len(ways[0]) >= 2


def test_recorded_traffic(dnettrace: Dnettrace, tmp_path: Path) -> None:
    recording = subprocess.Popen([*program(), "--lab", "record", "-v", "-w", str(tmp_path / "trace"), "icmp"],
                                 stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    while not (tmp_path / "trace").exists() and recording.poll() is None:
        time.sleep(0.1)
    for _turn in range(8):  # it listens some time after its file is there
        assert answers(f"{LAB}c1", "172.17.0.3")
        time.sleep(1)
    recording.send_signal(signal.SIGINT)
    said, _ = recording.communicate(timeout=60)
    rows = [json.loads(line) for line in dnettrace("replay", str(tmp_path / "trace"), "--json").stdout.splitlines()]
    ends = [row["end"]["result"] for row in rows if row["type"] == "journey" and row["packet"]["proto"] == "icmp"]
    assert "delivered" in ends and set(ends) <= {"delivered"}, said
    hops = [hop for row in rows if row["type"] == "journey" for hop in row["hops"]]
    stages = {hop["stage"] for hop in hops}
    assert {"prerouting", "l2_forward", "forward", "postrouting", "egress", "ingress"} <= stages
    assert any(hop["timed"] for hop in hops if hop["stage"] == "l2_forward")


def test_live_in_detail_sees_what_ping_sees() -> None:
    """Only then: these probes are not for a busy host's every packet."""
    attached = {}
    for detail in ([], ["-v"]):
        live = subprocess.Popen([*program(), "--lab", "live", "icmp", "--json", *detail], stdout=subprocess.PIPE,
                                text=True)
        assert live.stdout
        attached[bool(detail)] = set(json.loads(live.stdout.readline())["probes"]["attached"])
        for _turn in range(8 if detail else 0):  # the first one has it attach what a host at rest is spared
            assert answers(f"{LAB}c1", "172.17.0.3")
            time.sleep(1)
        live.send_signal(signal.SIGINT)
        told, _ = live.communicate(timeout=60)
    assert attached[True] - attached[False] >= {"__br_forward", "br_flood", "br_pass_frame_up", "neigh_resolve_output"}
    request = next(row for row in map(json.loads, told.splitlines()) if row["type"] == "journey" and row["complete"])
    (decision,) = [hop for hop in request["hops"] if hop["stage"] == "l2_forward"]
    assert (decision["timed"], decision["inferred"]) == (True, False)


@pytest.mark.bare
def test_killed_it_leaves_nothing() -> None:
    tracing = subprocess.Popen([*program(), "--lab", "ping", "c1", "c2", "-c", "100", "-i", "0.2"], stdout=subprocess.PIPE)
    assert tracing.stdout
    for line in tracing.stdout:
        if b"echo reply" in line:
            break
    tracing.send_signal(signal.SIGKILL)
    tracing.wait()
    deadline = time.monotonic() + 10
    while (left := tables()) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert left == []
    events = Path("/sys/kernel/tracing/kprobe_events")
    assert not events.exists() or events.read_text() == ""


def tables() -> list[str]:
    found = [subprocess.run(["nsenter", f"--net={LAB}{node}", "nft", "list", "tables"], capture_output=True, text=True)
             for node in ("host", "c1", "c2")]
    return [line for done in found for line in done.stdout.splitlines() if "dnettrace" in line]


@pytest.mark.bare
def test_without_br_netfilter_that_is_said(dnettrace: Dnettrace) -> None:
    if subprocess.run(["rmmod", "br_netfilter"], capture_output=True).returncode:  # `modprobe -r` takes the bridges with it
        pytest.skip("br_netfilter is built in, or in use")
    try:
        output = read(dnettrace("--lab", "ping", "c1", "c2", "-c", "1", "--json"))
    finally:
        subprocess.run(["modprobe", "br_netfilter"], check=True)
    hops = output.only("request")["hops"]
    (decision,) = [hop for hop in hops if hop["stage"] == "l2_forward"]
    assert decision["detail"].endswith("; br_netfilter is not loaded: iptables does not see bridged packets")
    assert not any(hop["stage"] == "forward" for hop in hops)
