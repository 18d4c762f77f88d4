"""The rules that packets met, word by word: iptables-nft on a real engine, native nft in namespaces of our own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from ipaddress import ip_address

import pytest

from tests.functional.conftest import CHECKOUT, Dnettrace, program
from tests.functional.engine import NETNS, Engine, delete_namespace, in_netns
from tests.functional.pinging import answers
from tests.functional.way import Output, Row, read
from tracer.kernel.rules import RuleTracer, selected
from tracer.model.probes import Trace
from tracer.model.selection import Selection
from tracer.model.topology import BaseChain
from tracer.topology.netns import identify, in_namespace
from tracer.topology.nfnetlink import DELTABLE, GETTABLE, NEWCHAIN, NEWTABLE, Connection, text, word
from tracer.topology.snapshot import read_namespace

OURS = Selection(4, "icmp", 0x1234, (), ip_address("10.9.0.1"))  # the packets of tests.functional.pinging
HOST, A, B = (f"dnt{os.getpid()}-rules-{name}" for name in ("host", "a", "b"))


def inside(netns: str, *argv: str, stdin: str | None = None) -> str:
    more = {"stdin": None, "input": stdin} if stdin else {}
    done = in_netns(netns, *argv, **more)
    assert done.returncode == 0, f"{' '.join(argv)}: {done.stderr}"
    return str(done.stdout)


def rules(journey: Row, stage: str, node: str = "host") -> list[tuple[str, str, str | None, str]]:
    return [(rule["table"], rule["chain"], rule["rule"], rule["verdict"]) for hop in journey["hops"]
            if hop["stage"] == stage and hop["node"] == node for rule in hop["rules"]]


def unknown(journey: Row) -> set[str]:
    return {hop["rules_unknown"] for hop in journey["hops"] if hop["rules_unknown"]}


def stopped(output: Output, kind: str = "request") -> tuple[str, str, str, str | None, str]:
    end = output.only(kind)["end"]
    rule = end["rule"]
    assert end["result"] == "dropped" and rule, end
    return rule["family"], rule["table"], rule["chain"], rule["rule"], rule["verdict"]


@pytest.fixture
def on_engine(dnettrace: Dnettrace, engine: Engine) -> Callable[..., Output]:
    def ping(*args: str, status: int = 0) -> Output:
        return read(dnettrace("ping", *args, "-c", "1", "--json", netns=engine.host_netns, env=engine.env()), status)
    return ping


def test_every_rule_of_an_engine_s_accept_path(on_engine: Callable[..., Output], engine: Engine) -> None:
    output = on_engine("c1", "c2")
    saved = inside(engine.host_netns, "iptables-save", "-t", "filter").splitlines()
    for kind in ("request", "reply"):
        journey = output.only(kind)
        met = rules(journey, "forward")
        assert met[0][:3] == ("filter", "FORWARD", "-A FORWARD -j DOCKER-USER")
        assert met[-1][3] == "accept"
        assert [rule for _table, _chain, rule, _verdict in met if rule not in saved] == []
        assert unknown(journey) == set()
    assert "--ctstate RELATED,ESTABLISHED" in str(rules(output.only("reply"), "forward")[-1][2])


def test_the_rule_that_isolates_networks(on_engine: Callable[..., Output], engine: Engine, dnettrace: Dnettrace) -> None:
    engine.docker("network", "create", "web")
    engine.run("c3", "--network", "web")
    bridge = "br-" + engine.docker("network", "inspect", "-f", "{{.Id}}", "web")[:12]
    try:
        family, table, chain, rule, verdict = stopped(on_engine("c1", "c3", status=1))
        assert (family, verdict) == ("ip", "drop")
        if engine.guards:
            address = engine.address("c3", network="web")
            assert (table, rule) == ("raw", f"-A PREROUTING -d {address}/32 ! -i {bridge} -j DROP")
        else:
            assert table == "filter" and chain.startswith("DOCKER") and rule == f"-A {chain} -o {bridge} -j DROP"
        said = dnettrace("ping", "c1", "c3", "-c", "1", netns=engine.host_netns, env=engine.env()).stdout
        assert f"✗ dropped at {table}/{chain} by rule\n      {rule}\n" in said
    finally:
        engine.remove("c3")
        engine.docker("network", "rm", "web")


def test_a_rule_that_rejects(on_engine: Callable[..., Output], engine: Engine) -> None:
    own = ["DOCKER-USER", "-p", "icmp", "-m", "comment", "--comment", "no # handle 7", "-j", "REJECT"]
    inside(engine.host_netns, "iptables", "-I", *own)
    try:
        output = on_engine("c1", "c2", status=1)
        assert stopped(output) == (
            "ip", "filter", "DOCKER-USER", '-A DOCKER-USER -p icmp -m comment --comment "no # handle 7" -j REJECT '
            "--reject-with icmp-port-unreachable", "reject")
    finally:
        inside(engine.host_netns, "iptables", "-D", *own)


@pytest.mark.parametrize("probe", [["--tcp", "80"], ["--udp", "80"], []])
def test_answers_to_a_translated_port(on_engine: Callable[..., Output], engine: Engine, probe: list[str]) -> None:
    """That a reply, or an error, is the run's tells only the connection's entry."""
    own = ["POSTROUTING", "-s", "172.17.0.0/16", "!", "-o", "docker0", "-j", "MASQUERADE", "--random"]
    inside(engine.host_netns, "iptables", "-t", "nat", "-I", *own)
    try:
        output = on_engine("c1", "203.0.113.1", *probe)
        answer = output.only("error" if "--udp" in probe else "reply")
        assert str(rules(answer, "forward")[-1][2]).endswith("--ctstate RELATED,ESTABLISHED -j ACCEPT")
        # before connection tracking, nothing tells that it is the run's
        assert unknown(answer) == ({"no trace message of raw/PREROUTING was seen"} if engine.guards else set())
    finally:
        inside(engine.host_netns, "iptables", "-t", "nat", "-D", *own)


def test_a_rule_inside_the_container(on_engine: Callable[..., Output], engine: Engine) -> None:
    netns = f"/proc/{engine.pid('c2')}/ns/net"
    inside(netns, "iptables", "-A", "INPUT", "-p", "icmp", "-j", "DROP")
    try:
        output = on_engine("c1", "c2", status=1)
        assert stopped(output) == ("ip", "filter", "INPUT", "-A INPUT -p icmp -j DROP", "drop")
        assert output.only("request")["end"]["node"] == "c2"
    finally:
        inside(netns, "iptables", "-F", "INPUT")


@pytest.fixture(scope="module")
def network() -> Iterator[None]:
    """A and B on the bridge br9 of HOST, which bridge netfilter leaves to the bridge family alone."""
    names = (HOST, A, B)
    try:
        for name in names:
            subprocess.run(["ip", "netns", "add", name], check=True)
        commands = ["link add br9 type bridge", "addr add 10.9.0.1/24 dev br9", "addr add fd09::1/64 dev br9 nodad",
                    "link set br9 up"]
        for at, name in ((2, A), (3, B)):
            commands += [f"link add p{at} type veth peer name eth0 netns {name}", f"link set p{at} master br9 up",
                         f"-n {name} addr add 10.9.0.{at}/24 dev eth0", f"-n {name} addr add fd09::{at}/64 dev eth0 nodad",
                         f"-n {name} link set eth0 up"]
        for command in commands:
            inside(str(NETNS / HOST), "ip", *command.split())
        yield
    finally:
        for name in names:
            delete_namespace(name)


@pytest.fixture
def native(network: None, dnettrace: Dnettrace) -> Iterator[Callable[..., Output]]:
    """Pings with a native ruleset in HOST."""
    def ping(ruleset: str, *args: str, status: int | None = 0) -> Output:
        inside(str(NETNS / HOST), "nft", "-f", "-", stdin=f"flush ruleset\n{ruleset}")
        return read(dnettrace("ping", *args, "-c", "1", "-W", "1", "--json", netns=str(NETNS / HOST)), status)
    yield ping
    inside(str(NETNS / HOST), "nft", "flush", "ruleset")


def test_native_sets_jumps_and_two_base_chains(native: Callable[..., Output]) -> None:
    output = native("""
table inet fw {
    set blocked {
        type ipv4_addr
        elements = { 10.9.0.2 }
    }
    chain early {
        type filter hook input priority -10
        meta l4proto icmp counter jump ours
    }
    chain ours {
        ip protocol icmp log prefix "x" level debug
        ip saddr { 10.9.0.2, 10.9.0.77 } accept
    }
    chain late {
        type filter hook input priority 10
        ip saddr @blocked drop
    }
}""", f"netns:{A}", "host", status=1)
    request = output.only("request")
    assert rules(request, "input") == [
        ("fw", "early", "meta l4proto icmp counter jump ours", "jump ours"),
        ("fw", "ours", 'ip protocol icmp log prefix "x" level debug', "continue"),
        ("fw", "ours", "ip saddr { 10.9.0.2, 10.9.0.77 } accept", "accept"),
        ("fw", "late", "ip saddr @blocked drop", "drop")]
    assert stopped(output) == ("inet", "fw", "late", "ip saddr @blocked drop", "drop")
    assert unknown(request) == set()


@pytest.mark.parametrize(("family", "rule"), [
    ("ip", "icmp type echo-request reject with icmp type host-prohibited"),
    ("ip6", "icmpv6 type echo-request reject with icmpv6 type admin-prohibited"),
    ("inet", "meta l4proto { icmp, ipv6-icmp } reject with icmpx type admin-prohibited")])
def test_native_reject(native: Callable[..., Output], family: str, rule: str) -> None:
    ruleset = f"table {family} own {{\n chain in {{\n type filter hook input priority 0\n {rule}\n }}\n }}"
    output = native(ruleset, f"netns:{A}", "fd09::1" if family == "ip6" else "10.9.0.1", status=1)
    found = stopped(output)
    assert (*found[:3], found[4]) == (family, "own", "in", "reject")
    assert (found[3] or "").split(" reject ")[0] == rule.split(" reject ")[0]


def test_a_policy_that_drops(native: Callable[..., Output], dnettrace: Dnettrace) -> None:
    for family, address in (("ip", "10.9.0.1"), ("ip6", "fd09::1")):
        accept = "icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept" if family == "ip6" else ""
        chain = f"chain in {{\n type filter hook input priority 0\n policy drop\n {accept}\n }}"
        output = native(f"table {family} own {{\n {chain}\n }}", f"netns:{A}", address, status=1)
        assert stopped(output) == (family, "own", "in", None, "drop")
        assert output.only("request")["end"]["rule"]["policy"]
    said = dnettrace("ping", f"netns:{A}", "fd09::1", "-c", "1", "-W", "1", netns=str(NETNS / HOST)).stdout
    assert "✗ dropped by the policy of own/in\n" in said


@pytest.mark.parametrize(("hook", "rule", "stage"), [
    ("hook prerouting priority -300", "ether type ip ip protocol icmp drop", "ingress"),
    ("hook forward priority 0", "ip daddr 10.9.0.3 icmp type echo-request drop", "l2_forward"),
    ("hook forward priority 0", "ip daddr 10.9.0.3 icmp type echo-request accept", "l2_forward"),
    ("hook output priority 0", "ip protocol icmp accept", "l2_forward"),
    ("hook input priority 0", "ip protocol icmp accept", "l2_local"),
    ("hook postrouting priority 0", 'oifname "p3" ip protocol icmp accept', "egress")])
def test_the_bridge_family(native: Callable[..., Output], hook: str, rule: str, stage: str) -> None:
    drops = rule.endswith("drop")
    output = native(f"table bridge own {{\n chain it {{\n type filter {hook}\n {rule}\n }}\n }}",
                    "host" if "output" in hook else f"netns:{A}", "host" if "input" in hook else f"netns:{B}",
                    status=1 if drops else 0)
    if drops:
        assert stopped(output) == ("bridge", "own", "it", rule.replace("ether type ip ip", "ip"), "drop")
    else:
        assert rules(output.only("request"), stage) == [("own", "it", rule, "accept")]


def test_arp_and_neighbour_discovery(native: Callable[..., Output]) -> None:
    chain = "chain it {{\n type filter hook {} priority 0\n {}\n }}"
    output = native(f"table bridge own {{\n {chain.format('forward', 'arp operation request accept')}\n }}",
                    f"netns:{A}", f"netns:{B}", "--arp")
    request = output.only("request")
    assert next(rule for hop in request["hops"] for rule in hop["rules"])["rule"] == "arp operation request accept"
    output = native(f"table ip6 own {{\n {chain.format('input', 'icmpv6 type nd-neighbor-solicit accept')}\n }}",
                    f"netns:{A}", "fd09::1", "--arp")
    assert rules(output.only("request"), "input") == [
        ("own", "it", "icmpv6 type nd-neighbor-solicit accept", "accept")]


def test_ip6tables(native: Callable[..., Output], dnettrace: Dnettrace) -> None:
    own = ["INPUT", "-p", "ipv6-icmp", "-m", "icmp6", "--icmpv6-type", "128", "-j", "DROP"]
    inside(str(NETNS / HOST), "ip6tables-nft", "-A", *own)
    output = read(dnettrace("ping", f"netns:{A}", "fd09::1", "-c", "1", "-W", "1", "--json", netns=str(NETNS / HOST)), 1)
    assert stopped(output) == ("ip6", "filter", "INPUT", f"-A {' '.join(own)}", "drop")


def test_the_netdev_family(native: Callable[..., Output]) -> None:
    chain = 'table netdev own {{\n chain it {{\n type filter hook ingress device "p2" priority 0\n {}\n }}\n }}'
    output = native(chain.format("icmp type echo-request counter"), f"netns:{A}", f"netns:{B}")
    assert rules(output.only("request"), "ingress") == [
        ("own", "it", "icmp type echo-request counter", "continue"), ("own", "it", None, "accept")]
    output = native(chain.format("icmp type echo-request drop"), f"netns:{A}", f"netns:{B}", status=1)
    assert stopped(output) == ("netdev", "own", "it", "icmp type echo-request drop", "drop")


OWN = "table ip own {\n chain in {\n type filter hook input priority 0\n icmp type echo-request accept\n }\n }"


def test_no_rules(native: Callable[..., Output]) -> None:
    request = native(OWN, f"netns:{A}", "10.9.0.1", "--no-rules").only("request")
    assert rules(request, "input") == []
    assert unknown(request) == {"rule tracing is turned off"}


def test_kill_9_leaves_no_table_and_none_is_there_between_probes(native: Callable[..., Output]) -> None:
    native(OWN, f"netns:{A}", "10.9.0.1")
    command = ["nsenter", f"--net={NETNS / HOST}", *program(), "ping", f"netns:{A}", "10.9.0.99", "-i", "0.2", "-W", "0.1"]
    tables: set[int] = set()
    running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=CHECKOUT)
    try:
        deadline = time.monotonic() + 15
        while len(tables) < 2 and time.monotonic() < deadline:
            tables.add(inside(str(NETNS / HOST), "nft", "list", "tables").count("dnettrace-"))
    finally:
        running.send_signal(signal.SIGKILL)
        running.wait()
    assert tables == {0, 1}
    time.sleep(0.1)
    assert inside(str(NETNS / HOST), "nft", "list", "tables").split() == ["table", "ip", "own"]


def test_10_000_rules_are_read_once_and_a_rule_that_is_new_is_found(native: Callable[..., Output],
                                                                     dnettrace: Dnettrace) -> None:
    many = "\n".join(f"-A INPUT -s 10.77.{at >> 8}.{at & 255}/32 -j DROP" for at in range(10_000))
    inside(str(NETNS / HOST), "nft", "flush", "ruleset")
    inside(str(NETNS / HOST), "iptables-nft-restore", stdin=f"*filter\n:INPUT ACCEPT [0:0]\n{many}\n"
           "-A INPUT -p icmp -j ACCEPT\nCOMMIT\n")
    begun = time.monotonic()
    output = read(dnettrace("ping", f"netns:{A}", "10.9.0.1", "-c", "2", "-i", "0.2", "--json", netns=str(NETNS / HOST)))
    assert time.monotonic() - begun < 8
    assert rules(output.only("request"), "input") == [("filter", "INPUT", "-A INPUT -p icmp -j ACCEPT", "accept")]


def test_rules_that_change_in_mid_trace(native: Callable[..., Output]) -> None:
    """Each probe is shown with the rule that it met, whatever was added, deleted or made anew since."""
    native(OWN, f"netns:{A}", "10.9.0.1")
    command = ["nsenter", f"--net={NETNS / HOST}", *program(), "ping", f"netns:{A}", "10.9.0.1", "-i", "0.5", "-c", "4",
               "--json"]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=sys.stderr, cwd=CHECKOUT, text=True)
    assert running.stdout
    lines = []
    for line in running.stdout:
        lines.append(line)
        if '"reply"' in line and '"seq": 2' in line:
            inside(str(NETNS / HOST), "nft", "-f", "-", stdin=f"flush ruleset\n{OWN.replace('echo-request', '{ 0, 8 }')}")
    assert running.wait() == 0
    output = read(subprocess.CompletedProcess(command, 0, "".join(lines), ""))
    met = [rules(output.only("request", seq), "input")[0][2] for seq in (1, 2, 3, 4)]
    assert met[:2] == ["icmp type echo-request accept"] * 2
    assert met[3] == "icmp type { echo-reply, echo-request } accept"


def traced(monkeypatch: pytest.MonkeyPatch, ruleset: str, receive_bytes: int, probes: int) -> tuple[list[Trace], list[int]]:
    """What a tracer in HOST reads after so many echo requests from A, all at once."""
    inside(str(NETNS / HOST), "nft", "-f", "-", stdin=f"flush ruleset\n{ruleset}")
    monkeypatch.setattr("tracer.kernel.rules.RECEIVE_BYTES", receive_bytes)
    host = read_namespace(str(NETNS / HOST), "host", {})
    with RuleTracer(*selected(OURS)) as tracer:
        tracer.watch(host)
        assert tracer.untraced == {}
        tracer.arm()
        for _ in range(probes):
            assert answers(str(NETNS / A), "10.9.0.1")
        return tracer.read()


def test_messages_that_the_kernel_had_no_room_for_are_counted(network: None, monkeypatch: pytest.MonkeyPatch) -> None:
    found, lost = traced(monkeypatch, OWN, 1, 30)
    assert lost and set(lost) == {identify(str(NETNS / HOST))}
    found, lost = traced(monkeypatch, OWN, 8 << 20, 30)
    assert (len(found), lost) == (30, [])


def test_where_legacy_tables_would_log_the_packets_they_are_not_traced(network: None) -> None:
    inside(str(NETNS / HOST), "nft", "-f", "-", stdin=f"flush ruleset\n{OWN}")
    host = read_namespace(str(NETNS / HOST), "host", {})
    legacy = replace(host, chains=(*(host.chains or ()), BaseChain("ip", "filter", "INPUT", "input", 0, legacy=True)))
    logger = "/proc/sys/net/netfilter/nf_log/2"
    known = [line.split()[1] for line in inside(str(NETNS / HOST), "cat", "/proc/net/netfilter/nf_log").splitlines()
             if line.startswith(" 2 ")]
    if known == []:
        pytest.skip("no logger can be bound here")
    inside(str(NETNS / HOST), "sh", "-c", f"echo {known[0]} > {logger}")
    with RuleTracer(*selected(OURS)) as tracer:
        tracer.watch(legacy)
        assert tracer.untraced == {
            host.netns: f"iptables-legacy would write each traced packet to the log of {known[0]}"}
    inside(str(NETNS / HOST), "sh", "-c", f"echo NONE > {logger}")
    with RuleTracer(*selected(OURS)) as tracer:
        tracer.watch(legacy)
        assert tracer.untraced == {}


def test_a_batch_that_is_refused_leaves_the_connection_in_step(network: None) -> None:
    def talk() -> None:
        connection = Connection()
        table, chain = text(1, "own"), text(1, "own") + text(3, "called")
        try:
            for _ in range(2):
                with pytest.raises(FileNotFoundError):
                    connection.commit([(NEWCHAIN, "ip", chain), (NEWTABLE, "ip6", table)])
                connection.commit([(NEWTABLE, "ip", table), (NEWCHAIN, "ip", chain)])
                assert [(family, word(row[1])) for family, row in connection.dump(GETTABLE, "")] == [("ip", "own")]
                connection.commit([(DELTABLE, "ip", table)])
        finally:
            connection.close()

    inside(str(NETNS / HOST), "nft", "flush", "ruleset")
    in_namespace(str(NETNS / HOST), talk)


def test_without_the_right_to_add_a_table_the_reason_is_kept(network: None) -> None:
    code = f"""
from tests.functional.test_rules import OURS
from tracer.kernel.rules import RuleTracer, selected
from tracer.model.topology import BaseChain, Namespace
tracer = RuleTracer(*selected(OURS))
host = Namespace({identify(str(NETNS / HOST))}, "host", "{NETNS / HOST}", chains=(BaseChain("ip", "f", "i", "input", 0),))
tracer.watch(host)
tracer.arm()
print(*tracer.untraced.values(), tracer.read())
"""
    done = subprocess.run(["setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin", sys.executable, "-c", code],
                          cwd=CHECKOUT, text=True, capture_output=True)
    assert (done.stdout, done.stderr) == ("no table could be added: Operation not permitted ([], [])\n", "")
