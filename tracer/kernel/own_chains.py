"""What stands where netfilter links would, on kernels without them: empty chains of a private nftables table. Each is run at
its hook and priority as a link would be, and a probe on the function that runs chains (bpf/probes.c, on_chain) tells ours by
their names.

The table belongs to a netlink socket (NFT_TABLE_F_OWNER, Linux 5.12) and goes with it, however the process ends. It is there
only while a probe is under way. An empty chain with the policy accept decides nothing.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Sequence

from tracer.model.probes import HOOKS, HookPoint
from tracer.topology import nfnetlink
from tracer.topology.nfnetlink import Connection, nested, number, text

OWNER = 2  # NFT_TABLE_F_OWNER
FAMILIES = {4: "ip", 6: "ip6"}


def _prefix() -> str:
    return f"{os.getpid():08x}"


def mark() -> int:
    """What the names of this process's chains begin with, as the kernel reads 8 bytes at once."""
    return int.from_bytes(_prefix().encode(), sys.byteorder)


class OwnChains:
    """Those of one namespace, made in the calling thread's. OSError where that cannot be."""

    def __init__(self, points: Sequence[HookPoint], versions: Iterable[int]) -> None:
        self._connection = Connection()
        try:
            self._connection.commit([request for version in versions for request in _requests(FAMILIES[version], points)])
        except OSError:
            self.close()
            raise

    def close(self) -> None:
        self._connection.close()


def _requests(family: str, points: Iterable[HookPoint]) -> Iterator[tuple[int, str, bytes]]:
    table = text(1, f"dnettrace-{os.getpid()}-hooks")
    yield nfnetlink.NEWTABLE, family, table + number(2, OWNER)
    for point in points:
        name = f"{_prefix()}{chr(ord('a') + point.slot)}-{point.hook}"
        place = number(1, HOOKS.index(point.hook)) + number(2, point.priority)
        yield nfnetlink.NEWCHAIN, family, table + text(3, name) + nested(4, place) + text(7, "filter")
