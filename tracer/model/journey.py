"""A packet's way as plain data: hops in order, and the end. Field names follow the JSON that is printed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import wraps
from typing import Any, NamedTuple, TypeVar, overload

WAYS = 256  # of which something that was made is kept
Made = TypeVar("Made")


class Stage(str, Enum):
    """What a place means to the packet."""

    EGRESS = "egress"
    INGRESS = "ingress"
    PREROUTING = "prerouting"
    INPUT = "input"
    FORWARD = "forward"
    OUTPUT = "output"
    POSTROUTING = "postrouting"
    L2_FORWARD = "l2_forward"
    L2_FLOOD = "l2_flood"
    L2_LOCAL = "l2_local"
    ROUTE = "route"
    NEIGHBOR = "neighbor"
    DELIVER = "deliver"
    DROP = "drop"


class Role(str, Enum):
    """Which of its two identities a bridge had at a hop."""

    SWITCH = "switch"
    NIC = "nic"


class Result(str, Enum):
    DELIVERED = "delivered"
    DROPPED = "dropped"
    LEFT = "left"
    RELAYED = "relayed"
    UNKNOWN = "unknown"


BRANCHES = ("copy", "part")  # kinds of journeys that are told with their parent


def endpoint(name: str, port: int | None) -> str:
    """"c2:80", "[fd00:17::3]:80"; without a port the name."""
    if port is None:
        return name
    return f"[{name}]:{port}" if ":" in name else f"{name}:{port}"


class Packet(NamedTuple):  # one is made for each journey, as hops are
    """Headers as first seen. Ports, ICMP and ARP fields are None where the protocol has none."""

    family: int  # 4, 6, or 0 for ARP
    proto: str  # "icmp", "icmpv6", "arp", "tcp", "udp", or the protocol's number
    src: str
    dst: str
    length: int  # of the IP packet, or of the frame without its Ethernet header; bytes
    sport: int | None = None
    dport: int | None = None
    tcp_flags: str | None = None  # "SYN", "SYN ACK", "RST", ...
    icmp_type: int | None = None
    icmp_code: int | None = None
    icmp_id: int | None = None
    icmp_seq: int | None = None
    arp_op: int | None = None  # 1 request, 2 reply
    asked: str | None = None  # the address whose MAC an ARP packet or a neighbour solicitation or advertisement is about
    asking: str | None = None  # who wants to know
    told: str | None = None  # the MAC that an ARP reply or a neighbour advertisement tells
    ttl: int | None = None  # or hop limit
    quoted: Packet | None = None  # the packet that an ICMP error is about
    payload: int | None = None  # bytes behind the header of TCP or UDP
    tcp_seq: int | None = None  # sequence number


@dataclass(frozen=True, slots=True)
class Table:
    """A table's base chain that the packet passed at a netfilter hook. Which of its rules matched is not known here."""

    family: str
    table: str
    chain: str
    priority: int
    legacy: bool = False  # of iptables-legacy


@dataclass(frozen=True, slots=True)
class Rule:
    """What one rule, or a chain's policy, did with the packet at a netfilter hook."""

    family: str  # "ip", "ip6", "inet", "bridge", "netdev"
    table: str
    chain: str
    rule: str | None  # as iptables-save or nft writes it: "-A FORWARD -o docker0 -j DROP"; None: a policy, or not known
    verdict: str  # "accept", "drop", "reject", "continue", "return", "queue", "jump CHAIN", "goto CHAIN"
    exact: bool = True  # False: concluded from counters
    policy: bool = False  # the chain's policy spoke, at its end
    legacy: bool = False  # of iptables-legacy
    handle: int | None = None  # nftables' own number of the rule
    owner: str | None = None  # whose rule it is: "Docker", "ufw", ...; None: nothing tells
    by: str = "trace"  # how it is known: "trace"; "counter": the counters of all others that may have decided stood still;
    # "candidate": one of several that may have decided


@dataclass(frozen=True, slots=True)
class Cause:
    """A named reason for a drop or a silence. Names are stable; sentences are not."""

    name: str  # "networks_isolated"
    sentence: str
    evidence: tuple[str, ...] = ()  # what was observed or read that supports it
    mend: str | None = None  # a command, or a sentence
    remark: bool = False  # about a packet that arrived: good to know, nothing to mend


@dataclass(frozen=True, slots=True)
class Rewrite:
    """Header fields that changed at this hop, each (before, after)."""

    src: tuple[str, str] | None = None
    dst: tuple[str, str] | None = None
    sport: tuple[int, int] | None = None
    dport: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class Direction:
    """One tuple of a conntrack entry. Ports are None for ICMP, `icmp_id` is for all others."""

    src: str
    dst: str
    sport: int | None = None
    dport: int | None = None
    icmp_id: int | None = None


@dataclass(frozen=True, slots=True)
class Entry:
    """A conntrack entry as it was at a hop: packets of its one direction carry `original`, of the other `reply`."""

    original: Direction
    reply: Direction


@dataclass(frozen=True, slots=True)
class RouteChoice:
    """A route lookup's outcome: table and next hop as the kernel's event has them, the row as netlink has it."""

    table: str  # "main", "local", or its number
    kind: str | None  # "unicast", "local", ...; None: the row was not read
    destination: str | None  # the row's prefix
    gateway: str | None
    device: str | None
    source: str | None  # the row's preferred source address
    rule: str | None = None  # the only policy rule that leads to a table other than the usual ones, as `ip rule` writes it
    losers: tuple[str, ...] = ()  # rows that match too, in the words of `ip route`, longest prefix first


class Hop(NamedTuple):  # many are made, and a data class takes four times as long
    t_ns: int  # since the journey's first hop
    netns: int
    node: str
    device: str | None
    ifindex: int | None
    stage: Stage
    role: Role | None = None
    bridge: str | None = None  # the bridge that this hop belongs to: as itself or by one of its ports
    tables: tuple[Table, ...] | None = ()  # passed at a netfilter hook; None: they could not be read
    stopped_at: tuple[Table, ...] = ()  # tables at the same hook that it was not seen to pass; one of them ended it
    rules: tuple[Rule, ...] = ()  # that the packet met here, in the order in which it met them
    rules_unknown: str | None = None  # why `rules` lacks what tables did here
    conntrack: str | None = None  # state as iptables names it: "NEW", "ESTABLISHED", "RELATED", ...
    entry: Entry | None = None  # the conntrack entry of a packet at a netfilter hook, as it was when the hook was passed
    rewrite: Rewrite | None = None
    route: RouteChoice | None = None
    detail: str = ""  # for a person
    timed: bool = True  # False: t_ns is the next hop's, this one's own time was not seen
    inferred: bool = False  # concluded from other observations; the detail says from which


class Hops(Sequence[Hop]):
    """Hops of a packet that others took the same way, made once somebody asks for them.

    `times`: their t_ns. `rest`: what else a Hop has; the same object for those whose hops differ in their times alone.
    """

    __slots__ = ("_hops", "rest", "times")

    def __init__(self, times: list[int], rest: tuple[tuple[Any, ...], ...]) -> None:
        self.times, self.rest = times, rest
        self._hops: tuple[Hop, ...] | None = None

    @property
    def all(self) -> tuple[Hop, ...]:
        if self._hops is None:
            self._hops = tuple(Hop(time, *rest) for time, rest in zip(self.times, self.rest, strict=True))
        return self._hops

    def __len__(self) -> int:
        return len(self.times)

    def __iter__(self) -> Iterator[Hop]:
        return iter(self.all)

    @overload
    def __getitem__(self, at: int) -> Hop: ...

    @overload
    def __getitem__(self, at: slice) -> tuple[Hop, ...]: ...

    def __getitem__(self, at: int | slice) -> Hop | tuple[Hop, ...]:
        return self.all[at]

    def __eq__(self, other: object) -> bool:
        return self.all == (other.all if isinstance(other, Hops) else other)

    def __hash__(self) -> int:
        return hash(self.all)

    def __repr__(self) -> str:
        return repr(self.all)


def of_way(make: Callable[[Sequence[Hop]], Made]) -> Callable[[Sequence[Hop]], Made]:
    """What depends on all of some hops but their times is made once for those who took the same way."""
    known: dict[int, tuple[object, Made]] = {}  # by the identity of Hops.rest, which is kept

    @wraps(make)
    def made(hops: Sequence[Hop]) -> Made:
        if not isinstance(hops, Hops):
            return make(hops)
        rest = hops.rest
        found = known.get(id(rest))
        if found is None:
            if len(known) >= WAYS:
                known.clear()
            found = known[id(rest)] = rest, make(hops)
        return found[1]

    return made


class End(NamedTuple):
    result: Result
    node: str | None = None
    device: str | None = None
    stage: Stage | None = None
    reason: str | None = None  # the kernel's name of the drop reason, without SKB_DROP_REASON_
    detail: str = ""  # for a person: what was seen, or why nothing can be said
    inferred: bool = False  # concluded from other observations; the detail says from which
    rule: Rule | None = None  # that ended it
    causes: tuple[Cause, ...] = ()  # the likeliest first, three at most
    function: str | None = None  # of the kernel, in which the packet was freed
    t_ns: int | None = None  # when, since the journey's first hop; None: it was not seen to end


@dataclass(frozen=True, slots=True)
class Journey:
    id: int  # counts from 1 in the order of first sight
    packet: Packet
    hops: Sequence[Hop]
    end: End
    kind: str  # "request", "reply", "error" (an ICMP error about the probe), "ack" and "close" (what else belongs to a
    # TCP connection), "relay" and "relay_reply" (a userland proxy's own request for it, and the answer), "arp" (or
    # neighbour discovery), "copy" (of another), "part" (a segment that a large packet was cut into, behind the
    # first), "other"
    seq: int | None = None  # the probe that it belongs to
    source: str | None = None  # node that sent it
    target: str | None = None  # node that has the destination address; None where nobody known has it
    parent: int | None = None  # the journey that this one is a copy of, or that caused it
    wall_ns: int = 0  # time of the first hop, ns since the epoch
    lost_events: int = 0  # events that the ring buffer refused while this journey ran
    complete: bool = True  # False: a hop may be missing
    problem: str | None = None  # of a TCP connection, that this packet shows: "reset", "retransmission"
    frame: bytes = b""  # the packet at first sight, from its Ethernet header on, as far as it was captured

    @property
    def duration_ns(self) -> int:
        """From the first hop to the end, or to where it was last seen."""
        if self.end.t_ns is not None:
            return self.end.t_ns
        return self.hops[-1].t_ns if self.hops else 0
