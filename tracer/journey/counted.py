"""Rules of iptables, concluded from counters.

What a packet met at a table is known by whether it got past it. One rule or policy decided that, and its counter rose. If
the counters of others with the same outcome stood still, it was that one; if not, it was one of those that rose.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from tracer.model.counters import CountedRule, Risen
from tracer.model.journey import Hop, Journey, Result, Rule, Table

PASSES, STOPS = "passes", "stops"
# What targets that decide do to the packet; the others let it go on in its chain.
OUTCOMES: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(("ACCEPT", "DNAT", "SNAT", "MASQUERADE", "REDIRECT", "NETMAP", "TPROXY"), (PASSES,)),
    **dict.fromkeys(("DROP", "REJECT", "SYNPROXY"), (STOPS,)),
    **dict.fromkeys(("QUEUE", "NFQUEUE"), (PASSES, STOPS)),  # a program decides
}
VERDICTS = {"DROP": "drop", "SYNPROXY": "drop", "REJECT": "reject", "QUEUE": "queue", "NFQUEUE": "queue"}


def counted(journeys: Iterable[Journey], risen: Mapping[int, Risen]) -> list[Journey]:
    """The journeys of one probe, with the rules that iptables' counters (by namespace) tell at their hops."""
    return [_with_rules(journey, risen) if risen else journey for journey in journeys]


def _with_rules(journey: Journey, risen: Mapping[int, Risen]) -> Journey:
    states: dict[int, str | None] = {}  # namespace -> conntrack's, which is told where the packet comes in or begins
    hops = []
    for hop in journey.hops:
        state = states[hop.netns] = hop.conntrack or states.get(hop.netns)
        hops.append(_at(hop, risen[hop.netns], state == "NEW") if hop.netns in risen else hop)
    end = journey.end
    last = next((hop for hop in reversed(hops) if hop.stopped_at), None)
    if last and end.result is Result.DROPPED and end.rule is None:
        rule = next((r for r in last.rules if r.by == "counter" and r.verdict in ("drop", "reject")), None)
        end = end._replace(rule=rule)
    return replace(journey, hops=tuple(hops), end=end)


def _at(hop: Hop, risen: Risen, new: bool) -> Hop:
    """`new`: it may be its connection's first packet, the only one that meets nat."""
    traced = {(r.family, r.table, r.legacy) for r in hop.rules}
    passed = [t for t in hop.tables or () if _key(t) not in traced]
    # a trace that saw it stopped leaves nothing to conclude, and one that saw it pass a table leaves the others
    ended = any(r.verdict in ("drop", "reject") for r in hop.rules)
    stopped = [t for t in hop.stopped_at if _key(t) not in traced and not ended]
    if not any(table.legacy or _key(table) in risen.tables for table in (*passed, *stopped)):
        return hop
    if risen.unknown:
        said = f"iptables-legacy: {risen.unknown}"
        return hop._replace(rules_unknown="; ".join(filter(None, (hop.rules_unknown, said))))
    counts = [t for t in passed if _key(t) in risen.tables and (t.table != "nat" or new)]
    found = [rule for table in counts for rule in _decided([table], PASSES, risen.rules, sure=True)]
    # where a table without counters may have stopped it as well, a counter that rose may be due to another packet
    found += _decided([t for t in stopped if _key(t) in risen.tables], STOPS, risen.rules,
                      sure=all(_key(t) in risen.tables for t in stopped))
    priorities = {_key(t): t.priority for t in (*(hop.tables or ()), *hop.stopped_at)}
    told = all(_key(t) in risen.tables for t in (*passed, *stopped))
    rules = sorted((*hop.rules, *found), key=lambda rule: priorities.get((rule.family, rule.table, rule.legacy), 0))
    return hop._replace(rules=tuple(rules), rules_unknown=None if told else hop.rules_unknown)


def _key(table: Table) -> tuple[str, str, bool]:
    return table.family, table.table, table.legacy


def _decided(tables: Iterable[Table], outcome: str, risen: Iterable[CountedRule], sure: bool) -> list[Rule]:
    """The rule that decided in these tables, of which one did, with the jumps that led to it; or all that may have.

    None where no counter rose: only a connection's first packet meets nat. `sure`: one of them did decide.
    """
    found = []
    for table in tables:
        own = _reached(table, risen)
        found += [(table.chain, own, rule) for rule in own
                  if not rule.leads and outcome in OUTCOMES.get(rule.target or "", ())]
    if len(found) != 1 or not sure:
        return [_rule(rule, "candidate") for _base, _own, rule in found]
    base, own, rule = found[0]
    way = [rule]
    while way[0].chain != base:
        jumps = [jump for jump in own if jump.leads and jump.target == way[0].chain]
        if len(jumps) != 1:  # by which of them it came is not known
            return [_rule(rule, "counter")]
        way.insert(0, jumps[0])
    return [_rule(step, "counter") for step in way]


def _reached(table: Table, risen: Iterable[CountedRule]) -> list[CountedRule]:
    """Those that rose in the table's base chain, and in chains that rules that rose lead to from there."""
    own = [rule for rule in risen if (rule.family, rule.table, rule.legacy) == _key(table)]
    chains = {table.chain}
    while more := {rule.target or "" for rule in own if rule.leads and rule.chain in chains} - chains:
        chains |= more
    return [rule for rule in own if rule.chain in chains]


def _rule(counted: CountedRule, by: str) -> Rule:
    verdict = f"{counted.leads} {counted.target}" if counted.leads else VERDICTS.get(counted.target or "", "accept")
    return Rule(counted.family, counted.table, counted.chain, counted.rule, verdict, exact=False,
                policy=counted.rule is None, legacy=counted.legacy, by=by)
