"""Whose MAC an ARP reply or a neighbour advertisement holds."""

from __future__ import annotations

from ipaddress import ip_address

import pytest
from scapy.layers.inet6 import ICMPv6ND_NA, ICMPv6NDOptDstLLAddr, ICMPv6NDOptMTU, IPv6
from scapy.layers.l2 import ARP, Ether

from tracer.traffic.arp import mac_in_advertisement, mac_in_arp

HERE, THERE, THERE6 = ip_address("172.17.0.2"), ip_address("172.17.0.3"), ip_address("fd00:17::3")
MAC = "02:42:ac:11:00:03"


def arp(**changed: str | int) -> bytes:
    fields = {"op": 2, "hwsrc": MAC, "psrc": str(THERE), "hwdst": "02:42:ac:11:00:02", "pdst": str(HERE)} | changed
    return bytes(Ether(src=MAC, dst="02:42:ac:11:00:02") / ARP(**fields))


def test_a_reply_holds_the_mac_even_if_padded() -> None:
    assert mac_in_arp(arp(), THERE, HERE) == mac_in_arp(arp() + b"\0" * 18, THERE, HERE) == MAC


@pytest.mark.parametrize("frame", [b"", arp()[:-1], arp(op=1), arp(psrc="172.17.0.9"), arp(pdst="172.17.0.9"), arp(ptype=1)],
                         ids=["empty", "short", "a request", "of another", "to another", "not of IPv4"])
def test_every_other_frame_is_left_out(frame: bytes) -> None:
    assert mac_in_arp(frame, THERE, HERE) is None


def advertisement(options: object, **changed: str | int) -> bytes:
    return bytes(IPv6() / ICMPv6ND_NA(**{"tgt": str(THERE6), "S": 1, "R": 0} | changed) / options)[40:]


def test_an_advertisement_holds_the_mac_among_its_options() -> None:
    option = ICMPv6NDOptDstLLAddr(lladdr=MAC)
    assert mac_in_advertisement(advertisement(ICMPv6NDOptMTU() / option), THERE6) == MAC
    assert mac_in_advertisement(advertisement(option), ip_address("fe80::3")) is None
    assert mac_in_advertisement(advertisement(option, S=0), THERE6) is None
    assert mac_in_advertisement(advertisement(option)[:-1], THERE6) is None
    assert mac_in_advertisement(advertisement(b""), THERE6) is None
    assert mac_in_advertisement(advertisement(b"\5\0\0\0\0\0\0\0"), THERE6) is None  # an option without a length
    assert mac_in_advertisement(b"", THERE6) is None
