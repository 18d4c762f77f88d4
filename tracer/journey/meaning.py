"""What a packet is to the run: a probe, its answer, an error about it, or what serves them."""

from __future__ import annotations

from dataclasses import dataclass

from tracer.journey.headers import ECHO_REPLY, ECHO_REQUEST, decode, is_question
from tracer.journey.tracks import Track
from tracer.model.journey import Packet
from tracer.model.selection import PORTS, Selection


@dataclass(frozen=True, slots=True)
class Meaning:
    """`key` is Selection.key of its probe; None where the packet does not tell."""

    kind: str  # Journey.kind
    key: int | None


def meaning(track: Track, selection: Selection) -> Meaning:
    packet = track.packet
    if packet.asked:
        probe = selection.transport == "arp" and (packet.asked, packet.asking) == (
            str(selection.destination), str(selection.sender))
        return Meaning("arp" if not probe else "request" if is_question(packet) else "reply", None)
    if packet.quoted:
        return Meaning("error", _key(track, selection))
    if packet.proto in ("tcp", "udp"):
        return _by_ports(track, selection)
    if packet.icmp_type == ECHO_REQUEST.get(packet.proto):
        return Meaning("request", packet.icmp_seq)
    if packet.icmp_type == ECHO_REPLY.get(packet.proto):
        return Meaning("reply", packet.icmp_seq)
    return Meaning("other", None)


def _by_ports(track: Track, selection: Selection) -> Meaning:
    packet, key, relay = track.packet, _key(track, selection), selection.relay
    forth, back = "request", "reply"
    if relay and key is None:
        forth, back = "relay", "relay_reply"
        from_us = (packet.dst, packet.dport) == (str(relay.address), relay.port)
    else:
        from_us = _offset(packet.sport, selection) is not None
    if packet.proto == "udp":
        return Meaning(forth if from_us else back, key)
    flags = (packet.tcp_flags or "").split()
    if from_us:
        return Meaning(forth if flags == ["SYN"] else "close" if {"RST", "FIN"} & set(flags) else "ack", key)
    return Meaning("close" if "FIN" in flags else back if {"SYN", "RST"} & set(flags) else "ack", key)


def _key(track: Track, selection: Selection) -> int | None:
    """Where NAT changes the source port, only the sender's side of the way shows the one that tells."""
    key = _in_packet(track.packet, selection)
    for event in track.events if key is None else ():
        key = _in_packet(decode(event.protocol, event.packet[:event.captured]), selection)
        if key is not None:
            break
    return key


def _in_packet(packet: Packet, selection: Selection) -> int | None:
    packet = packet.quoted or packet
    if packet.proto not in ("tcp", "udp"):
        return packet.icmp_seq
    offset = _offset(packet.sport, selection)
    return _offset(packet.dport, selection) if offset is None else offset


def _offset(port: int | None, selection: Selection) -> int | None:
    """The port's place among those of the run; None for one that is not of it."""
    return port - selection.token if port is not None and 0 <= port - selection.token < PORTS else None
