"""The base chains that a namespace's packets pass: nftables' by netlink, iptables-legacy's by its tables' names.

Nothing is loaded or created: where nf_tables is a module that is not loaded, there are no chains and it is not asked.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.nfnetlink.nftsocket import NFT_MSG_GETCHAIN, NFTSocket, nft_chain_msg

from tracer.model.topology import BaseChain

HOOKS = ("prerouting", "input", "forward", "output", "postrouting")  # NF_INET_*, in the kernel's order
FAMILIES = {1: "inet", 2: "ip", 10: "ip6"}  # NFPROTO_*; arp, bridge and netdev see no routed packet
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
    except (NetlinkError, OSError):
        return None
    return tuple(sorted(chains, key=lambda chain: (HOOKS.index(chain.hook), chain.priority)))


def _nftables() -> list[BaseChain]:
    if not _loaded("nf_tables"):
        return []
    with NFTSocket(nfgen_family=0) as socket:  # NFPROTO_UNSPEC: all families at once
        rows: list[Any] = socket.request_get(nft_chain_msg(), NFT_MSG_GETCHAIN)
    found = []
    for row in rows:
        hook, family = row.get_attr("NFTA_CHAIN_HOOK"), FAMILIES.get(row["nfgen_family"])
        if hook is None or family is None:
            continue
        number = hook.get_attr("NFTA_HOOK_HOOKNUM")
        if number < len(HOOKS):  # 5 is inet's ingress, which belongs to one device
            found.append(BaseChain(
                family=family, table=row.get_attr("NFTA_CHAIN_TABLE"), name=row.get_attr("NFTA_CHAIN_NAME"),
                hook=HOOKS[number], priority=hook.get_attr("NFTA_HOOK_PRIORITY")))
    return found


def _legacy(family: str) -> list[BaseChain]:
    """The file lists the tables that this namespace uses; it is missing where the kernel has no iptables-legacy."""
    try:
        tables = Path(f"/proc/thread-self/net/{family}_tables_names").read_text(encoding="ascii").split()
    except FileNotFoundError:
        return []
    return [BaseChain(family=family, table=table, name=chain, hook=chain.lower(), priority=priority, legacy=True)
            for table in tables for chain, priority in LEGACY.get(table, ())]


def _loaded(module: str) -> bool:
    """False only for a module that a request would load: one that depmod lists and the kernel does not have yet."""
    if os.path.exists(f"/sys/module/{module}"):
        return True
    try:
        return f"/{module}.ko" not in Path(f"/lib/modules/{os.uname().release}/modules.dep").read_text(encoding="utf-8")
    except OSError:  # no modules at all: it is built in, or nothing can be loaded
        return True
