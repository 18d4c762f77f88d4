"""The frame that an event is of, and how much of it is headers."""

from __future__ import annotations

from tracer.model.layout import PACKET_BYTES, Event, Place

ETHERNET_BYTES = 14
IPV4, IPV6, ARP = 0x0800, 0x86DD, 0x0806
TCP, UDP, ICMP, ICMPV6, FRAGMENT = 6, 17, 1, 58, 44
ICMP_ERRORS = (3, 11, 12)  # they quote a packet
NO_ETHERNET = bytes(ETHERNET_BYTES)

Header = tuple[int, bytes]  # EtherType, network header and 8 bytes of the transport's


def frame(event: Event) -> bytes:
    """As far as it was captured. Where the kernel has no Ethernet header (yet), one with the EtherType alone."""
    ethernet = event.ethernet if event.ethernet != NO_ETHERNET else bytes(12) + event.protocol.to_bytes(2, "big")
    return ethernet + event.packet[:event.captured]


def cut(event: Event, snaplen: int | None = None) -> Event:
    """Without its payload, or with `snaplen` bytes of the frame."""
    if event.place == Place.ROUTE:  # has no packet
        return event
    size = header_bytes(event.protocol, event.packet) if snaplen is None else max(snaplen - ETHERNET_BYTES, 0)
    if size >= event.captured:
        return event
    return event._replace(captured=size, packet=event.packet[:size].ljust(PACKET_BYTES, b"\0"))


def transport(protocol: int, packet: bytes) -> tuple[int, int]:
    """Of an IP packet the transport protocol's number, and the offset of its header: behind an IPv6 fragment header too."""
    if protocol == IPV4:
        return packet[9], (packet[0] & 15) * 4
    return (packet[40], 48) if packet[6] == FRAGMENT else (packet[6], 40)


def header(event: Event) -> Header:
    """What trace messages show of a packet too."""
    protocol, data = event.protocol, event.packet[:event.captured]
    at = ((data[0] & 15) * 4 if data else 0) if protocol == IPV4 else 48 if len(data) > 6 and data[6] == FRAGMENT else 40
    return header_of(protocol, data, data[at:])


def header_of(protocol: int, network: bytes, transport: bytes) -> Header:
    if protocol == ARP:
        return protocol, network[:28]
    return protocol, network[:20 if protocol == IPV4 else 40] + transport[:8]


def header_bytes(protocol: int, packet: bytes) -> int:
    """Of PACKET_BYTES from the network header on, those that are headers: IP's, TCP's with its options, the first 8 bytes of
    others, and of an ICMP error the headers that it quotes. Neighbour discovery and ARP carry nothing of a user's."""
    if protocol not in (IPV4, IPV6):
        return PACKET_BYTES
    number, at = transport(protocol, packet)
    behind = packet[7] or packet[6] & 0x1F if protocol == IPV4 else at == 48 and (packet[43] & 0xF8 or packet[42])
    if behind:  # a fragment behind the first
        return at
    rest = packet[at:]
    if number == TCP and len(rest) > 12:
        return at + max(rest[12] >> 4, 5) * 4
    if number == ICMP and rest[:1] and rest[0] in ICMP_ERRORS:
        return at + 8 + (rest[8] & 15) * 4 + 8 if len(rest) > 8 else at + 8
    if number == ICMPV6 and rest[:1] and (rest[0] < 128 or 133 <= rest[0] <= 137):
        return at + 8 + 40 + 8
    return at + 8
