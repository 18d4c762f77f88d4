"""What the rules at a hook do with a connection's first packet: for sure, or not told at all.

A rule is taken to match, or not to, only where all of its matches are known here. Where one that decides depends on more,
Unsure says which: a wrong expectation is worse than none.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from ipaddress import ip_address

from tracer.map.matching import Packet, fits, sure
from tracer.map.rules import bases
from tracer.model.counters import CountedRule
from tracer.model.journey import Rewrite, Rule, Table
from tracer.model.ruleset import Ruleset
from tracer.model.topology import Address, BaseChain, Namespace

_DNAT = re.compile(r"(?:--to-destination|dnat(?: ip6?)? to) (?:\[([0-9a-f:]+)\]|([0-9.]+)|([0-9a-f:]+))(?::(\d+))?(?: |$)")
_ENDS = {"ACCEPT": "accept", "DROP": "drop", "REJECT": "reject"}
_SAYS_ONLY = ("LOG", "NFLOG", "")  # the packet goes on to the next rule
_DEPTH = 16

Owner = Callable[[Rule], str | None]


class Unsure(Exception):
    """The tables do not tell. The message says why."""


@dataclass(frozen=True, slots=True)
class Decision:
    """At one hook."""

    packet: Packet  # as it goes on
    rules: tuple[Rule, ...] = ()  # that it meets, in order
    passed: tuple[Table, ...] = ()
    stopped: Table | None = None
    rule: Rule | None = None  # that ends it
    rewrite: Rewrite | None = None


def decide(space: Namespace, ruleset: Ruleset, packet: Packet, masquerade: Address | None, owner: Owner) -> Decision:
    """`masquerade`: the source that MASQUERADE gives it. Unsure."""
    if space.chains is None or ruleset.unknown:
        raise Unsure(f"rules of {space.name} could not be read")
    seen: list[Rule] = []
    passed: list[Table] = []
    now, rewritten = packet, False
    for base in bases(space, packet.hook, packet):
        if rewritten and "nat" in (base.table, base.kind):
            continue  # a connection's addresses are changed once at a hook
        table = Table(base.family, base.table, base.name, base.priority, base.legacy)
        walk = _Walk(base, ruleset, now, seen, owner)
        end = walk.base()
        if end in ("drop", "reject"):
            return Decision(now, tuple(seen), tuple(passed), table, seen[-1])
        passed.append(table)
        if walk.translates:
            now, rewritten = _translated(now, walk.translates, masquerade), True
    return Decision(now, tuple(seen), tuple(passed), None, None, _rewrite(packet, now) if rewritten else None)


def _rewrite(before: Packet, now: Packet) -> Rewrite:
    src, dst = ((str(a), str(b)) if a != b else None for a, b in ((before.src, now.src), (before.dst, now.dst)))
    ports = (before.dport, now.dport) if before.dport and now.dport and before.dport != now.dport else None
    return Rewrite(src=src, dst=dst, dport=ports)


def _translated(packet: Packet, rule: CountedRule, masquerade: Address | None) -> Packet:
    target = (rule.target or "").upper()
    if target == "MASQUERADE" and masquerade:
        return replace(packet, src=masquerade)
    found = _DNAT.search(rule.rule or "") if target == "DNAT" else None
    if found is None:
        raise Unsure(f"what {rule.rule} makes of its addresses is not told here")
    port = int(found[4]) if found[4] else packet.dport
    return replace(packet, dst=ip_address(found[1] or found[2] or found[3]), dport=port, local=None)


@dataclass(slots=True)
class _Walk:
    """Through a base chain and those that it calls."""

    chain_of: BaseChain
    ruleset: Ruleset
    packet: Packet
    seen: list[Rule]
    owner: Owner
    translates: CountedRule | None = None

    def base(self) -> str:
        """"accept", "drop" or "reject"."""
        end = self._chain(self.ruleset.of(self.chain_of), 0)
        if end is None:
            policy = self.ruleset.policy(self.chain_of)
            if policy not in ("ACCEPT", "DROP"):
                raise Unsure(f"the policy of {self.chain_of.table}/{self.chain_of.name} is not known")
            base = self.chain_of
            self.seen.append(Rule(base.family, base.table, base.name, None, policy.lower(), policy=True, legacy=base.legacy))
            end = policy.lower()
        return end

    def _chain(self, rules: list[CountedRule], depth: int) -> str | None:
        """How the way through the table ends in it; None: it does not."""
        for rule in rules:
            if rule.rule is None or not fits(rule, self.packet):
                continue
            target = (rule.target or "").upper()
            if self.ruleset.verdicts(rule) or " vmap " in rule.rule or " map " in rule.rule:
                raise Unsure(f"{rule.table}/{rule.chain}: {rule.rule}: what it leads to is looked up in a map")
            if not sure(rule, self.packet):
                if target in _SAYS_ONLY and not rule.leads and rule.rule.startswith("-A "):
                    continue
                raise Unsure(f"{rule.table}/{rule.chain}: whether this rule matches depends on more than the tables tell: "
                             f"{rule.rule}")
            self._note(rule, target)
            if rule.leads and rule.target:
                if depth >= _DEPTH:
                    raise Unsure(f"{rule.table}/{rule.chain} calls too many chains")
                base = self.chain_of
                end = self._chain(self.ruleset.chain(base.family, base.table, rule.target, base.legacy), depth + 1)
                if end or rule.leads == "goto":
                    return end
            elif target == "RETURN":
                return None
            elif target in _ENDS:
                return _ENDS[target]
            elif target in ("DNAT", "SNAT", "MASQUERADE", "REDIRECT"):
                self.translates = rule
                return "accept"
            elif target not in _SAYS_ONLY:
                raise Unsure(f"{rule.table}/{rule.chain}: what this rule does is not told here: {rule.rule}")
        return None

    def _note(self, rule: CountedRule, target: str) -> None:
        verdict = f"{rule.leads} {rule.target}" if rule.leads else _ENDS.get(target) or (
            "return" if target == "RETURN" else "accept" if target in ("DNAT", "SNAT", "MASQUERADE") else "continue")
        made = Rule(rule.family, rule.table, rule.chain, rule.rule, verdict, legacy=rule.legacy)
        self.seen.append(replace(made, owner=self.owner(made)))
