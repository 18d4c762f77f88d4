"""Rules of iptables-legacy by their counters: a -- router -- b, where the router is what the command calls the host."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import missing
from tests.functional.conftest import Dnettrace
from tests.functional.engine import NETNS, delete_namespace, in_netns
from tests.functional.pinging import answers
from tests.functional.way import Output, read
from tracer.topology import counters
from tracer.topology.snapshot import read_namespace

PREFIX = f"dnt{os.getpid()}-legacy-"
A, ROUTER, B = (f"{PREFIX}{name}" for name in ("a", "r", "b"))
SETUP = """
{r} link set lo up
{a} link add eth0 type veth peer name to-a netns {R}
{b} link add eth0 type veth peer name to-b netns {R}
{a} addr add 10.1.0.2/24 dev eth0
{b} addr add 10.2.0.2/24 dev eth0
{r} addr add 10.1.0.1/24 dev to-a
{r} addr add 10.2.0.1/24 dev to-b
{a} -6 addr add fd01::2/64 dev eth0 nodad
{b} -6 addr add fd02::2/64 dev eth0 nodad
{r} -6 addr add fd01::1/64 dev to-a nodad
{r} -6 addr add fd02::1/64 dev to-b nodad
{a} link set eth0 up
{b} link set eth0 up
{r} link set to-a up
{r} link set to-b up
{a} route add default via 10.1.0.1
{b} route add default via 10.2.0.1
{a} -6 route add default via fd01::1
{b} -6 route add default via fd02::1
"""
FLOOD = """
import socket, time
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
    while True:
        sender.sendto(b"x", ("10.2.0.2", 9))
        time.sleep(0.002)
"""
Trace = Callable[..., Output]


def on_router(*argv: str) -> str:
    done = in_netns(str(NETNS / ROUTER), *argv)
    assert done.returncode == 0, f"{argv}: {done.stderr}"
    return done.stdout


def legacy_rules(*lines: str, tool: str = "iptables-legacy") -> None:
    for line in lines:
        on_router(tool, "-w", *line.split())


@pytest.fixture
def trace(dnettrace: Dnettrace) -> Iterator[Trace]:
    """Probes from a to b, traced on the router."""
    try:
        for name in (A, ROUTER, B):
            subprocess.run(["ip", "netns", "add", name], check=True)
        for line in SETUP.strip().format(a=f"-n {A}", r=f"-n {ROUTER}", b=f"-n {B}", R=ROUTER).splitlines():
            subprocess.run(["ip", *line.split()], check=True)
        on_router("sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
        if in_netns(str(NETNS / ROUTER), "iptables-legacy", "-S").returncode:
            missing("iptables-legacy does not work here")
        assert answers(str(NETNS / A), "10.2.0.2")
        assert any(answers(str(NETNS / A), "fd02::2", 0.5) for _ in range(10))  # once addresses are no longer tentative

        def run(*options: str, status: int | None = None, **kw: Any) -> Output:
            environment = os.environ | {"DOCKER_HOST": "unix:///nowhere"} | kw.pop("env", {})
            return read(dnettrace("ping", f"netns:{A}", f"netns:{B}", "-c", "1", "-W", "1", "--json", *options,
                                  netns=str(NETNS / ROUTER), env=environment), status)

        yield run
    finally:
        for name in (A, ROUTER, B):
            delete_namespace(name)


def rules(output: Output, kind: str = "request", stage: str = "forward") -> list[tuple[str, str, str, str]]:
    """(table, rule or "policy CHAIN", verdict, by) of those of iptables-legacy at the router."""
    return [(r["table"], r["rule"] or f"policy {r['chain']}", r["verdict"], r["by"])
            for hop in output.only(kind)["hops"] if hop["stage"] == stage and hop["node"] == "host"
            for r in hop["rules"] if r["legacy"]]


def test_the_only_rule_that_may_have_dropped_it(trace: Trace) -> None:
    legacy_rules("-N GUARD", "-A FORWARD -p tcp -j ACCEPT", "-A FORWARD -i to-a -j GUARD", "-A GUARD -p udp -j DROP",
                 "-A GUARD -d 10.2.0.2 -j DROP", "-A GUARD -j DROP")
    output = trace(status=1)
    assert rules(output) == [("filter", "-A FORWARD -i to-a -j GUARD", "jump GUARD", "counter"),
                             ("filter", "-A GUARD -d 10.2.0.2/32 -j DROP", "drop", "counter")]
    end = output.only("request")["end"]
    assert (end["result"], end["stage"]) == ("dropped", "forward")
    assert end["rule"]["rule"] == "-A GUARD -d 10.2.0.2/32 -j DROP"
    assert (end["rule"]["exact"], end["rule"]["legacy"], end["rule"]["by"]) == (False, True, "counter")


def test_the_policy(trace: Trace) -> None:
    legacy_rules("-P FORWARD DROP", "-A FORWARD -p udp -j ACCEPT")
    end = trace(status=1).only("request")["end"]
    assert (end["rule"]["policy"], end["rule"]["chain"], end["rule"]["verdict"]) == (True, "FORWARD", "drop")


def test_rejected(trace: Trace) -> None:
    legacy_rules("-A FORWARD -j REJECT --reject-with icmp-admin-prohibited")
    end = trace(status=1).only("request")["end"]
    assert end["rule"]["rule"] == "-A FORWARD -j REJECT --reject-with icmp-admin-prohibited"
    assert end["rule"]["verdict"] == "reject"


def test_what_passed_and_what_translated(trace: Trace) -> None:
    legacy_rules("-A FORWARD -i to-a -j ACCEPT", "-A FORWARD -i to-b -j ACCEPT",
                 "-t nat -A POSTROUTING -o to-b -j MASQUERADE", "-t mangle -A FORWARD -j MARK --set-mark 7")
    output = trace(status=0)
    # request and reply both passed filter's FORWARD in the time: which of the two was whose, no counter says
    assert rules(output) == [("mangle", "policy FORWARD", "accept", "counter"),
                             ("filter", "-A FORWARD -i to-a -j ACCEPT", "accept", "candidate"),
                             ("filter", "-A FORWARD -i to-b -j ACCEPT", "accept", "candidate")]
    assert ("nat", "-A POSTROUTING -o to-b -j MASQUERADE", "accept", "counter") in rules(output, stage="postrouting")
    assert output.only("request")["end"]["result"] == "delivered"


def test_other_packets_make_it_ambiguous(trace: Trace) -> None:
    legacy_rules("-A FORWARD -p udp -j DROP", "-A FORWARD -p icmp -j DROP")
    flood = subprocess.Popen(["nsenter", f"--net={NETNS / A}", sys.executable, "-c", FLOOD])
    try:
        output = trace(status=1)
    finally:
        flood.kill()
        flood.wait()
    assert rules(output) == [("filter", "-A FORWARD -p udp -j DROP", "drop", "candidate"),
                             ("filter", "-A FORWARD -p icmp -j DROP", "drop", "candidate")]
    end = output.only("request")["end"]
    assert (end["rule"], end["cause"], end["mend"]) == (None, "one_of_rules", None)
    assert end["causes"][0]["evidence"] == ["filter/FORWARD: -A FORWARD -p udp -j DROP (its counter rose)",
                                            "filter/FORWARD: -A FORWARD -p icmp -j DROP (its counter rose)"]


def test_ipv6(trace: Trace) -> None:
    legacy_rules("-P FORWARD DROP", "-A FORWARD -p ipv6-icmp -s fd01::2 -j DROP", tool="ip6tables-legacy")
    legacy_rules("-A FORWARD -j ACCEPT")
    rule = trace("-6", status=1).only("request")["end"]["rule"]
    assert (rule["family"], rule["rule"]) == ("ip6", "-A FORWARD -s fd01::2/128 -p ipv6-icmp -j DROP")


def test_both_backends(trace: Trace) -> None:
    """nftables lets it pass, and iptables-legacy at a later priority does not; then the other way around."""
    on_router("nft", "add table ip mine { chain forward { type filter hook forward priority -5; accept; }; }")
    legacy_rules("-A FORWARD -p icmp -j DROP")
    end = trace(status=1).only("request")["end"]
    assert (end["rule"]["table"], end["rule"]["legacy"]) == ("filter", True)
    on_router("nft", "flush chain ip mine forward")
    on_router("nft", "add rule ip mine forward drop")
    output = trace(status=1)
    assert rules(output) == []
    assert not (output.only("request")["end"]["rule"] or {}).get("legacy")


def test_both_backends_at_one_priority(trace: Trace) -> None:
    """Where iptables-legacy logs what is traced, nftables is not traced, either: counters tell for both."""
    on_router("sysctl", "-qw", "net.netfilter.nf_log.2=nf_log_ipv4")
    for tool, other in (("iptables-legacy", "iptables-nft"), ("iptables-nft", "iptables-legacy")):
        on_router(tool, "-A", "FORWARD", "-p", "icmp", "-j", "DROP")
        on_router(other, "-A", "FORWARD", "-p", "icmp", "-j", "ACCEPT")
        end = trace(status=1).only("request")["end"]
        assert (end["rule"]["rule"], end["rule"]["legacy"]) == ("-A FORWARD -p icmp -j DROP", tool == "iptables-legacy")
        assert end["rule"]["by"] == "counter"
        on_router(tool, "-F", "FORWARD")
        on_router(other, "-F", "FORWARD")
    on_router("iptables-nft", "-P", "FORWARD", "DROP")  # which is not counted: no other can have been it
    rule = trace(status=1).only("request")["end"]["rule"]
    assert (rule["policy"], rule["chain"], rule["legacy"], rule["by"]) == (True, "FORWARD", False, "counter")


def test_without_the_tool_the_reason_is_said(trace: Trace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    legacy_rules("-A FORWARD -j DROP")
    found = counters.Counters()
    namespace = read_namespace(str(NETNS / ROUTER), "host", {})
    found.watch(namespace, traced=True)
    found.before(1)
    monkeypatch.setattr(counters, "_tool", lambda name, legacy: None)
    assert found.after(1)[namespace.netns].unknown == "iptables-legacy-save is not installed, which reads its counters"


def test_rules_that_change_meanwhile(trace: Trace) -> None:
    legacy_rules("-A FORWARD -j DROP")
    found = counters.Counters()
    namespace = read_namespace(str(NETNS / ROUTER), "host", {})
    found.watch(namespace, traced=True)
    found.before(1)
    legacy_rules("-I FORWARD -p udp -j DROP")
    assert found.after(1)[namespace.netns].unknown == "its rules changed meanwhile"
