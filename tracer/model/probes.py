"""What a trace must say of the machine it was taken on, so that its events can be read elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from tracer.model.journey import Table
from tracer.model.layout import Event

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
    reasons: Mapping[int, str]  # enum skb_drop_reason, without its prefix
    attached: tuple[str, ...] = ()
    missing: tuple[Missing, ...] = ()
    hook_points: Mapping[tuple[int, str, int], HookPoint] = field(default_factory=dict)  # by (netns, hook, slot)


@dataclass(frozen=True, slots=True)
class Batch:
    """What an event source hands out at a time."""

    events: list[Event]  # in the order in which they happened
    lost: int  # events that the kernel had no room for since the batch before
