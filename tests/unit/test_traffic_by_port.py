"""What TCP and UDP probes look like, and which packets answer them: without a network, the sockets being ours."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Any

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6DestUnreach, IPv6

from tracer.traffic import by_port
from tracer.traffic.answer import Answer
from tracer.traffic.by_port import PortProber
from tracer.traffic.sockets import Packet
from tracer.traffic.tcp import SynProber
from tracer.traffic.udp import UdpProber

BASE, SEQ = 40960, 70  # the probe's port is BASE + 6
HERE = {4: ip_address("172.17.0.2"), 6: ip_address("fd00:17::2")}
THERE = {4: ip_address("172.17.0.3"), 6: ip_address("fd00:17::3")}
ROUTER = ip_address("172.17.0.1")


class Wire:
    """Takes what is sent; `arriving` and `errors` are what the next receive() reads."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sent: list[bytes] = []
        self.arriving: list[Packet] = []
        self.errors: list[Packet] = []
        monkeypatch.setattr(by_port, "in_namespace", lambda path, function: function())
        monkeypatch.setattr(by_port, "packets", lambda which, version, buffer: which)
        monkeypatch.setattr(PortProber, "_open", lambda prober, stack, ttl: self.open(prober))

    def open(self, prober: Any) -> None:
        prober._target, prober._reserved = None, [self] * 64

    def prober(self, kind: type[PortProber], version: int = 4, port: int = 80) -> Any:
        asking: Any = kind("-", THERE[version], port, HERE[version], BASE)
        asking._socket, asking._icmp = self, self.errors
        return asking

    def sendto(self, message: bytes, target: object) -> None:
        self.sent.append(message)

    def recv(self, size: int) -> bytes:
        raise BlockingIOError

    def __iter__(self) -> Any:
        return iter(self.arriving)


@pytest.fixture
def wire(monkeypatch: pytest.MonkeyPatch) -> Wire:
    return Wire(monkeypatch)


def packet(data: Any, source: Any = THERE[4]) -> Packet:
    return Packet(bytes(data), source, 64, 1)


def error(quoted: bytes, source: Any = THERE[4], code: int = 3, dst: Any = THERE[4], proto: int = 6) -> Packet:
    return packet(ICMP(type=3, code=code) / bytes(IP(src=str(HERE[4]), dst=str(dst), proto=proto) / quoted), source)


def test_a_syn_has_the_checksum_that_its_addresses_ask_for(wire: Wire) -> None:
    asking = wire.prober(SynProber)
    asking.send(SEQ)
    asking.send(SEQ)
    syn, again = TCP(wire.sent[0]), TCP(wire.sent[1])
    assert (syn.sport, syn.dport, syn.flags, syn.options) == (BASE + 6, 80, "S", [("MSS", 1460)])
    assert syn.seq != again.seq
    right = IP(src=str(HERE[4]), dst=str(THERE[4])) / TCP(wire.sent[0])
    del right[TCP].chksum
    assert bytes(right)[20:] == wire.sent[0]


def test_for_ipv6_the_checksum_is_left_to_the_kernel(wire: Wire) -> None:
    wire.prober(SynProber, 6).send(SEQ)
    wire.prober(UdpProber, 6).send(SEQ)
    assert TCP(wire.sent[0]).chksum == UDP(wire.sent[1]).chksum == 0


def test_an_error_is_about_the_probe_that_it_quotes(wire: Wire) -> None:
    asking = wire.prober(SynProber)
    asking.send(SEQ - 64)
    asking.send(SEQ)
    earlier, sent = wire.sent
    wire.errors[:] = [error(sent[:8], ROUTER)]
    assert asking.receive() == [Answer(SEQ, "error", ROUTER, 64, 36, 1, 3, 3, "unreachable")]
    wire.errors[:] = [
        error(earlier),  # its port has another probe by now
        error(sent, dst=ROUTER),  # somebody else's to another host
        error(sent[:2] + b"\0\1" + sent[4:]),  # to another port
        error(b"\xff\xff" + sent[2:]),  # from another port
        error(sent[:4]),
        error(sent, proto=17),
    ]
    assert asking.receive() == []


@pytest.mark.parametrize(("source", "code", "state"), [(THERE[4], 3, "refused"), (ROUTER, 3, "unreachable"),
                                                       (THERE[4], 1, "unreachable")])
def test_only_the_destination_can_refuse_a_datagram(wire: Wire, source: Any, code: int, state: str) -> None:
    asking = wire.prober(UdpProber)
    asking.send(SEQ)
    wire.errors[:] = [error(wire.sent[0], source, code, proto=17)]
    assert [(answer.kind, answer.state) for answer in asking.receive()] == [("error", state)]


def test_port_unreachable_is_another_code_in_ipv6(wire: Wire) -> None:
    asking = wire.prober(UdpProber, 6)
    asking.send(SEQ)
    quoted = bytes(IPv6(src=str(HERE[6]), dst=str(THERE[6]), nh=17) / wire.sent[0])
    wire.errors[:] = [packet(bytes(IPv6() / ICMPv6DestUnreach(code=code) / quoted)[40:], THERE[6]) for code in (3, 4)]
    assert [answer.state for answer in asking.receive()] == ["unreachable", "refused"]


@pytest.mark.parametrize(("sport", "dport", "source", "states"), [
    (80, BASE + 6, THERE[4], ["answered"]), (81, BASE + 6, THERE[4], ["astray"]), (80, BASE + 6, ROUTER, ["astray"]),
    (80, BASE + 7, THERE[4], []), (80, BASE + 64, THERE[4], []), (BASE + 6, 80, HERE[4], []),
])
def test_a_datagram_is_known_by_its_ports(wire: Wire, sport: int, dport: int, source: Any, states: list[str]) -> None:
    asking = wire.prober(UdpProber)
    asking.send(SEQ)
    wire.arriving[:] = [packet(UDP(sport=sport, dport=dport, chksum=0) / b"pong", source), packet(b"short")]
    assert [answer.state for answer in asking.receive()] == states


def test_to_a_name_server_goes_a_query_and_to_others_a_pattern(wire: Wire) -> None:
    wire.prober(UdpProber, port=53).send(SEQ)
    wire.prober(UdpProber).send(SEQ)
    assert wire.sent[0][8 + 2:] == b"\1\0\0\1\0\0\0\0\0\0" b"\0\0\2\0\1"  # RD, one question: the root, NS, IN
    assert wire.sent[1][8:] == (b"dnettrace" * 7)[:56]
