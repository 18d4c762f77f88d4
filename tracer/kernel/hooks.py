"""Where to put netfilter links, so that one can tell which table a packet has passed.

A link costs each packet some 35 ns at its hook before it does anything. So there is one before everything at each hook,
and one behind each priority at which something is registered, and no more.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from tracer.model.journey import Table
from tracer.model.layout import HOOK_BEGINS, HOOK_ENDS, HOOK_TABLE, SLOTS
from tracer.model.probes import HOOKS, HookPoint
from tracer.model.topology import BaseChain, Namespace

FIRST, LAST = -(2**31) + 1, 2**31 - 1  # NF_IP_PRI_FIRST itself is refused to BPF
CONNTRACK, TRACKED = -200, ("prerouting", "output")  # NF_IP_PRI_CONNTRACK, and at which hooks
TABLES = ("raw", "mangle", "filter", "security")  # of iptables-legacy, as their slots from HOOK_TABLE on
FAMILIES = {4: ("ip", "inet"), 6: ("ip6", "inet")}  # nft families whose chains a packet of that IP version meets


def hook_points(namespace: Namespace, versions: Iterable[int]) -> list[HookPoint]:
    """The links to attach in this namespace for each of these IP versions, in order of hook and priority. With both of them
    a point has the tables of both."""
    points: list[HookPoint] = []
    families = {family for version in versions for family in FAMILIES[version]}
    for hook in HOOKS:
        if namespace.chains is None:
            points.append(HookPoint(namespace.netns, hook, 0, FIRST, None, False))
        else:
            chains = [c for c in namespace.chains if c.hook == hook and c.family in families]
            points += _at_hook(namespace.netns, hook, chains)
    return points


def whole_hooks(namespace: Namespace, versions: Iterable[int], legacy: Collection[int] = ()) -> list[HookPoint]:
    """The same where each hook is seen as a whole: in front of all that is registered there, and behind it; and behind each
    table of iptables-legacy that all packets of these versions of IP pass. nat only a connection's first ones do."""
    links = hook_points(namespace, versions)
    points = []
    for hook in HOOKS:
        points.append(HookPoint(namespace.netns, hook, HOOK_BEGINS, FIRST, (), False))
        tables: tuple[Table, ...] = ()
        tracked = hook not in TRACKED
        for link in (link for link in links if link.hook == hook):
            tables += link.tables or ()
            if (slot := _legacy_slot(link.tables or (), legacy)) is not None:
                now = not tracked and link.priority > CONNTRACK
                points.append(HookPoint(namespace.netns, hook, slot, link.priority, tables, now))
                tables, tracked = (), tracked or now
        points.append(HookPoint(namespace.netns, hook, HOOK_ENDS, LAST, None if namespace.chains is None else tables,
                                not tracked))
    return points


def _legacy_slot(tables: tuple[Table, ...], versions: Collection[int]) -> int | None:
    """Of a link behind one table of iptables-legacy, in both versions of IP maybe, and nothing else."""
    names = {table.table if table.legacy and {"ip": 4, "ip6": 6}[table.family] in versions else "" for table in tables}
    name = names.pop() if len(names) == 1 else ""
    return HOOK_TABLE + TABLES.index(name) if name in TABLES else None


def _at_hook(netns: int, hook: str, chains: Iterable[BaseChain]) -> list[HookPoint]:
    by_priority: dict[int, list[BaseChain]] = {}
    for chain in chains:
        by_priority.setdefault(chain.priority, []).append(chain)
    if by_priority and hook in TRACKED:
        by_priority.setdefault(CONNTRACK, [])
    groups: list[list[int]] = []
    for priority in sorted(by_priority):
        # the kernel wants a BPF hook's priority for itself (nf_hook_grow), so there is no place between neighbours; and
        # what is more than there are programs for goes to the last one
        if groups and (priority == groups[-1][-1] + 1 or len(groups) == SLOTS - 1):
            groups[-1].append(priority)
        else:
            groups.append([priority])
    points = [HookPoint(netns, hook, 0, FIRST, (), False)]
    for slot, group in enumerate(groups, 1):
        passed = [chain for priority in group for chain in by_priority[priority]]
        tables = tuple(Table(c.family, c.table, c.name, c.priority, c.legacy) for c in passed)
        points.append(HookPoint(netns, hook, slot, group[-1] + 1, tables, CONNTRACK in group))
    return points
