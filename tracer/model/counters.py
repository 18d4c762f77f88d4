"""What iptables' counters say where no rule is traced: iptables-legacy cannot without writing to the kernel's log, and
nftables not before Linux 5.12 without leaving something behind where the tracer is killed."""

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
    legacy: bool = True  # False: of iptables-nft, which does not count what reaches a policy


@dataclass(frozen=True, slots=True)
class Risen:
    """A namespace's tables of iptables between two readings."""

    netns: int
    rules: tuple[CountedRule, ...] = ()  # whose counters rose, by how much, in order; and policies that are not counted
    tables: frozenset[tuple[str, str, bool]] = frozenset()  # (family, table, legacy) that were read
    unknown: str | None = None  # why the readings say nothing
