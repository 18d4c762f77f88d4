"""The rules of one namespace, as texts in the order in which packets meet them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from tracer.model.counters import CountedRule
from tracer.model.topology import BaseChain


@dataclass(frozen=True)
class Ruleset:
    netns: int
    rules: tuple[CountedRule, ...] = ()  # a chain's in order, its policy behind; of nft's words, without counts
    unknown: tuple[str, ...] = ()  # what could not be read, and why
    maps: Mapping[tuple[str, str, str], str] = field(default_factory=dict)  # nft's (family, table, name) -> elements

    def chain(self, family: str, table: str, name: str, legacy: bool) -> list[CountedRule]:
        """A chain's rules, its policy last where it has one."""
        return self._chains.get((family, table, name, legacy), [])

    @cached_property
    def _chains(self) -> dict[tuple[str, str, str, bool], list[CountedRule]]:
        found: dict[tuple[str, str, str, bool], list[CountedRule]] = {}
        for rule in self.rules:
            found.setdefault((rule.family, rule.table, rule.chain, rule.legacy), []).append(rule)
        return found

    def verdicts(self, rule: CountedRule) -> list[tuple[str, str, str]]:
        """(key, "jump" or "goto" or "", chain or verdict) of a rule of nft that looks its verdict up in a map."""
        found = re.search(r" vmap (?:@(\S+)|\{(.*)\})", rule.rule or "")
        if found is None or (rule.rule or "").startswith("-A "):
            return []
        elements = self.maps.get((rule.family, rule.table, found[1]), "") if found[1] else found[2]
        return [(key.strip().strip('"'), leads, to) for key, leads, to in re.findall(
            r"([^,:]+) : (?:(jump|goto) )?([^\s,}]+)", elements)]

    def of(self, base: BaseChain) -> list[CountedRule]:
        return self.chain(base.family, base.table, base.name, base.legacy)

    def policy(self, base: BaseChain) -> str | None:
        """"ACCEPT" or "DROP", in capitals; None where it is not known."""
        return next((rule.target.upper() for rule in self.of(base) if rule.rule is None and rule.target), None)
