"""What begins a journey, and what is another's: the filter that is compiled in, on the real engine's network."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from ipaddress import ip_address

import pytest

from tests.functional.conftest import Dnettrace
from tests.functional.engine import Engine
from tests.functional.way import arriving, from_host, read
from tracer.journey.headers import decode
from tracer.kernel.probes import Probes
from tracer.model.journey import Packet
from tracer.model.selection import Selection
from tracer.topology.netns import in_namespace

C1, C2, TOKEN = ip_address("172.17.0.2"), ip_address("172.17.0.3"), 40000 // 64 * 64
TO_PORT_80 = Selection(4, "tcp", TOKEN, (C1, C2), C2, 80, C1)


@contextmanager
def socket_in(engine: Engine, name: str, kind: socket.SocketKind, port: int) -> Iterator[socket.socket]:
    made = in_namespace(f"/proc/{engine.pid(name)}/ns/net", lambda: socket.socket(socket.AF_INET, kind))
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.bind(("", port))
    made.settimeout(3)
    with made:
        yield made


def followed(selection: Selection, traffic: Callable[[], None]) -> set[Packet]:
    """The packets of which a journey began while `traffic` ran, by their headers at first sight."""
    with Probes(selection) as probes:
        probes.read(0)
        traffic()
        events = [event for _ in range(3) for event in probes.read(50).events]
    return {decode(e.protocol, e.packet[:e.captured]) for e in events if e.first}


@pytest.mark.parametrize(("source", "port", "selection", "ours"), [
    ("c1", TOKEN + 3, TO_PORT_80, True),
    ("c1", TOKEN + 64, TO_PORT_80, False),
    ("c1", TOKEN + 3, replace(TO_PORT_80, port=81), False),
    ("c1", TOKEN + 3, replace(TO_PORT_80, sender=ip_address("172.17.0.9")), False),
    ("c1", TOKEN + 3, replace(TO_PORT_80, sender=None), True),
    ("c1", TOKEN + 3, replace(TO_PORT_80, destination=ip_address("172.17.0.9")), False),
], ids=["ours", "another port", "to another port", "from another sender", "from a sender yet unknown", "to another address"])
def test_a_connection_is_the_run_s_by_both_its_ends(engine: Engine, source: str, port: int, selection: Selection,
                                                    ours: bool) -> None:
    def connect() -> None:
        with socket_in(engine, source, socket.SOCK_STREAM, port) as one:
            one.connect((str(C2), 80))

    found = {(p.sport, p.dport, p.tcp_flags) for p in followed(selection, connect) if p.proto == "tcp"}
    if ours:
        assert {(port, 80, "SYN"), (80, port, "SYN ACK")} <= found
    else:  # what comes to the sender's ports is, whoever it is from: a run holds them all
        assert (port, 80, "SYN") not in found


def test_the_reply_is_the_run_s_where_nat_gave_it_another_port(dnettrace: Dnettrace, engine: Engine) -> None:
    rule = ["POSTROUTING", "-p", "tcp", "!", "-o", "docker0", "-j", "MASQUERADE", "--random-fully"]
    assert engine.on_host("iptables", "-t", "nat", "-I", *rule).returncode == 0
    try:
        output = read(dnettrace("ping", "c1", "203.0.113.1", "--tcp", "9", "-c", "1", "--json", netns=engine.host_netns,
                                env=engine.env()))
    finally:
        engine.on_host("iptables", "-t", "nat", "-D", *rule)
    request, reply = output.only("request"), output.only("reply")
    sport, moved = next(hop["rewrite"]["sport"] for hop in request["hops"] if hop["rewrite"])
    assert (sport, reply["packet"]["dport"]) == (request["packet"]["sport"], moved) and sport != moved
    assert next(hop["rewrite"]["dport"] for hop in reply["hops"] if hop["rewrite"]) == [moved, sport]
    outside = f"{engine.name}-wan"
    assert output.way(reply) == [
        f"{outside} eth0 route", f"{outside} eth0 output", f"{outside} eth0 postrouting", f"{outside} eth0 egress",
        "host eth0 ingress", "host eth0 prerouting", "host docker0 route", "host eth0 forward", "host eth0 postrouting",
        *from_host("c1")[3:5], "host veth>c1 egress", *arriving("c1")]


def test_more_probes_than_ports_wait_for_their_turn(dnettrace: Dnettrace, engine: Engine) -> None:
    """c2 is told to say nothing: 70 SYNs at once, of which 64 have a port each."""
    assert engine.on_host("iptables", "-I", "FORWARD", "-p", "tcp", "--dport", "82", "-j", "DROP").returncode == 0
    try:
        output = read(dnettrace("ping", "c1", "c2", "--tcp", "82", "-c", "70", "-i", "0.01", "-W", "1", "--json",
                                netns=engine.host_netns, env=engine.env()), status=1)
    finally:
        engine.on_host("iptables", "-D", "FORWARD", "-p", "tcp", "--dport", "82", "-j", "DROP")
    assert sorted(j["seq"] for j in output.of("request", None)) == list(range(1, 71))
    assert {j["end"]["reason"] for j in output.of("request", None)} == {"NETFILTER_DROP"}


def test_a_lookup_of_others_is_not_the_arp_probe(dnettrace: Dnettrace, engine: Engine) -> None:
    """While c1 asks for an address that nobody has, the host asks for it too."""
    asking = ["ping", "c1", "172.17.0.77", "--arp", "-c", "1", "-W", "1.5", "--json"]
    engine.on_host("sh", "-c", "(sleep 1; ping -c 1 -W 1 172.17.0.77) >/dev/null 2>&1 &")
    output = read(dnettrace(*asking, netns=engine.host_netns, env=engine.env()), status=1)
    assert [j["source"] for j in output.of("request")] == ["c1"]
    assert all(j["packet"]["asking"] == "172.17.0.2" for j in output.of("request", None))
