"""Route lookups: whose packet a lookup was for, and which row of which table it found.

The kernel's event names the table and the next hop it chose; the row with its prefix, and those that lost, are looked up in
the table as netlink gave it.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import ip_address

from tracer.journey.stack import own_frames
from tracer.model.frame import IPV4
from tracer.model.journey import RouteChoice
from tracer.model.layout import Event
from tracer.model.topology import Address, Namespace, Route

# These functions decide on a way. The kernel also asks its tables for other reasons: rp_filter, iptables' addrtype,
# `ip route get`.
RECEIVED = frozenset(("ip_route_input_slow", "ip_route_input_rcu", "ip_route_input_noref", "ip6_route_input",
                      "ip6_route_input_lookup", "ip6_pol_route_input"))
SENT = frozenset(("ip_route_output_key_hash_rcu", "ip_route_output_key_hash", "ip6_route_output_flags",
                  "ip6_route_output_flags_noref", "ip6_pol_route_output"))
CHECKING = frozenset(("fib_validate_source", "__fib_validate_source", "inet_rtm_getroute", "inet6_rtm_getroute",
                      "nft_do_chain", "ipt_do_table", "ip6t_do_table"))
REROUTING = frozenset(("ip_route_me_harder", "ip6_route_me_harder"))  # after a change of the destination in OUTPUT
TABLES = {253: "default", 254: "main", 255: "local"}
LOCAL, MAIN = 255, 254
_NUMBERS = struct.Struct("=IIII")


@dataclass(frozen=True, slots=True)
class Lookup:
    """struct lookup of bpf/event.h, in the order of its members."""

    source: Address | None  # None: not chosen yet
    destination: Address
    gateway: Address | None
    table: int
    error: int
    in_ifindex: int


def parse(event: Event) -> Lookup:
    return _parse(event.protocol, event.packet)


@lru_cache(4096)  # the packets of a connection ask the same
def _parse(protocol: int, packet: bytes) -> Lookup:
    size = 4 if protocol == IPV4 else 16
    source, destination, gateway = (ip_address(packet[at:at + size]) for at in (0, 16, 32))
    table, error, in_ifindex, gateway_family = _NUMBERS.unpack_from(packet, 48)
    if gateway_family and gateway_family != (2 if size == 4 else 10):  # a gateway of the other family: RFC 5549
        gateway = ip_address(packet[32:32 + (16 if size == 4 else 4)])
    return Lookup(None if source.is_unspecified else source, destination, gateway if gateway_family else None, table, error,
                  in_ifindex)


def decides(event: Event) -> bool:
    """Did this lookup decide on a packet's way?"""
    frames = frozenset(own_frames(event.stack))
    return bool(frames & (RECEIVED | SENT)) and not frames & CHECKING


def reroutes(event: Event) -> bool:
    """Was it for the packet that the CPU was at, whose destination had just changed?"""
    return bool(frozenset(own_frames(event.stack)) & REROUTING)


def makes_another(event: Event) -> bool:
    """Was it for a packet that was just being made: a program's, an answer, an error?"""
    return bool(frozenset(own_frames(event.stack)) & SENT)


def choice(lookup: Lookup, device: str | None, ifindex: int, namespace: Namespace | None) -> RouteChoice:
    """What the lookup chose, with the row of the table that has it."""
    # without policy rules the kernel keeps the local table's rows in main's trie (fib_trie_unmerge)
    tables = (LOCAL, MAIN) if lookup.table == MAIN else (lookup.table,)
    rows = [row for row in namespace.routes if row.table in tables and lookup.destination in row.destination] \
        if namespace and lookup.destination.version in (4, 6) else []
    rows.sort(key=lambda row: (-row.destination.prefixlen, row.metric))
    found = next((row for row in rows if _is(row, lookup, ifindex)), None)
    table = found.table if found else lookup.table
    return RouteChoice(
        TABLES.get(table, str(table)), found.kind if found else None, str(found.destination) if found else None,
        str(lookup.gateway) if lookup.gateway else None, device,
        str(found.source) if found and found.source else None, _rule(lookup, namespace),
        tuple(_words(row, namespace) for row in rows if row is not found) if namespace and found else ())


def _rule(lookup: Lookup, namespace: Namespace | None) -> str | None:
    rules = [rule for rule in namespace.rules if rule.table == lookup.table
             and rule.version == lookup.destination.version] if namespace and lookup.table not in TABLES else []
    return rules[0].words if len(rules) == 1 else None


def _is(row: Route, lookup: Lookup, ifindex: int) -> bool:
    if lookup.error:
        return row.kind in ("unreachable", "prohibit", "blackhole", "throw")
    return row.gateway == lookup.gateway and (row.ifindex == ifindex or row.kind == "local")


def _words(row: Route, namespace: Namespace) -> str:
    """As `ip route` writes it."""
    link = namespace.links.get(row.ifindex) if row.ifindex else None
    return " ".join(filter(None, (
        "" if row.kind == "unicast" else row.kind, destination_words(str(row.destination)),
        f"via {row.gateway}" if row.gateway else "", f"dev {link.name}" if link else "")))


def destination_words(destination: str) -> str:
    if destination in ("0.0.0.0/0", "::/0"):
        return "default"
    address, _, length = destination.partition("/")
    return address if length == str(ip_address(address).max_prefixlen) else destination


def sentence(route: RouteChoice, lookup: Lookup) -> str:
    """For a person, in the words of `ip route`."""
    if lookup.error:
        return f"no route to {lookup.destination} in table {route.table}"
    if route.kind == "local":
        return f"{lookup.destination} is local (table {route.table})"
    row = destination_words(route.destination) if route.destination else f"{lookup.destination} by a row that was not read"
    via = f" via {route.gateway}" if route.gateway else ""
    rule = f", by rule: {route.rule}" if route.rule else ""
    return f"{row}{via} dev {route.device} (table {route.table}{rule})"
