"""TCP, UDP and ARP probes in a lab under other names than the user's own, against real listeners and real rules."""

from __future__ import annotations

import errno
import os
import select
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from ipaddress import ip_address
from pathlib import Path

import pytest

from tracer.errors import UserError
from tracer.topology import lab as labs
from tracer.topology.netns import in_namespace
from tracer.traffic.answer import Answer, SendFailure
from tracer.traffic.arp import ArpProber
from tracer.traffic.by_port import PortProber
from tracer.traffic.ports import free_base_port
from tracer.traffic.prober import Prober
from tracer.traffic.tcp import SynProber
from tracer.traffic.udp import UdpProber

ADDRESS = {(node, int(version)): address.partition("/")[0]
           for node, (_, addresses, _) in labs.CONTAINERS.items() for version, address in zip("46", addresses, strict=True)}
ADDRESS |= {("outside", 4): "198.51.100.1", ("outside", 6): "2001:db8:1::1",
            ("host", 4): "198.51.100.2", ("host", 6): "2001:db8:1::2"}
GATEWAY = {4: "172.17.0.1", 6: "fd00:17::1"}
C2_MAC = labs.CONTAINERS["c2"][2]
TCP, UDP = socket.SOCK_STREAM, socket.SOCK_DGRAM
both = pytest.mark.parametrize("version", [4, 6], ids=["ipv4", "ipv6"])


@pytest.fixture(scope="module", autouse=True)
def lab() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(labs, "PREFIX", f"dnt{os.getpid()}-lab-")
        try:
            labs.up()
            yield
        finally:
            labs.down()


@contextmanager
def listening(node: str, port: int, kind: int = TCP) -> Iterator[socket.socket]:
    def listen() -> socket.socket:
        opened = socket.socket(socket.AF_INET6, kind)
        opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        opened.bind(("", port))
        if kind == TCP:
            opened.listen(128)
        opened.setblocking(False)
        return opened

    with in_namespace(labs.path(node), listen) as opened:
        yield opened


@contextmanager
def ruled(node: str, hook: str, rule: str) -> Iterator[None]:
    """One nftables rule for both IP versions, in a node of the lab."""
    def nft(line: str) -> None:
        in_namespace(labs.path(node), lambda: subprocess.run(["nft", line], check=True, capture_output=True))

    nft(f"table inet dnt {{ chain one {{ {hook} ; {rule} ; }} ; }}")
    try:
        yield
    finally:
        nft("delete table inet dnt")


INPUT, OUTPUT = ("type filter hook input priority 0", "type filter hook output priority 0")


def prober(kind: type[PortProber], source: str, destination: str, port: int, *, ttl: int | None = None) -> PortProber:
    address = ip_address(destination)
    path = labs.path(source)
    return kind(path, address, port, ip_address(ADDRESS[source, address.version]), free_base_port([path]), ttl=ttl)


def answers(asking: Prober, number: int, timeout: float = 5) -> list[Answer]:
    """At least so many answers, or what came until the time is up."""
    got: list[Answer] = []
    deadline = time.monotonic() + timeout
    while len(got) < number and (left := deadline - time.monotonic()) > 0:
        select.select([asking], [], [], left)
        got += asking.receive()
    return got


def ask(asking: Prober, seq: int = 1) -> Answer:
    """The one answer to one probe, which came after it was sent."""
    sent = asking.send(seq)
    assert isinstance(sent, int)
    (answer,) = answers(asking, 1)
    assert answer.seq == seq
    assert sent < answer.monotonic_ns < sent + 5_000_000_000
    return answer


def outline(answer: Answer) -> tuple[str, str, str, int | None, int | None, int | None]:
    return answer.kind, answer.state, str(answer.source), answer.ttl, answer.icmp_type, answer.icmp_code


def half_open(node: str, asking: PortProber) -> int:
    """The probes' connections in SYN_RECV, which a listener's kernel waits on (include/net/tcp_states.h: 3)."""
    def count() -> int:
        rows = [line.split() for name in ("tcp", "tcp6")
                for line in Path("/proc/thread-self/net", name).read_text().splitlines()[1:]]
        return sum(row[3] == "03" and 0 <= int(row[2].rpartition(":")[2], 16) - asking.base_port < 64 for row in rows)

    return in_namespace(labs.path(node), count)


# -- TCP ----------------------------------------------------------------------------------------------------------


@both
def test_an_open_port_answers_and_is_left_as_it_was(version: int) -> None:
    there = ADDRESS["c2", version]
    with listening("c2", 80) as listener, prober(SynProber, "c1", there, 80) as asking:
        assert outline(ask(asking)) == ("reply", "open", there, 64, None, None)
        end = time.monotonic() + 1
        while half_open("c2", asking) and time.monotonic() < end:  # the RST is on its way when the answer is here
            time.sleep(0.01)
        assert half_open("c2", asking) == 0
        with pytest.raises(BlockingIOError):
            listener.accept()
        # It is the kernel's RST that closes it: without one, it stays half open.
        with ruled("c1", OUTPUT, "tcp flags & rst == rst drop"):
            asking.send(2)
            assert answers(asking, 1)[0].state == "open"
            assert half_open("c2", asking) == 1


@both
def test_a_closed_port_refuses(version: int) -> None:
    there = ADDRESS["c2", version]
    with prober(SynProber, "c1", there, 81) as asking:
        assert outline(ask(asking)) == ("reply", "refused", there, 64, None, None)


@both
@pytest.mark.parametrize("kind", [SynProber, UdpProber], ids=["tcp", "udp"])
def test_a_dropped_probe_is_silent(version: int, kind: type[PortProber]) -> None:
    with ruled("c2", INPUT, "th dport 7777 drop"), prober(kind, "c1", ADDRESS["c2", version], 7777) as asking:
        assert isinstance(asking.send(1), int)
        assert answers(asking, 1, timeout=0.3) == []


@both
@pytest.mark.parametrize("kind", [SynProber, UdpProber], ids=["tcp", "udp"])
def test_an_icmp_error_is_told_with_its_sender(version: int, kind: type[PortProber]) -> None:
    there = ADDRESS["c2", version]
    prohibited = {4: (3, 13), 6: (1, 1)}[version]
    with ruled("c2", INPUT, "th dport 7778 reject with icmpx type admin-prohibited"), \
            prober(kind, "c1", there, 7778) as asking:
        assert outline(ask(asking)) == ("error", "unreachable", there, 64, *prohibited)
    expired = {4: (11, 0), 6: (3, 0)}[version]
    with prober(kind, "c1", ADDRESS["outside", version], 80, ttl=1) as asking:
        assert outline(ask(asking, 70)) == ("error", "unreachable", GATEWAY[version], 64, *expired)


@both
def test_a_published_port_answers_as_the_host(version: int) -> None:
    there = ADDRESS["host", version]
    with prober(SynProber, "outside", there, 8080) as asking:
        assert outline(ask(asking)) == ("reply", "refused", there, 63, None, None)
        with listening("c2", 80):
            assert outline(ask(asking, 2)) == ("reply", "open", there, 63, None, None)
            assert half_open("c2", asking) == 0


@both
def test_an_answer_past_the_translation_is_astray(version: int) -> None:
    """c2 is on the asker's own bridge and answers it directly: nobody translates its address back."""
    def plain_bridge() -> None:
        for tables in ("iptables", "ip6tables"):
            file = Path(f"/proc/sys/net/bridge/bridge-nf-call-{tables}")
            if file.exists():
                file.write_text("0")

    in_namespace(labs.path("host"), plain_bridge)
    there = ADDRESS["c2", version]
    rule = f"tcp dport 9090 dnat ip{'6' * (version == 6)} to {there if version == 4 else f'[{there}]'}:80"
    with listening("c2", 80), ruled("host", "type nat hook prerouting priority -101", rule), \
            prober(SynProber, "c1", GATEWAY[version], 9090) as asking:
        assert outline(ask(asking)) == ("reply", "astray", there, 64, None, None)


@both
def test_a_block_of_probes_in_flight_and_its_ports_again(version: int) -> None:
    with listening("c2", 80), prober(SynProber, "c1", ADDRESS["c2", version], 80) as asking:
        for first in (60, 124):  # the block's ports wrap within each
            sent = {seq: asking.send(seq) for seq in range(first, first + 64)}
            got = answers(asking, 64)
            assert sorted(answer.seq for answer in got) == list(sent)
            assert {answer.state for answer in got} == {"open"}
        assert half_open("c2", asking) == 0


def test_of_two_runs_each_gets_its_own_answers() -> None:
    with listening("c2", 80), prober(SynProber, "c1", ADDRESS["c2", 4], 80) as open_one, \
            prober(SynProber, "c1", ADDRESS["c2", 4], 81) as closed_one:
        open_one.send(1)
        closed_one.send(1)
        assert [answer.state for answer in answers(closed_one, 1)] == ["refused"]
        assert [answer.state for answer in answers(open_one, 2, timeout=0.3)] == ["open"]


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_a_namespace_asks_itself(address: str) -> None:
    with ExitStack() as stack:
        stack.enter_context(listening("c2", 80))
        source, base = ip_address(address), free_base_port([labs.path("c2")])
        asking = stack.enter_context(SynProber(labs.path("c2"), source, 80, source, base))
        assert outline(ask(asking)) == ("reply", "open", address, 64, None, None)


@both
def test_what_cannot_leave_says_why(version: int) -> None:
    nowhere = ip_address({4: "192.0.2.7", 6: "2001:db8:77::1"}[version])
    path = labs.path("outside")  # has no default route
    for kind in (SynProber, UdpProber):
        with kind(path, nowhere, 80, None, free_base_port([path])) as asking:
            failure = asking.send(1)
        assert isinstance(failure, SendFailure)
        assert failure.errno == errno.ENETUNREACH
    with ruled("c1", OUTPUT, "th dport 81 drop"), prober(SynProber, "c1", ADDRESS["c2", version], 81) as asking:
        failure = asking.send(1)
    assert isinstance(failure, SendFailure)
    assert failure.errno == errno.EPERM


def test_what_cannot_be_asked_is_told_in_a_sentence() -> None:
    path, there = labs.path("c1"), ip_address(ADDRESS["c2", 4])
    base = free_base_port([path])
    with pytest.raises(UserError, match="no port 65536"):
        SynProber(path, there, 65536, None, base)
    with pytest.raises(UserError, match="different IP versions"):
        SynProber(path, there, 80, ip_address("::1"), base)
    with pytest.raises(UserError, match=r"10\.9\.8\.7"):
        SynProber(path, there, 80, ip_address("10.9.8.7"), base)
    with pytest.raises(UserError, match="65508 bytes"):
        UdpProber(path, there, 80, None, base, size=65508)
    with SynProber(path, there, 80, None, base), pytest.raises(UserError, match="run it again"):
        SynProber(path, there, 80, None, base)


# -- UDP ----------------------------------------------------------------------------------------------------------


@both
def test_a_datagram_back_is_an_answer(version: int) -> None:
    there = ADDRESS["c2", version]
    with listening("c2", 5000, UDP) as server, prober(UdpProber, "c1", there, 5000) as asking:
        for seq in (1, 2, 64 + 1):  # two in flight, and a port again
            assert isinstance(asking.send(seq), int)
            select.select([server], [], [], 5)
            data, client = server.recvfrom(2048)
            assert data == (b"dnettrace" * 7)[:56]
            assert client[1] == asking.base_port + seq % 64
            server.sendto(b"pong", client)
        got = answers(asking, 3)
    assert [answer.length for answer in got] == [12, 12, 12]
    # The third took the port of the first, whose answer had not been read.
    assert [answer.seq for answer in got] == [65, 2, 65]
    assert {outline(answer) for answer in got} == {("reply", "answered", there, 64, None, None)}


@both
def test_a_flood_of_answers_overflows_no_socket(version: int) -> None:
    def dropped() -> set[str]:
        lines = [line.split() for name in ("udp", "udp6") for line in
                 Path("/proc/thread-self/net", name).read_text().splitlines()[1:]]
        return {line[-1] for line in lines}

    with listening("c2", 5000, UDP) as server, prober(UdpProber, "c1", ADDRESS["c2", version], 5000) as asking:
        asking.send(1)
        select.select([server], [], [], 5)
        _, client = server.recvfrom(2048)
        for _ in range(20):
            for _ in range(50):
                server.sendto(b"x" * 100, client)
            assert len(answers(asking, 50)) == 50
        assert in_namespace(labs.path("c1"), dropped) == {"0"}


@both
def test_nobody_at_the_port_is_said_by_the_destination(version: int) -> None:
    there = ADDRESS["c2", version]
    unreachable = {4: (3, 3), 6: (1, 4)}[version]
    with prober(UdpProber, "c1", there, 5001) as asking:
        assert outline(ask(asking)) == ("error", "refused", there, 64, *unreachable)
    with ruled("host", "type filter hook forward priority -1", "udp dport 5002 reject with icmpx type port-unreachable"), \
            prober(UdpProber, "c1", ADDRESS["outside", version], 5002) as asking:
        kind, state, source, *_ = outline(ask(asking))
        assert (kind, state) == ("error", "unreachable")
        assert source == GATEWAY[version]


@both
def test_a_name_server_is_asked_for_the_root(version: int) -> None:
    from scapy.layers.dns import DNS

    with listening("c2", 53, UDP) as server, prober(UdpProber, "c1", ADDRESS["c2", version], 53) as asking:
        asking.send(1)
        select.select([server], [], [], 5)
        query = DNS(server.recvfrom(2048)[0])
    assert (query.qr, query.rd, query.qd[0].qname, query.qd[0].qtype) == (0, 1, b".", 2)


# -- ARP, neighbour discovery -------------------------------------------------------------------------------------


def neighbour_prober(version: int, destination: str, device: str = "eth0") -> ArpProber:
    return ArpProber(labs.path("c1"), ip_address(destination), ip_address(ADDRESS["c1", version]), device)


@both
def test_a_neighbour_says_its_mac(version: int) -> None:
    there = ADDRESS["c2", version]
    with neighbour_prober(version, there) as asking:
        answer = ask(asking)
        assert (answer.kind, answer.state, str(answer.source), answer.mac) == ("reply", "answered", there, C2_MAC)
        assert answer.length == {4: 28, 6: 32}[version]
        asking.send(2)
        asking.send(3)
        assert {answer.seq for answer in answers(asking, 2)} == {2, 3}


@both
def test_nobody_has_the_address(version: int) -> None:
    with neighbour_prober(version, {4: "172.17.0.77", 6: "fd00:17::77"}[version]) as asking:
        assert isinstance(asking.send(1), int)
        assert answers(asking, 1, timeout=0.3) == []


def test_a_link_local_neighbour_is_asked_on_the_device() -> None:
    def own() -> str:
        lines = Path("/proc/thread-self/net/if_inet6").read_text().splitlines()
        return str(ip_address(bytes.fromhex(next(x.split()[0] for x in lines if x.startswith("fe80") and "eth0" in x))))

    here, there = (ip_address(in_namespace(labs.path(node), own)) for node in ("c1", "c2"))
    with ArpProber(labs.path("c1"), there, here, "eth0") as asking:
        assert ask(asking).mac == C2_MAC


@both
def test_a_device_that_cannot_ask_is_told_in_a_sentence(version: int) -> None:
    there = ADDRESS["c2", version]
    with pytest.raises(UserError, match="lo has no neighbours"):
        neighbour_prober(version, there, "lo")
    with pytest.raises(UserError, match="device gone cannot be used"):
        neighbour_prober(version, there, "gone")
    with pytest.raises(UserError, match="multicast"):
        neighbour_prober(version, {4: "224.0.0.1", 6: "ff02::1"}[version])
