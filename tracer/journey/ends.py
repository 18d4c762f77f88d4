"""How a packet's life ended, from its last event."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import ip_address

from tracer.journey.headers import ECHO_REPLY, decode, is_question
from tracer.journey.reasons import UNSAID, name, place, words
from tracer.journey.stack import own_frames
from tracer.journey.tracks import device_name, is_taken
from tracer.model.journey import End, Hop, Result, Stage
from tracer.model.layout import Event, Place
from tracer.model.probes import HOOKS, Machine
from tracer.model.topology import Namespace, Topology

# A packet that is freed inside one of these has reached its protocol: function -> what took it.
RECEIVERS = {"icmp_rcv": "ICMP", "icmpv6_rcv": "ICMPv6", "arp_rcv": "ARP", "arp_process": "ARP",
             "ndisc_rcv": "neighbour discovery", "ndisc_recv_ns": "neighbour discovery",
             "ndisc_recv_na": "neighbour discovery", "raw_rcv": "a raw socket", "raw_recvmsg": "a raw socket",
             "rawv6_recvmsg": "a raw socket", "ping_recvmsg": "a ping socket",
             "packet_recvmsg": "a packet socket", "udp_recvmsg": "a UDP socket",
             "udpv6_recvmsg": "a UDP socket", "tcp_recvmsg": "a TCP socket", "udp_rcv": "UDP", "tcp_v4_rcv": "TCP",
             "tcp_v6_rcv": "TCP"}
# What keeps a packet until a program reads it: freed then, it was delivered when it was last seen.
KEEPERS = ("a raw socket", "a ping socket", "a packet socket", "a UDP socket", "a TCP socket")
# The machinery of freeing, which says nothing of the place.
FREEING = ("kfree_skb", "consume_skb", "sk_skb_reason_drop", "__kfree_skb", "kfree_skb_reason", "kfree_skb_list_reason")
TCP_RECEIVES = ("tcp_v4_rcv", "tcp_v6_rcv")
# the kernel's reason for an expired TTL says no more than "header"
TTL_EXPIRED = (("IP_INHDR", "ip_forward"), ("IP_INHDR", "ip6_forward"))


@dataclass(frozen=True, slots=True)
class Seen:
    """What else the run knows about this packet."""

    kind: str = "other"  # Journey.kind
    answered: bool | None = None  # the sender's socket got the answer; None for what nobody waits for
    replied: bool = False  # a reply to this very request was seen to start
    refused: bool = False  # an ICMP error about it was seen to start where it ended
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
    reason = None
    if last.place == Place.DROP:
        reason = name(last.reason, machine.reasons)
    # A reply ends in its protocol's receiver as "no socket" (older kernels say nothing) whenever a raw socket took a copy of
    # it, as ours does.
    # And a RST that closes a half-open connection has done its work where TCP takes it.
    taken = ((seen.answered and seen.kind == "reply") or seen.kind == "close") and \
        reason in ("NO_SOCKET", "TCP_RESET", *UNSAID)
    # Before it got reasons for drops (Linux 6.3 brought IPV6_NDISC_*), ICMPv6 freed all that it took as if that were one.
    taken = taken or (where == "icmpv6_rcv" and reason in UNSAID and not any(
        said.startswith("IPV6_NDISC_") for said in machine.reasons.values()))
    # A reply is made inside the request's delivery: that receiver is its own only after it was received here itself.
    # (macvlan receives without a tracepoint of its own: there the hooks tell.)
    arrived = any(e.netns == last.netns or not last.netns for e in events
                  if e.place == Place.RECEIVE or (e.place == Place.HOOK and HOOKS[e.hook] in ("prerouting", "input")))
    # Whether a raw socket took a copy of an echo reply, only its program knows.
    echoed = seen.answered is None and reason == "NO_SOCKET" and _is_echo_reply(last)
    if receiver and arrived and echoed:
        return End(Result.DELIVERED, node, device, Stage.DELIVER, t_ns=took, inferred=True,
                   detail=f"{receiver} echo reply; that a program took a copy is concluded, since one had asked")
    if arrived and where in TCP_RECEIVES and reason in UNSAID and _late(last) and "NO_SOCKET" in machine.reasons.values():
        # a TIME_WAIT socket frees what it takes as a drop without a reason (tcp_v4_rcv: do_time_wait); refusals have names
        return End(Result.DELIVERED, node, device, Stage.DELIVER, t_ns=took, inferred=True,
                   detail=f"{_delivered(last, 'TCP', seen)}: concluded, since what its side had closed already (TIME_WAIT) "
                          "takes it so")
    if receiver == "ARP" and hops and (mac := _for_another(last, topology)):  # arp_rcv() does not call that a drop
        return End(Result.DROPPED, node, device, stage, t_ns=took, function=where, inferred=True,
                   detail=f"passed over: concluded, since its frame is for {mac}, which is not {device}'s MAC")
    if receiver and arrived and (last.place == Place.CONSUME or taken):
        if receiver in KEEPERS and hops:
            took = hops[-1].t_ns
        return End(Result.DELIVERED, node, device, Stage.DELIVER, detail=_delivered(last, receiver, seen), t_ns=took)
    if where == "inet_frag_reasm_prepare" and (seen.answered or seen.replied):
        # what IPv6 fragments are put together to passes no hook on its way to its protocol
        return End(Result.DELIVERED, node, device, Stage.DELIVER, t_ns=took,
                   detail="put together from fragments; that it was taken is concluded from the answer", inferred=True)
    packet = decode(last.protocol, last.packet[:last.captured])
    what = f"TCP {packet.tcp_flags}" if packet.proto == "tcp" else "UDP"
    taken_at = next((e.time - begun for e in events if is_taken(e)), None)
    if packet.proto in ("tcp", "udp") and taken_at is not None and last.place != Place.DROP and hops:
        return End(Result.DELIVERED, hops[-1].node, hops[-1].device, Stage.DELIVER, t_ns=taken_at,
                   detail=f"{what} to port {packet.dport}: a socket took it")
    inside = stage is Stage.INPUT and not hops[-1].stopped_at
    if packet.proto == "udp" and stage is Stage.INPUT and seen.refused and not reason:  # as fragments it was freed before
        return End(Result.DROPPED, hops[-1].node, hops[-1].device, stage, t_ns=hops[-1].t_ns, inferred=True,
                   detail="refused: concluded from the ICMP error that was sent about it")
    if packet.proto == "udp" and stage is Stage.INPUT and (last.place == Place.CONSUME or seen.replied or seen.answered):
        # a socket keeps its datagram until it is read, and the reader lets the CPU free it that received it
        return End(Result.DELIVERED, hops[-1].node, hops[-1].device, Stage.DELIVER, t_ns=hops[-1].t_ns, inferred=True,
                   detail="a UDP socket took it: concluded, since it was freed without a drop or answered")
    own = (seen.where and seen.where.has(packet.dst)) or ip_address(packet.dst or "::").is_loopback
    # freed with its socket: it was there, and nobody had read it
    unread = reason == "QUEUE_PURGE"
    if packet.proto in ("tcp", "udp") and inside and (last.place in (Place.HOOK, Place.CONSUME) or unread) and own:
        # TCP frees what a connection took by no function that tells, a socket of UDP what it holds when that is read; what
        # is refused, both free by one that tells
        if unread:
            return End(Result.DELIVERED, hops[-1].node, hops[-1].device, Stage.DELIVER, t_ns=hops[-1].t_ns,
                       detail=f"{what} to port {packet.dport}: in a socket, which was closed before it was read")
        return End(Result.DELIVERED, hops[-1].node, hops[-1].device, Stage.DELIVER, t_ns=hops[-1].t_ns, inferred=True,
                   detail=f"{what} to port {packet.dport}: taken by a socket, concluded since it passed INPUT and was not "
                          "dropped")
    if hops and reason == "NETFILTER_DROP" and stage is not Stage.L2_FORWARD:
        node, device = hops[-1].node, hops[-1].device  # the skb may have its next device already
    if reason:
        return End(Result.DROPPED, node, device, stage, reason, _dropped(reason, where, hops), t_ns=took, function=where)
    if hops and _is_uplink(topology, hops[-1]):
        said = f"by {device}; what is behind it cannot be seen from here"
        return End(Result.LEFT, node, device, Stage.EGRESS, detail=said, t_ns=took if last.place == Place.CONSUME else None)
    if last.place == Place.CONSUME:
        said = f"freed by {where or 'an unknown function'}() without being called a drop"
        return End(Result.UNKNOWN, node, device, stage, detail=said, t_ns=took, function=where)
    said = ""
    if stage is Stage.NEIGHBOR:
        said = "it was waiting for the next hop's MAC"
    elif last.place == Place.HOOK and stage is Stage.POSTROUTING:
        said = "no device had it yet: so the kernel holds a packet while it asks for the next hop's MAC"
    return End(Result.UNKNOWN, node, device, stage, detail=said)


def _for_another(event: Event, topology: Topology) -> str | None:
    """The MAC that its frame is for, where that is neither a group's nor the device's own."""
    link, mac = topology.link(event.netns, event.ifindex), event.ethernet[:6]
    name = mac.hex(":")
    return name if link and link.mac and link.mac != name and any(mac) and not mac[0] & 1 else None


def _is_echo_reply(event: Event) -> bool:
    packet = decode(event.protocol, event.packet[:event.captured])
    return packet.icmp_type is not None and packet.icmp_type == ECHO_REPLY.get(packet.proto)


def _late(event: Event) -> bool:
    """Is it a segment of a connection that exists, or did?"""
    flags = (decode(event.protocol, event.packet[:event.captured]).tcp_flags or "").split()
    return "ACK" in flags and "SYN" not in flags


def _delivered(event: Event, receiver: str, seen: Seen) -> str:
    packet = decode(event.protocol, event.packet[:event.captured])
    if packet.asked:
        receiver = "ARP" if packet.proto == "arp" else "neighbour discovery"
        if not is_question(packet):
            return f"{receiver}, answer taken in" + (f": {packet.asked} is at {packet.told}" if packet.told else "")
        return f"{receiver}, {packet.asked} {'is' if seen.where and seen.where.has(packet.asked) else 'is not'} its own"
    if packet.quoted:
        return f"{receiver} error, taken in"
    name = {"icmp": "ICMP echo", "icmpv6": "ICMPv6 echo"}.get(packet.proto, " ".join(filter(None, (
        receiver, packet.tcp_flags, f"to port {packet.dport}" if packet.dport else ""))))
    if seen.kind == "request":
        return f"{name}, {'answered' if seen.replied else 'no answer seen to start'}"
    if seen.kind == "close":
        return f"{name}, closes the connection"
    if seen.kind == "reply":
        name += " reply" if packet.icmp_type is not None else ""
        return f"{name}, {'received by the sender' if seen.answered else 'not received by the sender'}"
    return f"{name}, taken in"


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
    else:
        parts.append(words(reason, where))
    return ", ".join(filter(None, (*parts, place(where))))
