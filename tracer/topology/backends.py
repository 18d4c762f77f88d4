"""How many packet filter rules a namespace has, by who made them. Reading loads no module and makes no table."""

from __future__ import annotations

from collections import Counter

from tracer.model.health import Tables
from tracer.topology.chains import OWN, is_loaded, read_chains
from tracer.topology.legacy import TOOLS, read_rules
from tracer.topology.netns import inside
from tracer.topology.nfnetlink import GETRULE, Connection, word
from tracer.topology.rulesets import IPTABLES, IPTABLES_TABLES, run

NFT, LEGACY, NATIVE = "iptables-nft", "iptables-legacy", "nftables"


def read_tables(path: str) -> Tables:
    """Of the namespace at `path`. What could not be counted is in `unread`; 0 rules are counted, too."""
    rules: dict[str, int] = {}
    unread = []
    try:
        rules |= inside(path, _nftables)
    except OSError as error:
        unread.append(f"nftables ({error.strerror or error})")
    try:
        rules[LEGACY] = _legacy(path)
    except OSError as error:
        unread.append(f"iptables-legacy ({error.strerror or error})")
    said = run("iptables", "--version")
    return Tables((said or "").strip() or None, rules, tuple(unread))


def _nftables() -> dict[str, int]:
    """Of the calling thread's namespace. A table of iptables' name counts as iptables-nft's."""
    found = Counter({NFT: 0, NATIVE: 0})
    if is_loaded("nf_tables"):
        connection = Connection()
        try:
            for family, row in connection.dump(GETRULE, ""):
                table = word(row.get(1))  # NFTA_RULE_TABLE
                if not table.startswith(OWN):
                    found[NFT if family in IPTABLES and table in IPTABLES_TABLES else NATIVE] += 1
        finally:
            connection.close()
    return dict(found)


def _legacy(path: str) -> int:
    chains = inside(path, read_chains)
    if chains is None:
        raise OSError(0, "its tables cannot be read")
    kinds = tuple(dict.fromkeys((chain.family, True) for chain in chains if chain.legacy and chain.family in TOOLS))
    reading = read_rules(path, kinds) if kinds else ()
    if isinstance(reading, str):
        raise OSError(0, reading)
    return sum(row.rule is not None for row in reading)
