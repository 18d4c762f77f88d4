"""One network namespace as it is now, read through netlink.

Each call opens its socket inside the namespace (in_namespace): 0.3 ms. IPRoute(netns=...) forks a child for it: 6 ms.
pyroute2 is untyped; its `Any` stays in this module and in its neighbours chains.py and lab.py.
"""

from __future__ import annotations

import errno
import os
import socket
import sys
from collections.abc import Callable, Iterable, Mapping
from ipaddress import ip_address, ip_interface, ip_network
from pathlib import Path
from typing import Any

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.rtnl import rt_type
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg

from tracer.model.topology import (
    Address,
    BridgePort,
    FdbEntry,
    Interface,
    Link,
    LinkKey,
    Listener,
    Namespace,
    Neighbor,
    PolicyRule,
    Route,
)
from tracer.topology.chains import read_chains
from tracer.topology.netns import T, identify, in_namespace, leads

IFF_UP, IFF_LOOPBACK = 0x1, 0x8
RTEXT_FILTER_SKIP_STATS = 8  # counters are half of a link's message
RTM_F_CLONED = 0x200  # a cached copy of another route
RTNH_F_DEAD = 0x1
NUD_STATES = {0x01: "INCOMPLETE", 0x02: "REACHABLE", 0x04: "STALE", 0x08: "DELAY", 0x10: "PROBE", 0x20: "FAILED",
              0x80: "PERMANENT"}  # NOARP (0x40) and NONE are not neighbours: `ip neigh` leaves them out too
NUD_PERMANENT = 0x80
TICKS = os.sysconf("SC_CLK_TCK")  # a second
# What the kernel answers where no route leads on: no route, unreachable, prohibit, blackhole, throw.
PORT_STATES = ("disabled", "listening", "learning", "forwarding", "blocking")  # BR_STATE_*
# Settings that decide a packet's way, by their files; those of single devices are in the links' own messages.
SYSCTLS = (
    "net.ipv4.ip_forward", "net.ipv4.icmp_echo_ignore_all", "net.ipv6.icmp.echo_ignore_all",
    *(f"net.ipv4.conf.all.{name}" for name in ("forwarding", "rp_filter", "route_localnet", "arp_ignore")),
    *(f"net.ipv6.conf.all.{name}" for name in ("forwarding", "disable_ipv6")),
    *(f"net.bridge.bridge-nf-call-{name}" for name in ("iptables", "ip6tables", "arptables")),
    "net.netfilter.nf_conntrack_count", "net.netfilter.nf_conntrack_max",
)
DEVICE_SYSCTLS = {"ipv4": ("forwarding", "rp_filter", "route_localnet", "arp_ignore"),
                  "ipv6": ("forwarding", "disable_ipv6")}
NO_ROUTE = {errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EACCES, errno.EINVAL, errno.EAGAIN}


def read_namespace(path: str, name: str, paths: Mapping[int, str], *, listeners: bool = True) -> Namespace:
    """The namespace at `path`. `paths` (number -> path) are the namespaces in which ends of veth pairs are looked for.

    Without `listeners` it takes a third of the time: /proc/net/tcp walks the whole machine's table of connections, 8 ms.
    OSError if the namespace is gone or forbidden.
    """
    own = identify(path)

    def read() -> Namespace:
        with IPRoute() as ip:
            rows = list(ip.link("dump", ext_mask=RTEXT_FILTER_SKIP_STATS))
            numbers: dict[int, int] = {}
            _resolve(ip, rows, numbers, paths)
            links = _links(rows, own, numbers, _addresses(ip))
            fdb = _fdb(ip) if any(link.kind == "bridge" for link in links.values()) else ()
            return Namespace(netns=own, name=name, path=path, links=links, fdb=fdb, neighbors=_neighbors(ip),
                             routes=_routes(ip), rules=_rules(ip), chains=read_chains(), sysctls=_sysctls(rows),
                             listeners=_listeners() if listeners else None)

    return _run(path, read)


def read_links(path: str, indexes: Iterable[int], told: Iterable[bytes], nsids: dict[int, int],
               paths: Mapping[int, str]) -> dict[int, Link]:
    """Devices of the namespace at `path`, without their addresses: those that are `told`, by the kernel's announcements
    (RTM_NEWLINK), and these others, as far as they are there.

    `nsids` are its ids of other namespaces as far as they are known already (id -> number), and get what is found.
    """
    own, rows = identify(path), [_row(message) for message in told]

    def read() -> None:
        with IPRoute() as ip:
            for index in indexes:
                try:
                    rows.extend(ip.link("get", index=index))
                except NetlinkError as error:
                    if error.code != errno.ENODEV:
                        raise
            _resolve(ip, rows, nsids, paths)

    if indexes or _unresolved(rows, nsids):
        _run(path, read)
    return _links(rows, own, nsids)


def former_links(told: Iterable[bytes]) -> dict[int, Link]:
    """Devices that are gone, as the kernel announced them. What the veth devices led to cannot be found any more."""
    return _links([_row(message) for message in told], None, {})


def route_get(path: str, destination: Address, source: Address | None = None, iif: int | None = None,
              mark: int | None = None) -> Route | None:
    """The route that the kernel itself would take from the namespace at `path`; None where it says that there is none.

    `iif` (an ifindex) asks for a packet received there, which `source` then must name the sender of: the kernel answers
    "no route" also where it does not forward at all. The answer's destination is the one address asked for, not the
    table's prefix.
    """
    bare, _, zone = str(destination).partition("%")
    query: dict[str, Any] = {"dst": bare, "family": _family(destination)}
    if source is not None:
        query["src"] = str(source)
    if iif is not None:
        query["iif"] = iif
    if mark is not None:
        query["mark"] = mark

    def ask() -> Route | None:
        if zone:
            query["oif"] = int(zone) if zone.isdecimal() else socket.if_nametoindex(zone)
        with IPRoute() as ip:
            try:
                answer = list(ip.route("get", **query))
            except NetlinkError as error:
                if error.code in NO_ROUTE:
                    return None
                raise
            return next(iter(_route(answer[0])), None) if answer else None

    return _run(path, ask)


def _run(path: str, function: Callable[[], T]) -> T:
    try:
        return in_namespace(path, function)
    except NetlinkError as error:  # the callers know OSError only
        raise OSError(error.code, os.strerror(error.code), path) from error


def _family(address: Address) -> int:
    return socket.AF_INET if address.version == 4 else socket.AF_INET6


def _row(message: bytes) -> Any:
    row = ifinfmsg(message)
    row.decode()
    return row


def _unresolved(rows: list[Any], nsids: Mapping[int, int]) -> set[int]:
    return {row.get("link_netnsid") for row in rows if _kind(row) == "veth"} - {None, *nsids}


def _resolve(ip: Any, rows: list[Any], nsids: dict[int, int], paths: Mapping[int, str]) -> None:
    nsids |= _by_nsid(ip, _unresolved(rows, nsids),
                      {number: path for number, path in paths.items() if number not in nsids.values()})


def _links(rows: list[Any], own: int | None, nsids: Mapping[int, int],
           addresses: Mapping[int, list[Interface]] | None = None) -> dict[int, Link]:
    links = {}
    for row in rows:
        index, kind, nsid = row["index"], _kind(row), row.get("link_netnsid")
        peer = None
        if kind == "veth" and row.get("link"):
            where = own if nsid is None else nsids.get(nsid)
            peer = LinkKey(where, row.get("link")) if where is not None else None
        links[index] = Link(
            ifindex=index, name=row.get("ifname"), kind=kind, mac=row.get("address"), mtu=row.get("mtu") or 0,
            up=bool(row["flags"] & IFF_UP), loopback=bool(row["flags"] & IFF_LOOPBACK), master=row.get("master"),
            peer=peer, addresses=tuple(addresses.get(index, ())) if addresses else (), carrier=row.get("carrier") != 0,
            operstate=(row.get("operstate") or "unknown").lower(), port=_port(row))
    return links


def _port(row: Any) -> BridgePort | None:
    info = row.get("linkinfo")
    data = info.get("slave_data") if info and info.get("slave_kind") == "bridge" else None
    if data is None:
        return None
    state = data.get_attr("IFLA_BRPORT_STATE")
    floods = (data.get_attr(f"IFLA_BRPORT_{name}_FLOOD") != 0 for name in ("UNICAST", "MCAST", "BCAST"))
    return BridgePort(PORT_STATES[state] if state in range(len(PORT_STATES)) else str(state),
                      bool(data.get_attr("IFLA_BRPORT_MODE")), bool(data.get_attr("IFLA_BRPORT_ISOLATED")),
                      *floods)


def _sysctls(rows: list[Any]) -> dict[str, str]:
    """Of the calling thread's network namespace. A setting that this kernel does not have is left out."""
    found = {}
    for name in SYSCTLS:
        try:
            found[name] = Path("/proc/sys", name.replace(".", "/")).read_text(encoding="ascii").strip()
        except OSError:
            continue
    for row in rows:
        of_device = row.get("af_spec")
        six = of_device.get("af_inet6") if of_device else None
        values: dict[str, Any] = {"ipv4": of_device.get("af_inet") if of_device else None,
                                  "ipv6": six.get("inet6_conf") if six else None}
        device = row.get("ifname").replace(".", "/")  # as `sysctl` writes eth0.100
        for version, names in DEVICE_SYSCTLS.items():
            found |= {f"net.{version}.conf.{device}.{name}": str(values[version][name])
                      for name in names if name in (values[version] or ())}
    return found


def _listeners() -> tuple[Listener, ...] | None:
    """Of the calling thread's network namespace. The kernel lists sockets that listen before all others of TCP."""
    found = []
    for protocol, waiting in (("tcp", "0A"), ("udp", "07")):  # TCP_LISTEN; TCP_CLOSE: not connected
        for file in (protocol, f"{protocol}6"):
            try:
                with open(f"/proc/thread-self/net/{file}", encoding="ascii") as rows:
                    next(rows, None)
                    for row in rows:
                        local, _remote, state = row.split()[1:4]
                        address, _, port = local.partition(":")
                        if state == waiting:
                            found.append(Listener(protocol, _in_hex(address), int(port, 16)))
                        elif protocol == "tcp":
                            break
            except FileNotFoundError:  # a kernel without IPv6
                continue
            except OSError:
                return None
    return tuple(found)


def _in_hex(text: str) -> Address:
    """As /proc/net/tcp writes an address: 32-bit words, each in the machine's byte order."""
    data = bytes.fromhex(text)
    return ip_address(b"".join(int.from_bytes(data[at:at + 4], sys.byteorder).to_bytes(4, "big")
                               for at in range(0, len(data), 4)))


def _kind(row: Any) -> str | None:
    kind: str | None = row.get(("linkinfo", "kind"))
    return kind


def _by_nsid(ip: Any, wanted: set[int], paths: Mapping[int, str]) -> dict[int, int]:
    """The kernel's local ids of other namespaces -> numbers. It tells the id of a given namespace, never the reverse."""
    found: dict[int, int] = {}
    for number, path in paths.items():
        if wanted <= found.keys():
            break
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:  # gone meanwhile
            continue
        try:
            nsid = ip.get_netnsid(fd=fd)["nsid"]
        except NetlinkError:  # not a namespace any more
            continue
        finally:
            os.close(fd)
        if nsid in wanted and leads(path, number):  # it was so when it was opened, too
            found[nsid] = number
    return found


def _addresses(ip: Any) -> dict[int, list[Interface]]:
    found: dict[int, list[Interface]] = {}
    for row in ip.addr("dump"):
        address = row.get("local") or row.get("address")  # on a point-to-point link "address" is the other end's
        if address:
            found.setdefault(row["index"], []).append(ip_interface(f"{address}/{row['prefixlen']}"))
    return found


def _fdb(ip: Any) -> tuple[FdbEntry, ...]:
    """Rows without a master are the devices' own multicast filters, and one address comes once for each VLAN."""
    entries = {
        FdbEntry(mac=row.get("lladdr"), bridge=row.get("master"), port=row["ifindex"],
                 local=bool(row["state"] & NUD_PERMANENT), age=_age(row)): None
        for row in ip.fdb("dump") if row.get("master") and row.get("lladdr")}
    return tuple(entries)


def _age(row: Any) -> float | None:
    """struct nda_cacheinfo's ndm_updated, in ticks: what `brctl showmacs` calls the ageing timer."""
    times = row.get("cacheinfo")
    return times["ndm_updated"] / TICKS if times else None


def _neighbors(ip: Any) -> tuple[Neighbor, ...]:
    return tuple(
        Neighbor(address=ip_address(row.get("dst")), ifindex=row["ifindex"], mac=row.get("lladdr"),
                 state=NUD_STATES[row["state"]])
        for row in ip.neigh("dump") if row.get("dst") and row["state"] in NUD_STATES)


def _routes(ip: Any) -> tuple[Route, ...]:
    return tuple(route for row in ip.route("dump") if not row["flags"] & RTM_F_CLONED for route in _route(row)
                 if route.kind != "anycast")


INVERT = 2  # FIB_RULE_INVERT
REFUSALS = {6: "blackhole", 7: "unreachable", 8: "prohibit"}  # FR_ACT_* of <linux/fib_rules.h>


def _rules(ip: Any) -> tuple[PolicyRule, ...]:
    """The selectors that people use; a rule with others is still there, by its table."""
    found = []
    for family, version in ((socket.AF_INET, 4), (socket.AF_INET6, 6)):
        for row in ip.rule("dump", family=family):
            table, refusal = row.get("table") or 0, REFUSALS.get(row["action"])
            if not table and not refusal:  # "goto", "nop"
                continue
            source, destination = (ip_network((row.get(name), row[f"{name}_len"]), strict=False) if row.get(name) else None
                                   for name in ("src", "dst"))
            inverted = bool(row["flags"] & INVERT)
            parts = [*(["not"] if inverted else []), "from", str(source or "all")]
            parts += ["to", str(destination)] if destination else []
            parts += ["fwmark", hex(row.get("fwmark"))] if row.get("fwmark") else []
            parts += ["iif", row.get("iifname")] if row.get("iifname") else []
            parts += ["oif", row.get("oifname")] if row.get("oifname") else []
            parts += ["lookup", str(table)] if table else [str(refusal)]
            found.append(PolicyRule(version, row.get("priority") or 0, table, " ".join(parts), source, destination,
                                    inverted))
    return tuple(found)


def _route(row: Any) -> Iterable[Route]:
    """A row as a Route, or as one for each next hop of a multipath route."""
    kind = rt_type.get(row["type"], str(row["type"]))
    anywhere = "0.0.0.0" if row["family"] == socket.AF_INET else "::"
    destination = ip_network(f"{row.get('dst') or anywhere}/{row['dst_len']}", strict=False)
    source = row.get("prefsrc")
    for hop in row.get("multipath") or [row]:
        via = hop.get("via")
        gateway = hop.get("gateway") or (via["addr"] if via else None)
        index = hop.get("oif") if hop is row else hop["oif"]
        yield Route(destination=destination, gateway=ip_address(gateway) if gateway else None, ifindex=index,
                    table=row.get("table") or row["table"], kind=kind, source=ip_address(source) if source else None,
                    metric=row.get("priority") or 0)
