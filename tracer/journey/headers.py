"""Packet headers from the bytes that an event carries."""

from __future__ import annotations

from functools import lru_cache
from ipaddress import IPv6Address
from socket import AF_INET, AF_INET6, inet_ntop

from tracer.model.frame import ARP, FRAGMENT, ICMP, ICMPV6, IPV4, IPV6, TCP, UDP
from tracer.model.journey import Packet

PROTOCOLS = {ICMP: "icmp", TCP: "tcp", UDP: "udp", ICMPV6: "icmpv6"}
ERRORS = {"icmp": (3, 11, 12), "icmpv6": (1, 2, 3, 4)}
ECHO_REQUEST = {"icmp": 8, "icmpv6": 128}
ECHO_REPLY = {"icmp": 0, "icmpv6": 129}
TCP_FLAGS = ((2, "SYN"), (1, "FIN"), (4, "RST"), (8, "PSH"), (16, "ACK"))
SOLICITATION, ADVERTISEMENT = 135, 136  # ICMPv6: IPv6's ARP
TARGET_MAC = b"\2\1"  # the option's type and length, RFC 4861 4.6.1; the first that is sent


def _v6(data: bytes) -> str:
    """As ipaddress writes it: inet_ntop writes IPv4 addresses in it with dots."""
    text = inet_ntop(AF_INET6, data)
    return str(IPv6Address(data)) if "." in text else text


def _u16(data: bytes, at: int) -> int | None:
    return int.from_bytes(data[at:at + 2], "big") if len(data) >= at + 2 else None


@lru_cache(4096)  # a packet is looked at in many places, and mostly it looks the same
def decode(protocol: int, data: bytes, length: int | None = None) -> Packet:
    """`data` from the network header on, `protocol` its EtherType. Short data leaves fields None.

    `length`: bytes of the frame behind its Ethernet header, for what has no length of its own.
    """
    if protocol == ARP and len(data) >= 28:
        sender, target = inet_ntop(AF_INET, data[14:18]), inet_ntop(AF_INET, data[24:28])
        asked, asking = (target, sender) if _u16(data, 6) == 1 else (sender, target)
        return Packet(0, "arp", sender, target, length or 28, arp_op=_u16(data, 6), asked=asked, asking=asking,
                      told=mac(data[8:14]) if _u16(data, 6) == 2 else None)
    if protocol == IPV4 and len(data) >= 20:
        return _transport(4, data[9], inet_ntop(AF_INET, data[12:16]), inet_ntop(AF_INET, data[16:20]),
                          _u16(data, 2) or 0, data[8], data, (data[0] & 15) * 4)
    if protocol == IPV6 and len(data) >= 40:
        number, header = data[6], 40
        if number == FRAGMENT and len(data) >= 48 and not (_u16(data, 42) or 0) & 0xFFF8:
            number, header = data[40], 48  # the first fragment has the transport's header
        return _transport(6, number, _v6(data[8:24]), _v6(data[24:40]),
                          (_u16(data, 4) or 0) + 40, data[7], data, header)
    return Packet(0, f"ethertype 0x{protocol:04x}", "", "", length or len(data))


def _transport(family: int, number: int, src: str, dst: str, length: int, ttl: int, data: bytes, header: int) -> Packet:
    """`header`: bytes of `data` in front of the transport's header."""
    proto, data = PROTOCOLS.get(number, str(number)), data[header:]
    if proto in ("tcp", "udp"):
        flags = own = None
        if proto == "tcp" and len(data) > 13:
            flags, own = " ".join(name for bit, name in TCP_FLAGS if data[13] & bit), (data[12] >> 4) * 4
        elif proto == "udp":
            own = 8
        return Packet(family, proto, src, dst, length, sport=_u16(data, 0), dport=_u16(data, 2), ttl=ttl, tcp_flags=flags,
                      payload=None if own is None else max(0, length - header - own),
                      tcp_seq=int.from_bytes(data[4:8], "big") if proto == "tcp" and len(data) >= 8 else None)
    if proto not in ERRORS or len(data) < 4:
        return Packet(family, proto, src, dst, length, ttl=ttl)
    kind = data[0]
    quoted = decode(IPV4 if family == 4 else IPV6, data[8:]) if kind in ERRORS[proto] else None
    if proto == "icmpv6" and kind in (SOLICITATION, ADVERTISEMENT) and len(data) >= 24:
        return Packet(family, proto, src, dst, length, ttl=ttl, icmp_type=kind, icmp_code=data[1],
                      asked=_v6(data[8:24]), asking=src if kind == SOLICITATION else dst,
                      told=mac(data[26:32]) if kind == ADVERTISEMENT and data[24:26] == TARGET_MAC else None)
    echo = kind in (ECHO_REQUEST[proto], ECHO_REPLY[proto])
    return Packet(family, proto, src, dst, length, ttl=ttl, icmp_type=kind, icmp_code=data[1], quoted=quoted,
                  icmp_id=_u16(data, 4) if echo else None, icmp_seq=_u16(data, 6) if echo else None)


def is_question(packet: Packet) -> bool:
    """Does it ask for a MAC address, or tell one?"""
    return packet.arp_op == 1 or packet.icmp_type == SOLICITATION


def mac(data: bytes) -> str:
    return data.hex(":")
