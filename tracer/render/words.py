"""Sentences and names for a person, without layout or colour. Text outputs share them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tracer.model.journey import Cause, Direction, End, Hop, Journey, Packet, Result, Rule, Stage, Table, endpoint
from tracer.model.report import OnBridge, RoundTrip, Seen, Start, Summary

NETFILTER = (Stage.PREROUTING, Stage.INPUT, Stage.FORWARD, Stage.OUTPUT, Stage.POSTROUTING)
CONNTRACK_PRIORITY = -200  # NF_IP_PRI_CONNTRACK: what lies before has no conntrack entry yet

# In the titles of journeys.
KINDS = {"copy": " (a copy)", "part": " (a part)", "relay": " by the proxy", "relay_reply": " to the proxy"}

_UNREACHABLE = {
    4: {0: "network unreachable", 1: "host unreachable", 2: "protocol unreachable", 3: "port unreachable",
        4: "fragmentation needed", 9: "network prohibited", 10: "host prohibited", 13: "prohibited by a filter"},
    6: {0: "no route", 1: "prohibited by a filter", 2: "beyond the scope of the source", 3: "address unreachable",
        4: "port unreachable", 5: "source address refused", 6: "reject route"},
}
_ICMP = {4: {0: "echo reply", 3: "destination unreachable", 5: "redirect", 8: "echo request", 11: "time exceeded",
             12: "parameter problem"},
         6: {1: "destination unreachable", 2: "packet too big", 3: "time exceeded", 4: "parameter problem",
             128: "echo request", 129: "echo reply", 133: "router solicitation", 134: "router advertisement",
             135: "neighbor solicitation", 136: "neighbor advertisement", 137: "redirect"}}


def duration(ns: int) -> tuple[str, str]:
    """Number and unit: ("3.4", "µs"), ("47", "µs"), ("1.20", "ms")."""
    us = ns / 1000
    if us < 9.95:
        return f"{us:.1f}", "µs"
    if us < 999.5:
        return f"{us:.0f}", "µs"
    if us < 999_500:
        return f"{us / 1000:.3g}", "ms"
    return f"{us / 1e6:.2f}", "s"


def step(ns: int) -> tuple[str, str]:
    """As duration(), but a tenth of a microsecond is kept below a millisecond: steps are compared with each other."""
    return (f"{ns / 1000:.1f}", "µs") if abs(ns) < 999_950 else duration(ns)


def spelled(ns: int) -> str:
    return " ".join(duration(ns))


def packet_name(packet: Packet) -> str:
    """"echo request", "ARP reply", "ICMP host unreachable", "tcp 40000 → 80"."""
    if packet.proto == "arp":
        return {1: "ARP request", 2: "ARP reply"}.get(packet.arp_op or 0, "ARP packet")
    if packet.proto in ("icmp", "icmpv6"):
        family = 4 if packet.proto == "icmp" else 6
        kind, code = packet.icmp_type, packet.icmp_code
        if kind == (3 if family == 4 else 1) and code in _UNREACHABLE[family]:
            return f"ICMP error: {_UNREACHABLE[family][code]}"
        name = _ICMP[family].get(-1 if kind is None else kind)
        if name is None:
            return f"{packet.proto} type {kind}"
        return f"ICMP error: {name}" if packet.quoted else name
    if packet.dport is not None:
        return f"{packet.proto} {packet.tcp_flags or ''} {packet.sport} → {packet.dport}".replace("  ", " ")
    return packet.proto


def is_served(journey: Journey) -> bool:
    """Is it one of those that served() puts in a line?"""
    return journey.kind in ("ack", "close") and journey.end.result is Result.DELIVERED


def served(journeys: Sequence[Journey]) -> str:
    """What else a TCP connection needed, in one sentence: "then tcp RST c1 → c2, delivered"."""
    return f"then tcp {', '.join(f'{j.packet.tcp_flags} {source} → {to}' for j in journeys for source, to in [ends(j)])}" \
        + (", delivered" if len(journeys) == 1 else ", all delivered")


def number(journey: Journey) -> str:
    return f"#{journey.seq} " if journey.seq is not None else ""


def ends(journey: Journey) -> tuple[str, str]:
    """Who sent it, and whom it is for."""
    return journey.source or journey.packet.src, journey.target or journey.packet.dst


def title_end(journey: Journey) -> str:
    """How it ended, short enough for the title line."""
    end = journey.end
    took = spelled(journey.duration_ns)
    if end.result is Result.DELIVERED:
        return f"delivered in {took}" if journey.target else f"taken in by {end.node} after {took}"
    if end.result is Result.LEFT:
        return f"left by {end.device} after {took}" if end.device else f"left this host after {took}"
    if end.result is Result.RELAYED:
        return f"relayed to a proxy after {took}"
    if end.result is Result.DROPPED:
        return f"✗ dropped in {end.node} after {took}" if end.node else f"✗ dropped after {took}"
    place = " ".join(part for part in _place(journey)[:2] if part)
    return f"? not seen again after {place}" if place else "? never seen"


def verdict(journey: Journey) -> str | None:
    """The line below the hops of a packet that was not delivered: where, by what. None where there is nothing to add."""
    end = journey.end
    if end.result is Result.DELIVERED:
        return None
    if said := stopped_by(journey):
        return said
    node, device, stage = _place(journey)
    place = " ".join(part for part in (node, device) if part)
    if end.result in (Result.LEFT, Result.RELAYED):
        return f"→ {end.detail}" if end.detail else None
    if end.result is Result.DROPPED:
        said = "✗ dropped" + (f" in {place}" if place else "")
        when = "at" if end.reason in (None, "NETFILTER_DROP") else "after"
        said += f", {when} {stage}" if stage and end.stage is not Stage.DROP else ""
        said += f" ({end.reason})" if end.reason else ""
    else:
        said = f"? not seen again after {place}" if place else "? never seen"
        said += f" ({stage})" if stage else ""
    return f"{said}: {end.detail}" if end.detail else said


def died(journey: Journey) -> str:
    """As verdict(), for a line that shows the way: "✗ dropped in c2 after route (NO_SOCKET)"."""
    if said := stopped_by(journey):
        return said
    node, device, stage = _place(journey)
    if journey.end.result is not Result.DROPPED:
        return f"? not seen again after {node} {device or stage}" if node else "? never seen"
    when = "at" if journey.end.reason in (None, "NETFILTER_DROP") else "after"
    place = f" in {node}" if node else ""
    stage = f" {when} {stage}" if stage and journey.end.stage is not Stage.DROP else ""
    why = journey.end.reason or ""
    why += ", by a rule that was not traced" if why == "NETFILTER_DROP" else ""
    return f"✗ dropped{place}{stage}" + (f" ({why})" if why else "")


def causes(journey: Journey, verbose: bool) -> list[tuple[str, str]]:
    """(label, text) of each line below the end: "cause:", "mend:", and what else may be it."""
    said = []
    label = "cause:"
    for cause in journey.end.causes:
        said += because(cause, "note:" if cause.remark else label, verbose)
        label = label if cause.remark else "or:"
    return said


def because(cause: Cause, label: str = "cause:", verbose: bool = False) -> list[tuple[str, str]]:
    said = [(label, cause.sentence)]
    said += [("seen:", observed) for observed in cause.evidence] if verbose else []
    return [*said, ("mend:", cause.mend)] if cause.mend else said


def _place(journey: Journey) -> tuple[str | None, str | None, str | None]:
    """(node, device, stage) of the end, else of the last hop."""
    end: End | Hop | None = journey.end
    if journey.end.node is None and journey.end.device is None:
        end = journey.hops[-1] if journey.hops else None
    if end is None:
        return None, None, None
    return end.node, end.device, end.stage.value if end.stage else None


def incomplete(journey: Journey) -> str | None:
    if journey.lost_events:
        return (f"! {count(journey.lost_events, 'event was', 'events were')} lost in the kernel while this packet "
                "travelled: a hop may be missing above")
    return None if journey.complete else "! a hop may be missing above"


def shown(journey: Journey) -> list[Hop]:
    """The hops that matter: in a container, that its own address is local goes without saying but at the start, and a hook
    without a table decides nothing, unless it is where the packet was last seen."""
    hops = journey.hops
    return [hop for at, hop in enumerate(hops)
            if not (hop.route and hop.route.kind == "local" and hop.node != "host" and at)
            and not (hop.stage in NETFILTER and hop.node != "host" and hop.tables == () and not hop.stopped_at
                    and not hop.conntrack and not hop.rewrite and hop.node in [later.node for later in hops[at + 1:at + 3]])]


def tables(hop: Hop) -> str:
    """"raw · conntrack NEW · filter: FORWARD → DOCKER accept": what the packet passed at a netfilter hook, in the order of
    priorities, with the chains of the tables whose rules spoke."""
    if hop.tables is None:
        return "which tables there are could not be read"
    said = {_base(walk[0]): walked(walk) for walk in walks(hop) if spoke(walk)}
    for table in hop.tables:
        perhaps = [rule for rule in hop.rules if rule.by == "candidate" and _base(rule)[1:] == _base(table)[1:]]
        said |= {_base(table): f"{table_name(table)}: one of {count(len(perhaps), 'rule')}"} if perhaps else {}
    met_there = (table for table in hop.stopped_at if _base(table) in said)
    rows = sorted((*hop.tables, *met_there), key=lambda table: table.priority)
    names = [(row.priority, said.pop(_base(row), table_name(row))) for row in rows]
    parts = [name for priority, name in names if priority <= CONNTRACK_PRIORITY]
    parts += [f"conntrack {hop.conntrack}"] if hop.conntrack else []
    parts += [name for priority, name in names if priority > CONNTRACK_PRIORITY]
    parts += said.values()  # of chains that belong to a bridge or a device
    behind = [table for table in hop.stopped_at if table not in rows]
    parts += ["not past " + " or ".join(map(table_name, behind))] if behind and len(behind) == len(hop.stopped_at) else []
    return " · ".join(parts)


def _base(one: Table | Rule) -> tuple[str, str, str, bool]:
    return one.chain, one.family, one.table, one.legacy


def walks(hop: Hop) -> list[list[Rule]]:
    """A hop's rules by the base chain that led to them, without those that are only candidates."""
    bases = {_base(table) for table in (*(hop.tables or ()), *hop.stopped_at)}
    found: list[list[Rule]] = []
    for rule in hop.rules:
        if rule.by == "candidate":
            continue
        begun = found[-1][0] if found else None
        if begun is None or _base(rule)[1:] != _base(begun)[1:] or (
                _base(rule) in bases and rule.chain != begun.chain):
            found.append([])
        found[-1].append(rule)
    return found


def spoke(walk: list[Rule]) -> bool:
    """Did a rule of it do more than let the packet come to the chain's policy?"""
    return any(rule.verdict not in ("continue", "accept" if rule.policy else "") for rule in walk)


def walked(walk: list[Rule]) -> str:
    """"filter: FORWARD → DOCKER-USER → DOCKER accept"."""
    called = [rule.verdict.split(" ", 1)[1] for rule in walk if rule.verdict.startswith(("jump ", "goto "))]
    chains = [walk[0].chain, *called]
    last = walk[-1]
    return f"{_table(last)}: {' → '.join(chains)}{', policy' if last.policy else ''} {last.verdict}"


def _table(rule: Rule) -> str:
    return table_name(Table(rule.family, rule.table, rule.chain, 0, rule.legacy))


def each_rule(hop: Hop) -> list[str]:
    """A line for each rule that the packet met."""
    said = []
    for rule in hop.rules:
        table = {"counter": "by counters ", "candidate": "perhaps "}.get(rule.by, "") + _table(rule)
        place = f"{table}/{rule.chain}"
        if rule.policy:
            said.append(f"{place}: policy {rule.verdict}")
        elif rule.rule and rule.rule.startswith("-A "):  # it names its chain
            said.append(f"{table}: {rule.rule}")
        else:
            said.append(f"{place}: {rule.rule or f'rule with handle {rule.handle}, {rule.verdict}'}")
    return said


def perhaps_stopped_by(journey: Journey) -> list[str]:
    """Rules of which one stopped the packet, as far as counters tell."""
    hop = next((hop for hop in reversed(journey.hops) if hop.stopped_at), None)
    if hop is None or journey.end.rule or journey.end.result is not Result.DROPPED:
        return []
    return [f"perhaps by {_table(rule)}: " + (rule.rule or f"policy of {rule.chain}") for rule in hop.rules
            if rule.by == "candidate" and rule.verdict in ("drop", "reject", "queue")]


def stopped_by(journey: Journey) -> str | None:
    """"✗ dropped at filter/DOCKER-USER by rule", whose text is to follow."""
    rule = journey.end.rule
    if rule is None:
        return None
    did, place = "rejected" if rule.verdict == "reject" else "dropped", f"{_table(rule)}/{rule.chain}"
    known = ", as counters tell" if rule.by == "counter" else ""
    if rule.policy:
        return f"✗ {did} by the policy of {place}{known}"
    unknown = "" if rule.rule else f" with handle {rule.handle}, whose text is not known"
    return f"✗ {did} at {place} by rule{unknown}{known}"


def table_name(table: Table) -> str:
    """"filter", "inet firewalld", "filter (legacy)"."""
    family = "" if table.family in ("ip", "ip6") else f"{table.family} "
    return f"{family}{table.table}{' (legacy)' if table.legacy else ''}"


def rewrites(hop: Hop) -> str:
    """"src 172.17.0.2 → 198.51.100.2"."""
    if hop.rewrite is None:
        return ""
    pairs = (("src", hop.rewrite.src), ("sport", hop.rewrite.sport), ("dst", hop.rewrite.dst), ("dport", hop.rewrite.dport))
    return ", ".join(f"{name} {pair[0]} → {pair[1]}" for name, pair in pairs if pair)


def explained(hop: Hop) -> list[str]:
    """What -v adds: the rows that match too, and the conntrack entry where it was made or changed the packet."""
    said = []
    if hop.route and hop.route.losers:
        said.append(f"rather than {', '.join(hop.route.losers)}")
    if hop.entry and (hop.conntrack == "NEW" or hop.rewrite):
        said.append(f"entry {direction(hop.entry.original)}, reply {direction(hop.entry.reply)}")
    return said


def direction(one: Direction) -> str:
    """"172.17.0.2:40000 → 203.0.113.1:80"."""
    return f"{endpoint(one.src, one.sport)} → {endpoint(one.dst, one.dport)}"


def where(start: Start) -> str:
    """", both on docker0 (172.17.0.1/16)"; "" where no bridge has part in it."""
    source, destination = start.source, start.destination
    if source.on and destination.on and source.on.bridge == destination.on.bridge and not (
            source.on.itself or destination.on.itself):
        return f", both on {_on(source.on)}"
    return "".join(f", {place.address} is {place.on.bridge}'s own address" if place.on.itself
                   else f", {place.name} on {_on(place.on)}" for place in (source, destination) if place.on)


def _on(on: OnBridge) -> str:
    return f"{on.bridge} ({on.address})" if on.address else on.bridge


def totals(summary: Summary) -> str:
    said = f"{summary.sent} sent, {summary.answered} answered"
    if summary.states:
        states = [f"{n} {state}" if len(summary.states) > 1 else state for state, n in summary.states.items()]
        said += f" ({', '.join(states)})" if states != ["answered"] else ""
    return f"{said}, {round_trip(summary.rtt, summary.answered)}." if summary.rtt else f"{said}."


def round_trip(rtt: RoundTrip, answered: int) -> str:
    if answered == 1:
        return f"rtt {rtt.avg:.3f} ms"
    return f"rtt min/avg/max {rtt.min:.3f}/{rtt.avg:.3f}/{rtt.max:.3f} ms"


def bridge_roles(bridges: Mapping[str, tuple[str, ...]], routed: bool = False) -> list[str]:
    """A sentence for each bridge that the packets met: which of its two identities it had.

    `routed`: did the host look up a route?
    """
    all_switch = all(roles == ("switch",) for roles in bridges.values())
    said = []
    for name, roles in bridges.items():
        if roles == ("switch",):
            said.append(f"{name} was a switch: it passed frames from port to port by their MAC addresses"
                        + (", and the host routed nothing." if all_switch and not routed else "."))
        elif roles == ("nic",):
            said.append(f"{name} was a NIC, the host's own on that network: packets went up through it into the host's IP "
                        "layer, or came down from there.")
        elif roles:
            said.append(f"{name} had both its identities: a NIC, through which packets went up into the host's IP layer or "
                        "came down from there, and a switch, which passed frames to the right port by their MAC addresses.")
    return said


def losses(summary: Summary) -> str | None:
    if not summary.lost_events:
        return None
    return (f"{count(summary.lost_events, 'event was', 'events were')} lost in the kernel: a hop that is not shown may "
            "have happened all the same.")


def lost(by_probe: Mapping[str, int]) -> str:
    """"lost 120 events (netfilter 100, kfree_skb 20)"."""
    probes = ", ".join(f"{name} {events:,}" for name, events in sorted(by_probe.items(), key=lambda row: -row[1]) if events)
    events = sum(by_probe.values())
    return f"lost {events:,} {'event' if events == 1 else 'events'} ({probes})"


def sampled(share: float) -> str:
    return f"1 new journey in {1 / share:.3g} followed"


def silence(seconds: float, seen: Seen) -> str:
    """"nothing matched in 3 s: 41,233 packets passed, most of them UDP 172.17.0.2 → 172.17.0.3:5201"."""
    said = f"nothing matched in {seconds:.0f} s: "
    kinds = sorted(seen.kinds.items(), key=lambda row: -row[1])[:3]
    if not seen.packets:
        return f"{said}no packet passed the probes"
    if seen.packets == 1 or not kinds:
        return said + ", ".join([f"{count(seen.packets, 'packet')} passed", *(kind for kind, _ in kinds)])
    said += f"{seen.packets:,} packets passed, "
    if kinds[0][1] * 2 > seen.packets:
        return f"{said}most of them {kinds[0][0]}"
    return f"{said}the most frequent {', '.join(f'{kind} ({packets:,})' for kind, packets in kinds)}"


def count(number: int, singular: str, plural: str | None = None) -> str:
    return f"{number} {singular}" if number == 1 else f"{number} {plural or singular + 's'}"
