"""How many packet filter rules a namespace has, by who made them. Reading loads no module and makes no table."""

from __future__ import annotations

import os
import shutil
from collections import Counter

from tracer.model.health import Tables
from tracer.model.topology import IPTABLES_TABLES
from tracer.topology.chains import OWN, is_loaded, read_chains
from tracer.topology.counters import TOOLS, read_rules
from tracer.topology.netns import inside
from tracer.topology.nfnetlink import GETRULE, Connection, word
from tracer.topology.rulesets import FOLDERS, IPTABLES, run

NAMED = (("nft", "nf_tables"), ("legacy", "legacy"))  # what is in a file's name -> what `iptables --version` calls it
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
    return Tables(_iptables(), rules, tuple(unread))


def _iptables() -> str | None:
    """What the command says that it is. To say so, nf_tables' opens a socket, which would load nfnetlink: where that is not
    loaded, the name of its file has to do."""
    found = shutil.which("iptables", path=f"{os.environ.get('PATH', '')}:{FOLDERS}")
    if found is None or is_loaded("nfnetlink"):
        return (run("iptables", "--version") or "").strip() or None
    name = os.path.basename(os.path.realpath(found))  # xtables-nft-multi, xtables-legacy-multi
    return next((f"iptables ({backend})" for part, backend in NAMED if part in name), name)


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
