"""Every rule of a namespace: iptables' by iptables-save, all other tables' by nft. Nothing is loaded or changed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial

from tracer.model.counters import CountedRule
from tracer.model.ruleset import Ruleset
from tracer.model.topology import Namespace
from tracer.topology.chains import LEGACY
from tracer.topology.counters import TOOLS, read_rules
from tracer.topology.netns import in_namespace
from tracer.topology.rulesets import NO_LISTING, nft_listing, nft_rules

_CHAIN = re.compile(r"\tchain (\S+) \{")
_POLICY = re.compile(r"\t\ttype \S+ hook .*; policy (\w+);")
_MAP = re.compile(r"\tmap (\S+) \{.*?elements = \{(.*?)\}", re.DOTALL)
_STATEMENT = re.compile(r"\b(?:(jump|goto) (\S+)|(accept|drop|reject|return|queue|masquerade|snat|dnat|redirect)\b)")


def read_ruleset(namespace: Namespace) -> Ruleset:
    """Never raises: what could not be read is told in `unknown`."""
    if namespace.chains is None:
        return Ruleset(namespace.netns, unknown=("which tables there are could not be read",))
    unknown: list[str] = []
    maps: dict[tuple[str, str, str], str] = {}
    ours = [chain for chain in namespace.chains if chain.family in TOOLS and chain.table in LEGACY]
    kinds = tuple(dict.fromkeys((chain.family, chain.legacy) for chain in ours))
    rules: list[CountedRule] = []
    for kind in kinds:
        saved = read_rules(namespace.path, (kind,))
        if isinstance(saved, str):
            unknown.append(saved)
        else:
            rules += saved
    known = {(rule.family, rule.table) for rule in rules if not rule.legacy}
    rest = dict.fromkeys((chain.family, chain.table) for chain in namespace.chains
                         if not chain.legacy and (chain.family, chain.table) not in known)
    for family, table in rest:
        try:
            said = in_namespace(namespace.path, partial(_listing, family, table))
        except OSError as error:
            unknown.append(f"{family} {table}: {error.strerror or error}")
            continue
        if said is None:
            unknown.append(f"{family} {table}: {NO_LISTING}")
            continue
        rules += listed(family, table, said)
        maps |= {(family, table, name): elements for name, elements in _MAP.findall(said)}
    return Ruleset(namespace.netns, tuple(rules), tuple(dict.fromkeys(unknown)), maps)


def _listing(family: str, table: str) -> str | None:
    """With elements only where rules look verdicts up in them: sets may have a hundred thousand."""
    said = nft_listing(family, table)
    return nft_listing(family, table, elements=True) if said and " vmap @" in said else said


def listed(family: str, table: str, said: str) -> Iterator[CountedRule]:
    """What `nft -a list table` printed, as parse() has iptables' rules: a chain's rules, then its policy."""
    policies = {}
    chain = ""
    for line in said.splitlines():
        if opened := _CHAIN.match(line):
            chain = opened[1]
        elif (policy := _POLICY.match(line)) and chain:
            policies[chain] = policy[1]
    rules: dict[str, list[str]] = {}
    for (name, _handle), text in nft_rules(said).items():
        rules.setdefault(name, []).append(text)
    for name in dict.fromkeys([*rules, *policies]):
        for text in rules.get(name, ()):
            found = list(_STATEMENT.finditer(re.sub(r'"[^"]*"', '""', text))) if " vmap " not in text else []
            leads, to, verdict = found[-1].groups() if found else (None, None, None)
            yield CountedRule(family, table, name, text, to or verdict, 0, leads, legacy=False)
        if name in policies:
            yield CountedRule(family, table, name, None, policies[name], 0, None, legacy=False)
