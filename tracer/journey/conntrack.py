"""Conntrack entries from the bytes that an event carries (struct tuples of bpf/event.h)."""

from __future__ import annotations

import sys
from functools import lru_cache
from ipaddress import ip_address

from tracer.model.journey import Direction, Entry

_SIZE = 40  # of struct nf_conntrack_tuple
_ICMP = (1, 58)


@lru_cache(4096)  # of a connection, all packets have the same
def entry(tuples: bytes) -> Entry | None:
    """None for a packet without an entry."""
    if len(tuples) < 2 * _SIZE or not any(tuples):
        return None
    return Entry(_direction(tuples[:_SIZE]), _direction(tuples[_SIZE:2 * _SIZE]))


def _direction(data: bytes) -> Direction:
    # nf_conntrack_tuple.src.l3num is an address family: AF_INET, AF_INET6
    size = 4 if int.from_bytes(data[18:20], sys.byteorder) == 2 else 16
    src, dst = str(ip_address(data[:size])), str(ip_address(data[20:20 + size]))
    first, second = int.from_bytes(data[16:18], "big"), int.from_bytes(data[36:38], "big")
    return Direction(src, dst, icmp_id=first) if data[38] in _ICMP else Direction(src, dst, first, second)
