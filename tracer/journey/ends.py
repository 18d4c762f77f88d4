"""How a packet's life ended, from its last event."""

from __future__ import annotations

from dataclasses import dataclass

from tracer.journey.headers import ECHO_REPLY, ECHO_REQUEST, decode, is_question
from tracer.journey.stack import own_frames
from tracer.journey.tracks import device_name
from tracer.model.journey import End, Hop, Result, Stage
from tracer.model.layout import Event, Place
from tracer.model.probes import Machine
from tracer.model.topology import Namespace, Topology

# A packet that is freed inside one of these has reached its protocol: function -> what took it.
RECEIVERS = {"icmp_rcv": "ICMP", "icmpv6_rcv": "ICMPv6", "arp_rcv": "ARP", "arp_process": "ARP",
             "ndisc_rcv": "neighbour discovery", "ndisc_recv_ns": "neighbour discovery",
             "ndisc_recv_na": "neighbour discovery", "raw_rcv": "a raw socket", "udp_rcv": "UDP", "tcp_v4_rcv": "TCP",
             "tcp_v6_rcv": "TCP"}
# The machinery of freeing, which says nothing of the place.
FREEING = ("kfree_skb", "consume_skb", "sk_skb_reason_drop", "__kfree_skb", "kfree_skb_reason", "kfree_skb_list_reason")
# Words for the reasons that echo packets meet; each is a name of the kernel's enum skb_drop_reason.
REASONS = {
    "NETFILTER_DROP": "a firewall rule or a chain's policy said DROP",
    "NO_SOCKET": "no socket wanted it",
    "NEIGH_FAILED": "nobody answered for the next hop's address",
    "NEIGH_QUEUEFULL": "too many packets waited for the next hop's MAC address",
    "IP_INNOROUTES": "no route leads on from here",
    "IP_OUTNOROUTES": "no route leads on from here",
    "IP_INADDRERRORS": "it may not be forwarded from here, or its address has no place here",
    "IP_RPFILTER": "the reverse path filter expects its source on another device",
    "OTHERHOST": "it is addressed to another host's MAC",
    "IP_CSUM": "its IP checksum is wrong",
    "ICMP_CSUM": "its ICMP checksum is wrong",
    "PKT_TOO_BIG": "it is larger than the next device takes",
    "IP_INHDR": "its IP header is not valid",
    "SKB_CSUM": "its checksum is wrong",
    "UNHANDLED_PROTO": "the network layer has no handler for it",
    "TC_INGRESS": "a tc filter on the way in dropped it",
    "TC_EGRESS": "a tc filter on the way out dropped it",
    "QDISC_DROP": "the queue was full",
    "DEV_READY": "the device at the other end is not up",
}
# the kernel's reason for an expired TTL says no more than "header"
TTL_EXPIRED = (("IP_INHDR", "ip_forward"), ("IP_INHDR", "ip6_forward"))


@dataclass(frozen=True, slots=True)
class Seen:
    """What else the run knows about this packet."""

    answered: bool | None = None  # the sender's socket got the answer; None for what nobody waits for
    replied: bool = False  # a reply to this very request was seen to start
    where: Namespace | None = None  # where it ended


def conclude(events: list[Event], begun: int, hops: list[Hop], topology: Topology, machine: Machine, seen: Seen) -> End:
    """The end of the packet that these events, and the hops that were read from them, are of.

    `begun`: time of the first hop.
    """
    last = events[-1]
    took = last.time - begun
    node, device = (topology.node(last.netns) if last.netns else None), device_name(last) or None
    if hops and not node:  # the skb had lost its device
        node, device = hops[-1].node, hops[-1].device
    stage = hops[-1].stage if hops else None
    frames = own_frames(last.stack)
    receiver = next((RECEIVERS[frame] for frame in frames if frame in RECEIVERS), None)
    where = next((frame for frame in frames if not frame.startswith(FREEING)), None)
    reason = machine.reasons.get(last.reason, str(last.reason)) if last.place == Place.DROP else None
    # An echo reply ends in icmp_rcv as "no (ping) socket" whenever a raw socket took a copy of it, as ours does.
    taken = reason == "NO_SOCKET" and seen.answered
    if receiver and (last.place == Place.CONSUME or taken):
        return End(Result.DELIVERED, node, device, Stage.DELIVER, detail=_delivered(last, receiver, seen), t_ns=took)
    if reason:
        return End(Result.DROPPED, node, device, stage, reason, _dropped(reason, where, hops), took)
    if hops and _is_uplink(topology, hops[-1]):
        words = f"by {device}; what is behind it cannot be seen from here"
        return End(Result.LEFT, node, device, Stage.EGRESS, detail=words)
    if last.place == Place.CONSUME:
        words = f"freed by {where or 'an unknown function'}() without being called a drop"
        return End(Result.UNKNOWN, node, device, stage, detail=words, t_ns=took)
    return End(Result.UNKNOWN, node, device, stage, detail="not seen again")


def _delivered(event: Event, receiver: str, seen: Seen) -> str:
    packet = decode(event.protocol, event.packet[:event.captured])
    if packet.asked:
        receiver = "ARP" if packet.proto == "arp" else "neighbour discovery"
        if not is_question(packet):
            return f"{receiver}, answer taken in"
        return f"{receiver}, {packet.asked} {'is' if seen.where and seen.where.has(packet.asked) else 'is not'} its own"
    if packet.proto in ECHO_REQUEST and packet.icmp_type == ECHO_REQUEST[packet.proto]:
        return f"{receiver} echo, {'answered' if seen.replied else 'no answer seen to start'}"
    if packet.proto in ECHO_REPLY and packet.icmp_type == ECHO_REPLY[packet.proto]:
        return f"{receiver} echo reply, {'received by the sender' if seen.answered else 'not received by the sender'}"
    if packet.quoted:
        return f"{receiver} error, taken in"
    return receiver


def _is_uplink(topology: Topology, hop: Hop) -> bool:
    """Did the packet's last hop hand it to a device whose other end is not on this machine?"""
    link = topology.link(hop.netns, hop.ifindex or 0)
    return hop.stage is Stage.EGRESS and link is not None and not link.loopback and link.kind not in ("veth", "bridge")


def _dropped(reason: str, where: str | None, hops: list[Hop]) -> str:
    parts = []
    tables = hops[-1].stopped_at if hops and reason == "NETFILTER_DROP" else ()
    if tables:
        parts.append("by " + " or ".join(f"table {t.table}, chain {t.chain} or one that it calls" for t in tables))
    elif (reason, where) in TTL_EXPIRED:
        parts.append("its time to live ran out")
    elif reason in REASONS:
        parts.append(REASONS[reason])
    if where:
        parts.append(f"in {where}()")
    return ", ".join(parts)
