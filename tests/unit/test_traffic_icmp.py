"""Which of the messages that reach a raw ICMP socket count, and for which probe."""

from __future__ import annotations

from ipaddress import ip_address

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP, ICMPerror, IPerror
from scapy.layers.inet6 import (
    ICMPv6DestUnreach,
    ICMPv6EchoReply,
    ICMPv6EchoRequest,
    ICMPv6TimeExceeded,
    IPv6,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
)

from tracer.traffic.icmp import Error, Message, parse, parse_error, without_ip_header

HERE, THERE = "172.17.0.2", "172.17.0.3"
HERE6, THERE6 = "2001:db8::2", "2001:db8::3"


def test_an_echo_reply_is_read_below_its_ip_header_with_options() -> None:
    packet = bytes(IP(src=THERE, dst=HERE, ttl=63, options=b"\x01\x01\x01\x00") / ICMP(type=0, id=7, seq=9) / b"dnet")
    ttl, message = without_ip_header(packet)
    assert ttl == 63
    assert parse(message, 4) == Message(0, 0, 7, 9, None)


def test_an_error_is_about_the_request_that_it_quotes() -> None:
    quoted = IPerror(src=HERE, dst=THERE, proto=1) / ICMPerror(type=8, id=7, seq=9)
    message = bytes(ICMP(type=3, code=1) / quoted)
    assert parse(message, 4) == Message(3, 1, 7, 9, ip_address(THERE).packed)


@pytest.mark.parametrize("message", [
    b"", b"\0", b"\0" * 7,
    bytes(ICMP(type=8, id=7, seq=9)),
    bytes(ICMP(type=5) / IPerror(proto=1) / ICMPerror(type=8, id=7, seq=9)),
    bytes(ICMP(type=3) / IPerror(src=HERE, dst=THERE) / TCP()),
    bytes(ICMP(type=3) / IPerror(proto=1, frag=3) / ICMPerror(type=8, id=7, seq=9)),
    bytes(ICMP(type=3) / IPerror(proto=1) / ICMPerror(type=0, id=7, seq=9)),
    bytes(ICMP(type=3) / bytes(IP(src=HERE, dst=THERE, proto=1))),
    bytes(ICMP(type=0, id=7, seq=9, chksum=1)),
], ids=["empty", "one byte", "short", "a request", "a redirect", "about TCP", "about a later fragment", "about a reply",
        "quotes too little", "broken checksum"])
def test_everything_else_is_left_out(message: bytes) -> None:
    assert parse(message, 4) is None


def test_an_icmpv6_error_is_read_through_extension_headers() -> None:
    request = IPv6(src=HERE6, dst=THERE6) / IPv6ExtHdrHopByHop() / IPv6ExtHdrFragment(m=1) / ICMPv6EchoRequest(id=7, seq=9)
    message = bytes(IPv6() / ICMPv6TimeExceeded() / bytes(request))[40:]
    assert parse(message, 6) == Message(3, 0, 7, 9, ip_address(THERE6).packed)
    later = IPv6(src=HERE6, dst=THERE6) / IPv6ExtHdrFragment(offset=8) / ICMPv6EchoRequest(id=7, seq=9)
    assert parse(bytes(IPv6() / ICMPv6TimeExceeded() / bytes(later))[40:], 6) is None


def test_an_icmpv6_reply_is_read() -> None:
    assert parse(bytes(IPv6() / ICMPv6EchoReply(id=7, seq=0xFFFF))[40:], 6) == Message(129, 0, 7, 0xFFFF, None)


def test_an_error_quotes_the_head_of_any_packet_with_ip_options() -> None:
    probe = IP(src=HERE, dst=THERE, options=b"\x01\x01\x01\x00") / TCP(sport=33000, dport=80, seq=5)
    message = bytes(ICMP(type=3, code=3) / bytes(probe))
    assert parse_error(message, 4) == Error(3, 3, 6, ip_address(THERE).packed, bytes(probe)[24:])
    assert parse(message, 4) is None


def test_an_icmpv6_error_quotes_udp() -> None:
    probe = bytes(IPv6(src=HERE6, dst=THERE6) / IPv6ExtHdrHopByHop() / UDP(sport=33000, dport=80))
    message = bytes(IPv6() / ICMPv6DestUnreach(code=4) / probe)[40:]
    assert parse_error(message, 6) == Error(1, 4, 17, ip_address(THERE6).packed, probe[48:])


@pytest.mark.parametrize("message", [
    b"", b"\x03", bytes(ICMP(type=3, chksum=1) / IP(dst=THERE) / TCP()), bytes(ICMP(type=3) / b"\x45"),
    bytes(ICMP(type=3) / IP(dst=THERE, frag=3) / TCP()), bytes(ICMP(type=8) / IP(dst=THERE) / TCP()),
], ids=["empty", "one byte", "broken checksum", "quotes too little", "about a later fragment", "no error"])
def test_what_is_no_error_is_left_out(message: bytes) -> None:
    assert parse_error(message, 4) is None
