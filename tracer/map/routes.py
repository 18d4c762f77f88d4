"""The route table as `route -n` writes it, and which row an address matches, with the arithmetic."""

from __future__ import annotations

from ipaddress import IPv4Address

from tracer.journey.case import USUAL_TABLES, rows
from tracer.map.view import View
from tracer.model.picture import Row, Table
from tracer.model.topology import Address, Namespace, Route, Topology

_REJECTS = ("unreachable", "prohibit", "blackhole")
_COLUMNS = ("in", "destination", "gateway", "genmask", "flags", "metric", "by")
_FLAGS = "U: in use, G: by a gateway, H: one host alone, !: refuses"


def routes(topology: Topology, start: Namespace | None = None, goal: Address | None = None) -> list[Table]:
    """Those of `start` (None: of the host), all or with the one that `goal` takes."""
    space = start or View(topology).host
    if space is None:
        return []
    if goal is not None:
        return [_asked(topology, space, goal)]
    found = []
    for version in (4, 6):
        mine = [row for row in space.routes if row.destination.version == version and row.table == 254
                and not row.destination.is_multicast]
        mine.sort(key=_order)
        if mine:
            found.append(Table(
                f"routes{version}", f"Routes of {topology.node(space.netns)}, IPv{version}",
                f"Where a packet goes next: the row with the longest genmask that fits. {_FLAGS}.",
                f"{'route -n' if version == 4 else 'route -6 -n'}, or: ip -{version} route", _COLUMNS,
                tuple(_row(topology, space, row) for row in mine), _others(space, version)))
    return found


def _order(row: Route) -> tuple[int, int, int]:
    return -row.destination.prefixlen, int(row.destination.network_address), row.metric


def _others(space: Namespace, version: int) -> tuple[str, ...]:
    """Tables that `route -n` does not show, and that are asked before."""
    return tuple(f"`ip rule` {rule.effect}: {rule.words}" for rule in space.rules
                 if rule.version == version and rule.table not in USUAL_TABLES)


def _row(topology: Topology, space: Namespace, row: Route, mark: str = "", note: str = "") -> Row:
    link = space.links.get(row.ifindex or 0)
    four = row.destination.version == 4
    return Row((topology.node(space.netns), str(row.destination.network_address),
                str(row.gateway) if row.gateway else "0.0.0.0" if four else "::",
                str(row.destination.netmask) if four else f"/{row.destination.prefixlen}", _flags(row), str(row.metric),
                link.name if link else "–"), mark, note)


def _flags(row: Route) -> str:
    if row.kind in _REJECTS:
        return "!H" if row.destination.prefixlen == row.destination.max_prefixlen else "!"
    return "U" + ("G" if row.gateway else "") + ("H" if row.destination.prefixlen == row.destination.max_prefixlen else "")


def _asked(topology: Topology, space: Namespace, goal: Address) -> Table:
    """All rows for its IP version with what the address is with their masks. The local table is asked first."""
    best = next(iter(rows(space, goal)), None)
    name = topology.node(space.netns)
    mine = [row for row in space.routes if row.destination.version == goal.version and row.table in USUAL_TABLES
            and not row.destination.is_multicast and (row.table != 255 or row is best)]
    mine.sort(key=lambda row: (row.table != 255, *_order(row)))
    found = []
    for row in mine:
        note = arithmetic(goal, row)
        note += ", but another row wins" if goal in row.destination and row is not best else ""
        note += ("; in table local, which is asked first" if row.table == 255 else "")
        found.append(_row(topology, space, row, ">" if row is best else "", note))
    notes = [verdict(space, name, goal, best), *(_others(space, goal.version))]
    return Table("routes", f"{goal} in the routes of {name}",
                 "The address & each row's genmask: where that is the row's destination, the row fits; of those that "
                 f"fit, the longest genmask wins, then the smallest metric. {_FLAGS}.", f"ip route get {goal}", _COLUMNS,
                 tuple(found), tuple(notes))


def arithmetic(goal: Address, row: Route) -> str:
    """"172.17.0.2 & 255.255.0.0 = 172.17.0.0: fits"."""
    network = row.destination
    made = type(goal)(int(goal) & int(network.netmask))
    mask = str(network.netmask) if isinstance(goal, IPv4Address) else f"/{network.prefixlen}"
    fits = made == network.network_address
    return f"{goal} & {mask} = {made}: {'fits' if fits else f'not {network.network_address}'}"


def verdict(space: Namespace, name: str, goal: Address, best: Route | None) -> str:
    if best is None:
        return f"No row fits: {name} has no route to {goal}."
    link = space.links.get(best.ifindex or 0)
    if best.kind == "local":
        return f"{goal} is {name}'s own address: packets for it are delivered there."
    if best.kind != "unicast":
        return f"The row refuses it: {best.kind}."
    by = f"by {link.name}" if link else "by a device that is not known"
    if best.gateway:
        return f"It goes to the gateway {best.gateway} {by}: the frame gets the gateway's MAC, the packet keeps {goal}."
    return f"It goes out {by} directly: the frame gets the MAC of {goal} itself."
