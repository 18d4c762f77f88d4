"""`topo --path` tells the way that a packet then takes: each hop, each rule, the end. What it cannot tell, it says."""

from __future__ import annotations

import subprocess

import pytest

from tests.functional.conftest import Dnettrace
from tests.functional.expecting import Run, seen, told, way
from tracer.topology import lab as the_lab
from tracer.topology.netns import in_namespace


@pytest.fixture
def in_lab(dnettrace: Dnettrace, lab: None) -> Run:
    return lambda *args: dnettrace("--lab", *args)


PATHS = [("c1:c2:53/udp", ("c1", "c2", "--udp", "53")), ("c1:c3", ("c1", "c3")), ("c1:203.0.113.1", ("c1", "203.0.113.1")),
         ("host:c3", ("host", "c3")), ("c2:[fd00:17::2]", ("c2", "fd00:17::2")),
         ("outside:198.51.100.2:8080", ("outside", "198.51.100.2", "--tcp", "8080")),
         ("c1:198.51.100.2:8080", ("c1", "198.51.100.2", "--tcp", "8080"))]


@pytest.mark.parametrize(("path", "ping"), PATHS, ids=[path for path, _ in PATHS])
def test_the_way_in_the_lab(in_lab: Run, path: str, ping: tuple[str, ...]) -> None:
    expected, actual = told(in_lab, path), seen(in_lab, *ping)
    assert expected["end"]["result"] != "unknown"
    assert way(expected) == way(actual)
    rule = expected["end"]["rule"]
    assert (rule and rule["rule"]) == (actual["end"]["rule"] and actual["end"]["rule"]["rule"])
    if rule:
        assert expected["end"]["cause"] == actual["end"]["cause"]


@pytest.mark.parametrize(("setting", "value", "path", "ping", "reason"), [
    ("net.ipv4.ip_forward", "0", "c1:203.0.113.1", ("c1", "203.0.113.1"), "IP_INADDRERRORS"),
    ("net.bridge.bridge-nf-call-iptables", "0", "c1:c2", ("c1", "c2"), None),
    ("net.bridge.bridge-nf-call-iptables", "0", "c1:c3", ("c1", "c3"), "NETFILTER_DROP"),
])
def test_other_settings(in_lab: Run, setting: str, value: str, path: str, ping: tuple[str, ...], reason: str | None) -> None:
    file = f"/proc/sys/{setting.replace('.', '/')}"

    def put(text: str) -> None:
        def write() -> None:
            with open(file, "w", encoding="ascii") as opened:
                opened.write(text)
        in_namespace(the_lab.path("host"), write)

    put(value)
    try:
        expected, actual = told(in_lab, path), seen(in_lab, *ping)
    finally:
        put("1")
    assert expected["end"]["reason"] == actual["end"]["reason"] == reason
    assert [hop for hop in way(expected) if " route " not in hop] == [hop for hop in way(actual) if " route " not in hop]
    assert expected["end"]["cause"] == actual["end"]["cause"]


@pytest.mark.parametrize(("rule", "result", "words"), [
    (("-I", "DOCKER-USER", "-d", "172.17.0.3", "-j", "DROP"), "dropped", "docker_user_rule"),
    (("-I", "DOCKER-USER", "-m", "limit", "--limit", "1/s", "-j", "DROP"), "unknown", "whether this rule matches depends"),
    (("-I", "DOCKER-USER", "-m", "conntrack", "--ctstate", "ESTABLISHED", "-j", "DROP"), "delivered", ""),
    (("-I", "DOCKER-USER", "-p", "tcp", "--dport", "81", "-j", "DROP"), "delivered", ""),
    (("-I", "DOCKER-USER", "-j", "MARK", "--set-mark", "7"), "unknown", "what this rule does is not told"),
])
def test_a_rule_more(in_lab: Run, rule: tuple[str, ...], result: str, words: str) -> None:
    enter = ("nsenter", f"--net={the_lab.path('host')}", "iptables")
    subprocess.run([*enter, *rule], check=True, capture_output=True)
    try:
        end = told(in_lab, "c1:c2:80")["end"]
    finally:
        subprocess.run([*enter, "-D", *rule[1:]], check=True, capture_output=True)
    assert end["result"] == result
    assert words in f"{end['cause']} {end['detail']}"


def test_what_the_tables_do_not_tell(in_lab: Run) -> None:
    end = told(in_lab, "outside:172.17.0.2")["end"]
    assert (end["result"], end["detail"]) == ("unknown", "outside has no route to 172.17.0.2")


@pytest.mark.parametrize("destination", ["c2", "c3"])
def test_ping_compares(in_lab: Run, destination: str) -> None:
    done = in_lab("ping", "c1", destination, "-c", "1", "-W", "0.5", "--expected")
    assert "It went as the tables told" in done.stdout


def test_ping_points_at_what_the_tables_do_not_tell(in_lab: Run) -> None:
    """Sizes are not looked at: the packet does not fit the bridge's port to c2."""
    hops = told(in_lab, "c1:c2")["hops"]
    port = next(hop["device"] for hop in hops if hop["stage"] == "egress" and hop["detail"].startswith("peer of c2"))
    ip = ("nsenter", f"--net={the_lab.path('host')}", "ip", "link", "set", port, "mtu")
    subprocess.run([*ip, "1000"], check=True, capture_output=True)
    try:
        done = in_lab("ping", "c1", "c2", "-c", "1", "-W", "0.5", "-s", "1200", "--expected")
    finally:
        subprocess.run([*ip, "1500"], check=True, capture_output=True)
    said = " ".join(done.stdout.split())
    assert "! Not as the tables told, after host docker0 " in said
    assert "but it was dropped there." in said
