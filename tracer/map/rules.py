"""The host's rules in the order in which packets meet them, across tables and backends, and those that a pair could meet."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from tracer.map.matching import Packet, could_be, fits, sure
from tracer.map.passage import Passage, Stop
from tracer.model.counters import CountedRule
from tracer.model.picture import Row, Table
from tracer.model.ruleset import Ruleset
from tracer.model.topology import BaseChain, Namespace

HOOKS = ("ingress", "prerouting", "input", "forward", "output", "postrouting", "egress")
_COLUMNS = ("hook", "table", "whose", "rule")
_DEPTH = 16  # of chains that call chains; the kernel takes 16 too (NFT_JUMP_STACK_SIZE)
_MEANING = ("At each hook, base chains are asked in the order of their priority. A rule that jumps leads into another chain "
            "and back; an accept ends its own table only, and the next one at the hook is asked too; a drop ends all.")
_COMMAND = "iptables-save, iptables-legacy-save, ip6tables-save, nft list ruleset"
_LEFT_OUT = ("Left out is what this packet surely does not match; what depends on more, such as a port or a connection's "
             "state, is shown.")
_TRANSLATED = ("A rule may give it another destination: what follows that rule is for any. With that address as B, --path "
               "tells the rest of the way.")
STOPS = ("DROP", "REJECT")
ENDS = (*STOPS, "ACCEPT", "DNAT", "SNAT", "MASQUERADE", "REDIRECT")


Owners = Mapping[CountedRule, str]


def all_rules(space: Namespace, name: str, ruleset: Ruleset, owners: Owners) -> list[Table]:
    asked = [base for hook in HOOKS for base in bases(space, hook, None)]
    rows = [row for base in asked for row in _base(base, ruleset, None, owners)[0]]
    return [Table("rules", f"Rules of {name}", _MEANING, _COMMAND, _COLUMNS, tuple(rows), ruleset.unknown)]


def met_rules(way: Passage, rulesets: Mapping[int, Ruleset], owners: Owners) -> list[Table]:
    """A table for each namespace on the way. Behind a rule that surely drops it, nothing is met."""
    found = []
    for stop in way.stops:
        ruleset = rulesets.get(stop.space.netns, Ruleset(stop.space.netns))
        rows, dropped, translated = _met(stop, ruleset, owners)
        notes = [*ruleset.unknown]
        notes += ["Dropped here, whatever else is true of it: nothing behind is met."] if dropped else []
        notes += [_TRANSLATED] if translated else []
        notes += [] if rows else ["No rule: nothing here decides about it."]
        found.append(Table("rules", f"{way.title}: {stop.name}, {stop.sentence}", f"{_MEANING} {_LEFT_OUT}",
                           _COMMAND, _COLUMNS, tuple(rows), tuple(notes)))
        if dropped:
            break
    return found


def _met(stop: Stop, ruleset: Ruleset, owners: Owners) -> tuple[list[Row], bool, bool]:
    """(rows, surely dropped, perhaps with another destination)"""
    rows: list[Row] = []
    translated = False
    hooks = list(stop.hooks)
    for packet in hooks:  # grows while it is gone through
        known = replace(packet, dst=None, dport=None, goes=None, local=None) if translated else packet
        for base in bases(stop.space, packet.hook, known):
            more, dropped, nat = _base(base, ruleset, known, owners)
            rows += more
            if nat and not translated:
                translated = True
                hooks += stop.translated
            if dropped:
                return rows, True, translated
    return rows, False, translated


def bases(space: Namespace, hook: str, packet: Packet | None) -> list[BaseChain]:
    return sorted((chain for chain in space.chains or () if chain.hook == hook and _concerns(chain, packet)),
                  key=lambda chain: chain.priority)


def _concerns(chain: BaseChain, packet: Packet | None) -> bool:
    if packet is None:
        return True
    if chain.family in ("bridge", "netdev"):
        return packet.level == 2
    return packet.level == 3 and chain.family in ("inet", "ip" if packet.version == 4 else "ip6")


def _base(base: BaseChain, ruleset: Ruleset, packet: Packet | None, owners: Owners) -> tuple[list[Row], bool, bool]:
    """(rows, surely dropped, perhaps with another destination)"""
    rows: list[Row] = []
    walk = _Walk(base, ruleset, packet, owners, rows)
    end = walk.chain(ruleset.of(base), 0)
    policy = ruleset.policy(base)
    if policy and end is None and (policy != "ACCEPT" or packet is None):
        rows.append(Row((base.hook, _table(base), "", f"{base.name}: policy {policy}"), "!" if policy == "DROP" else ""))
    stopped = end in STOPS or (end is None and policy == "DROP")
    return rows, stopped and not walk.may_pass and packet is not None, walk.translated


@dataclass(slots=True)
class _Walk:
    """Through a base chain and those that it calls. For a packet, one that is called twice comes twice: so it meets it."""

    base: BaseChain
    ruleset: Ruleset
    packet: Packet | None
    owners: Owners
    rows: list[Row]
    translated: bool = False
    may_pass: bool = False  # some rule may accept it, before one that surely drops it
    shown: set[str] = field(default_factory=set)  # chains, where no packet is asked for

    def chain(self, rules: list[CountedRule], depth: int) -> str | None:
        """How every packet's way through the table surely ends in it: the target in capitals; None: not surely."""
        for rule in rules:
            if rule.rule is None or (self.packet is not None and not fits(rule, self.packet)):
                continue
            self.rows.append(self._row(rule, depth))
            certain = self.packet is not None and sure(rule, self.packet)
            target = (rule.target or "").upper()
            for key, leads, to in self.ruleset.verdicts(rule):
                self.may_pass = True
                if leads and depth < _DEPTH and (self.packet is None or could_be(rule, key, self.packet)):
                    self.chain(self._called(to), depth + 1)
            if rule.leads and rule.target and depth < _DEPTH:
                end = self.chain(self._called(rule.target), depth + 1)
                if certain and (end or rule.leads == "goto"):
                    return end
                continue
            self.translated = self.translated or target in ("DNAT", "REDIRECT")
            self.may_pass = self.may_pass or target not in (*STOPS, "RETURN", "")
            if certain and target in ENDS:
                return target
            if certain and target == "RETURN":
                return None
        return None

    def _called(self, name: str) -> list[CountedRule]:
        """A chain's rules; none the second time where no packet is asked for."""
        again = self.packet is None and name in self.shown
        self.shown.add(name)
        return [] if again else self.ruleset.chain(self.base.family, self.base.table, name, self.base.legacy)

    def _row(self, rule: CountedRule, depth: int) -> Row:
        stops, text = (rule.target or "").upper() in STOPS, rule.rule or ""
        text = text if text.startswith("-A ") else f"{rule.chain}: {text}"
        cells = self.base.hook, _table(self.base), self.owners.get(rule, "–"), "  " * depth + text
        return Row(cells, "!" if stops else "")


def _table(base: BaseChain) -> str:
    family = "" if base.family == "ip" else f"{base.family} "
    return f"{family}{base.table}{' (legacy)' if base.legacy else ''} {base.priority}"
