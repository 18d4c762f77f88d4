"""What a trace must say of the machine it was taken on, so that its events can be read elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from tracer.model.journey import Table
from tracer.model.layout import Event

SUBSYSTEM_SHIFT = 16  # SKB_DROP_REASON_SUBSYS_SHIFT: where the number of a drop reason's subsystem begins
HOOKS = ("prerouting", "input", "forward", "output", "postrouting")  # enum nf_inet_hooks


@dataclass(frozen=True, slots=True)
class HookPoint:
    """One netfilter link. An event of it says that the packet has passed everything up to `priority`."""

    netns: int
    hook: str
    slot: int  # counted from the first link at this hook
    priority: int
    tables: tuple[Table, ...] | None  # that lie between the link before and this one; None: they could not be read
    conntrack: bool  # connection tracking's place lies there too


@dataclass(frozen=True, slots=True)
class Missing:
    """A probe that could not be had, and the kernel's reason."""

    name: str
    why: str


@dataclass(frozen=True, slots=True)
class Machine:
    release: str  # uname -r
    clock_offset_ns: int  # wall clock minus CLOCK_MONOTONIC
    reasons: Mapping[int, str]  # enum skb_drop_reason, without its prefix; subsystems by their shifted numbers
    attached: tuple[str, ...] = ()
    missing: tuple[Missing, ...] = ()
    hook_points: Mapping[tuple[int, str, int], HookPoint] = field(default_factory=dict)  # by (netns, hook, slot)
    untraced: Mapping[int, str] | None = None  # netns -> why rules are not traced there; None: nowhere, it is turned off


@dataclass(frozen=True, slots=True)
class Trace:
    """One nftables trace message: what a rule, or a chain's policy, did with a packet. They have no time, but an order
    within their namespace. A base chain's first message about a packet carries its headers, the ones behind it do not."""

    netns: int
    id: int  # the kernel's own of the packet; used again for later ones
    family: str  # of the table: "ip", "ip6", "inet", "bridge", "netdev"
    table: str
    chain: str
    kind: str  # "rule", "policy"; "return": a chain ended without a verdict
    verdict: str  # "accept", "drop", "continue", "return", "jump", "goto", "queue", "stolen"
    handle: int | None = None  # of the rule
    target: str | None = None  # chain of a jump or goto
    iif: int = 0  # ifindex; with the headers only, as the next four
    oif: int = 0
    protocol: int = 0  # EtherType
    network: bytes = b""  # 40 bytes at most from the network header on
    transport: bytes = b""  # 20 bytes at most
    table_handle: int | None = None  # of the table when tracing was armed: a table that is made anew has another
    text: str | None = None  # of the rule
    unsure: str | None = None  # why `text` is missing, or may be another rule's


@dataclass(frozen=True, slots=True)
class Batch:
    """What an event source hands out at a time."""

    events: list[Event]  # in the order in which they happened
    lost: int  # events that the kernel had no room for since the batch before
    traces: tuple[Trace, ...] = ()  # in the order in which they came
    lost_traces: tuple[int, ...] = ()  # namespaces whose trace messages the kernel had no room for, once a loss
    lost_by: Mapping[int, int] = field(default_factory=dict)  # the same by Place
    share: float = 1.0  # of the journeys that begin, how many are followed by now: less than all under overload
