"""The base chains that a namespace's packets pass: nftables' by netlink, iptables-legacy's by its tables' names.

Nothing is loaded or created: where nf_tables is a module that is not loaded, there are no chains and it is not asked.
"""

from __future__ import annotations

import os
from pathlib import Path

from tracer.model.topology import BaseChain
from tracer.topology.nfnetlink import GETCHAIN, Connection, every, unpack, word

HOOKS = ("prerouting", "input", "forward", "output", "postrouting")  # NF_INET_*, in the kernel's order
DEVICE_HOOKS = ("ingress", "egress")  # NF_NETDEV_*; of inet, ingress is number 5 (NF_INET_INGRESS)
OWN = "dnettrace-"  # tables that dnettrace traces rules with (tracer/kernel/rules.py) decide nothing
# The built-in chains of each iptables table with their hooks' priorities (include/uapi/linux/netfilter_ipv4.h).
LEGACY = {
    "raw": (("PREROUTING", -300), ("OUTPUT", -300)),
    "mangle": tuple((hook.upper(), -150) for hook in HOOKS),
    "nat": (("PREROUTING", -100), ("INPUT", 100), ("OUTPUT", -100), ("POSTROUTING", 100)),
    "filter": (("INPUT", 0), ("FORWARD", 0), ("OUTPUT", 0)),
    "security": (("INPUT", 50), ("FORWARD", 50), ("OUTPUT", 50)),
}


def read_chains() -> tuple[BaseChain, ...] | None:
    """The chains of the calling thread's network namespace, by hook and priority; None if they could not be read."""
    try:
        chains = [*_nftables(), *_legacy("ip"), *_legacy("ip6")]
    except OSError:
        return None
    return tuple(sorted(chains, key=lambda chain: ((*HOOKS, *DEVICE_HOOKS).index(chain.hook), chain.priority)))


def _nftables() -> list[BaseChain]:
    if not is_loaded("nf_tables"):
        return []
    connection = Connection()
    try:
        rows = connection.dump(GETCHAIN, "")
    finally:
        connection.close()
    found = []
    for family, row in rows:
        table, hook = word(row.get(1)), unpack(row.get(4, b""))  # NFTA_CHAIN_TABLE, NFTA_CHAIN_HOOK
        names = DEVICE_HOOKS if family == "netdev" else (*HOOKS, DEVICE_HOOKS[0]) if family == "inet" else HOOKS
        number = int.from_bytes(hook.get(1, b"\xff"), "big")
        if family != "arp" and number < len(names) and not table.startswith(OWN):
            # NFTA_HOOK_PRIORITY, NFTA_HOOK_DEV, NFTA_HOOK_DEVS; NFTA_CHAIN_NAME, NFTA_CHAIN_TYPE
            devices = every(hook.get(4, b"")) or ([hook[3]] if 3 in hook else [])
            priority = int.from_bytes(hook[2], "big", signed=True)
            found.append(BaseChain(family, table, word(row.get(3)), names[number], priority,
                                   kind=word(row.get(7)), devices=tuple(map(word, devices))))
    return found


def _legacy(family: str) -> list[BaseChain]:
    """The file lists the tables that this namespace uses; it is missing where the kernel has no iptables-legacy."""
    try:
        tables = Path(f"/proc/thread-self/net/{family}_tables_names").read_text(encoding="ascii").split()
    except FileNotFoundError:
        return []
    return [BaseChain(family=family, table=table, name=chain, hook=chain.lower(), priority=priority, legacy=True)
            for table in tables for chain, priority in LEGACY.get(table, ())]


def is_loaded(module: str) -> bool:
    """False only for a module that a request would load: one that depmod lists and the kernel does not have yet."""
    if os.path.exists(f"/sys/module/{module}"):
        return True
    try:
        return f"/{module}.ko" not in Path(f"/lib/modules/{os.uname().release}/modules.dep").read_text(encoding="utf-8")
    except OSError:  # no modules at all: it is built in, or nothing can be loaded
        return True
