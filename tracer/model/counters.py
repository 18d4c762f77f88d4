"""What the counters of iptables-legacy say: it traces no packet without logging it, but it counts each rule's matches."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class CountedRule:
    """A rule, or a built-in chain's policy, and its packet counter."""

    family: str  # "ip" or "ip6"
    table: str
    chain: str
    rule: str | None  # as iptables-save writes it, without counters; None: the chain's policy
    target: str | None  # "DROP", "DNAT", a chain's name; None: the rule only counts
    packets: int
    leads: str | None = None  # "jump" or "goto", where the target is a chain


@dataclass(frozen=True, slots=True)
class Risen:
    """A namespace's iptables-legacy between two readings."""

    netns: int
    rules: tuple[CountedRule, ...] = ()  # whose counters rose, by how much; each chain's in its order, a policy last
    unknown: str | None = None  # why the readings say nothing
