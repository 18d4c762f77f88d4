"""Echo requests from one namespace to the next, through both kernels' own IP stacks."""

from __future__ import annotations

import errno
import os
import select
import subprocess
import time
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest

from tests.functional.engine import Engine
from tracer.errors import UserError
from tracer.traffic.answer import Answer, SendFailure
from tracer.traffic.echo import Pinger
from tracer.traffic.payload import MAX_PAYLOAD
from tracer.traffic.resolve import resolve

ID = 0x1234
NEAR, FAR = ip_address("10.9.8.1"), ip_address("10.9.8.2")
FAR6 = ip_address("2001:db8:9::2")


def sh(line: str) -> None:
    subprocess.run(line.split(), check=True, capture_output=True)


@pytest.fixture(scope="module")
def near() -> Iterator[str]:
    """Path of a namespace with 10.9.8.1 and 2001:db8:9::1; 10.9.8.2 and 2001:db8:9::2 are in the next one."""
    here, there = f"dnt{os.getpid()}-near", f"dnt{os.getpid()}-far"
    try:
        for name in (here, there):
            sh(f"ip netns add {name}")
            sh(f"ip -n {name} link set lo up")
        sh(f"ip -n {here} link add v0 type veth peer name v0 netns {there}")
        for name, last in ((here, 1), (there, 2)):
            sh(f"ip -n {name} address add 10.9.8.{last}/24 dev v0")
            sh(f"ip -n {name} address add 2001:db8:9::{last}/64 dev v0 nodad")
            sh(f"ip -n {name} link set v0 up")
        sh(f"ip -n {here} route add default via {FAR}")
        sh(f"ip -n {here} route add prohibit 10.1.0.0/16")
        sh(f"ip -n {here} route add blackhole 10.2.0.0/16")
        sh(f"ip -n {there} route add default via {NEAR}")
        sh(f"ip netns exec {there} sysctl -qw net.ipv4.ip_forward=1")
        yield f"/run/netns/{here}"
    finally:
        for name in (here, there):
            subprocess.run(["ip", "netns", "delete", name], check=False)


def answers(pinger: Pinger, number: int, timeout: float = 5) -> list[Answer]:
    """At least so many answers, or what came until the time is up."""
    got: list[Answer] = []
    deadline = time.monotonic() + timeout
    while len(got) < number and (left := deadline - time.monotonic()) > 0:
        select.select([pinger], [], [], left)
        got += pinger.receive()
    return got


@pytest.mark.parametrize("destination", [FAR, FAR6], ids=["ipv4", "ipv6"])
@pytest.mark.parametrize("size", [0, 56, 4000])
def test_many_in_flight_are_answered_across_the_wrap_of_seq(near: str, destination: IPv4Address | IPv6Address,
                                                             size: int) -> None:
    with Pinger(near, destination, ID, size=size, ttl=33) as pinger:
        sent = {seq: pinger.send(seq) for seq in range(65534, 65538)}
        got = answers(pinger, 4)
    assert sorted(answer.seq for answer in got) == list(sent)
    for answer in got:
        at = sent[answer.seq]
        assert (answer.kind, answer.source, answer.ttl, answer.length) == ("reply", destination, 64, size + 8)
        assert isinstance(at, int)
        assert at < answer.monotonic_ns < at + 3_000_000_000  # a device that has just come up loses its first lookup


@pytest.mark.parametrize("destination", [FAR, FAR6], ids=["ipv4", "ipv6"])
def test_the_largest_payload_is_sent_and_one_more_is_refused(near: str, destination: IPv4Address | IPv6Address) -> None:
    largest = MAX_PAYLOAD[destination.version]
    with Pinger(near, destination, ID, size=largest) as pinger:
        pinger.send(1)
        assert [answer.length for answer in answers(pinger, 1)] == [largest + 8]
    with pytest.raises(UserError, match=str(largest)):
        Pinger(near, destination, ID, size=largest + 1)


def test_an_expired_ttl_and_a_silent_neighbour_come_back_as_errors(near: str) -> None:
    beyond = ip_address("203.0.113.9")
    with Pinger(near, beyond, ID, ttl=1) as pinger:
        pinger.send(5)
        (answer,) = answers(pinger, 1)
    assert (answer.seq, answer.kind, answer.source, answer.icmp_type, answer.icmp_code) == (5, "error", FAR, 11, 0)
    with Pinger(near, ip_address("10.9.8.77"), ID) as pinger:
        pinger.send(6)
        (answer,) = answers(pinger, 1)
    assert (answer.seq, answer.kind, answer.source, answer.icmp_type, answer.icmp_code) == (6, "error", NEAR, 3, 1)


def test_answers_to_others_are_not_taken(near: str) -> None:
    with Pinger(near, FAR, ID) as mine, Pinger(near, FAR, ID + 1) as other, Pinger(near, NEAR, ID) as elsewhere:
        other.send(1)
        elsewhere.send(1)
        assert len(answers(other, 1)) == len(answers(elsewhere, 1)) == 1
        mine.send(1)
        assert len(answers(mine, 2, timeout=0.3)) == 1


@pytest.mark.parametrize(("destination", "number"), [
    ("10.1.0.1", errno.EACCES), ("10.2.0.1", errno.EINVAL), ("10.9.8.255", errno.EACCES),
    ("2001:db8:77::1", errno.ENETUNREACH),
])
def test_a_packet_that_cannot_leave_says_why(near: str, destination: str, number: int) -> None:
    with Pinger(near, ip_address(destination), ID) as pinger:
        failure = pinger.send(1)
    assert isinstance(failure, SendFailure)
    assert failure.errno == number
    assert failure.text


def test_a_rule_in_output_is_told(near: str) -> None:
    name = near.rpartition("/")[2]
    sh(f"ip netns exec {name} nft add table ip dnt")
    sh(f"ip netns exec {name} nft add chain ip dnt out {{ type filter hook output priority 0 ; policy drop ; }}")
    try:
        with Pinger(near, FAR, ID) as pinger:
            failure = pinger.send(1)
    finally:
        sh(f"ip netns exec {name} nft delete table ip dnt")
    assert isinstance(failure, SendFailure)
    assert failure.errno == errno.EPERM
    assert "OUTPUT" in failure.text


def test_the_source_can_be_chosen_among_those_that_are_there(near: str) -> None:
    with Pinger(near, NEAR, ID, source=ip_address("127.0.0.1")) as pinger:
        pinger.send(1)
        assert len(answers(pinger, 1)) == 1
    with pytest.raises(UserError, match=r"10\.9\.8\.99"):
        Pinger(near, FAR, ID, source=ip_address("10.9.8.99"))
    with pytest.raises(UserError, match="different IP versions"):
        Pinger(near, FAR, ID, source=FAR6)


def test_a_link_local_address_needs_its_zone(near: str) -> None:
    text = subprocess.run(["ip", "-n", near.replace("-near", "-far").rpartition("/")[2], "-6", "-o", "address", "show",
                           "dev", "v0", "scope", "link"], capture_output=True, text=True, check=True).stdout
    with Pinger(near, ip_address(f"{text.split()[3].partition('/')[0]}%v0"), ID) as pinger:
        pinger.send(1)
        assert [answer.kind for answer in answers(pinger, 1)] == ["reply"]


def test_a_container_resolves_its_own_name(engine: Engine) -> None:
    engine.run("named", "--hostname", "myself")  # other tests connect c1 to networks, which changes its files
    try:
        pid, own = engine.pid("named"), engine.docker("inspect", "-f", "{{.NetworkSettings.IPAddress}}", "named")
        assert resolve("myself", f"/proc/{pid}/ns/net", f"/proc/{pid}/root/etc", 4) == ip_address(own)
    finally:
        engine.remove("named")
