"""What the kernel lets through to a raw socket, by the kernel's own interpreter: on a pair of Unix sockets."""

from __future__ import annotations

import socket

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6DestUnreach, ICMPv6EchoReply, ICMPv6EchoRequest, IPv6, IPv6ExtHdrHopByHop
from scapy.layers.l2 import ARP, Ether

from tracer.traffic import filters
from tracer.traffic.sockets import attach_filter

BASE = 40960
OPTIONS = b"\x01\x01\x01\x00"


def passes(program: bytes, packet: bytes) -> bool:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with ours, theirs:
        attach_filter(ours, program)
        ours.setblocking(False)
        theirs.send(packet)
        try:
            assert ours.recv(65535) == packet  # whole
        except BlockingIOError:
            return False
        return True


@pytest.mark.parametrize("options", [b"", OPTIONS], ids=["plain", "options"])
@pytest.mark.parametrize("layer", [TCP, UDP], ids=["tcp", "udp"])
@pytest.mark.parametrize(("sport", "dport", "wanted"), [
    (80, BASE, True), (80, BASE + 63, True), (BASE + 5, 80, True), (80, BASE - 1, False), (80, BASE + 64, False),
    (BASE + 64, BASE - 1, False),
])
def test_ports_of_the_block(layer: type, options: bytes, sport: int, dport: int, wanted: bool) -> None:
    segment = layer(sport=sport, dport=dport)
    assert passes(filters.ports(4, BASE), bytes(IP(dst="10.0.0.1", options=options) / segment / (b"x" * 3000))) == wanted
    assert passes(filters.ports(6, BASE), bytes(IPv6(dst="::1") / segment)[40:]) == wanted


@pytest.mark.parametrize("options", [b"", OPTIONS], ids=["plain", "options"])
@pytest.mark.parametrize(("layer", "sport", "wanted"), [
    (TCP, BASE, True), (TCP, BASE + 63, True), (TCP, BASE + 64, False), (UDP, BASE, False),
])
def test_errors_about_our_probes(options: bytes, layer: type, sport: int, wanted: bool) -> None:
    quoted = bytes(IP(dst="10.0.0.1", options=options) / layer(sport=sport, dport=BASE if not wanted else 80))
    assert passes(filters.errors(4, 6, BASE), bytes(IP(dst="10.0.0.2", options=OPTIONS) / ICMP(type=3) / quoted)) == wanted
    quoted = bytes(IPv6(dst="::1") / layer(sport=sport, dport=80))
    assert passes(filters.errors(6, 6, BASE), bytes(IPv6(dst="::1") / ICMPv6DestUnreach() / quoted)[40:]) == wanted


@pytest.mark.parametrize("options", [b"", OPTIONS], ids=["plain", "options"])
def test_echo_replies_with_our_identifier_and_all_errors(options: bytes) -> None:
    for ident, wanted in ((7, True), (8, False)):
        reply = bytes(IP(dst="10.0.0.1", options=options) / ICMP(type=0, id=ident, seq=1) / (b"x" * 56))
        assert passes(filters.echo(4, 7), reply) == wanted
        assert passes(filters.echo(6, 7), bytes(IPv6(dst="::1") / ICMPv6EchoReply(id=ident, seq=1))[40:]) == wanted
    assert passes(filters.echo(4, 7), bytes(IP(dst="10.0.0.1", options=options) / ICMP(type=3) / IP(dst="10.0.0.2")))
    assert passes(filters.echo(6, 7), bytes(IPv6(dst="::1") / ICMPv6DestUnreach() / IPv6(dst="::1"))[40:])


def test_errors_about_others() -> None:
    ping = bytes(IPv6(dst="::1") / ICMPv6EchoRequest(id=BASE))
    assert not passes(filters.errors(6, 17, BASE), bytes(IPv6(dst="::1") / ICMPv6DestUnreach() / ping)[40:])
    extended = bytes(IPv6(dst="::1") / IPv6ExtHdrHopByHop() / UDP(sport=BASE))
    assert passes(filters.errors(6, 17, BASE), bytes(IPv6(dst="::1") / ICMPv6DestUnreach() / extended)[40:])
    assert not passes(filters.errors(4, 17, BASE), bytes(IP(dst="10.0.0.1") / ICMP(type=3)) + b"\x45")


def test_arp_replies_of_the_neighbour() -> None:
    def reply(**changed: str) -> bytes:
        return bytes(Ether(dst="02:00:00:00:00:01", src="02:00:00:00:00:02") / ARP(
            **{"op": 2, "hwsrc": "02:00:00:00:00:02", "psrc": "10.0.0.2", "pdst": "10.0.0.1"} | changed))

    program = filters.arp_replies(bytes([10, 0, 0, 2]))
    assert passes(program, reply())
    assert not passes(program, reply(op=1))
    assert not passes(program, reply(psrc="10.0.0.3"))
    assert not passes(program, reply()[:20])
