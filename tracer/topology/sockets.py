"""Which process listens where a packet would arrive, and whether it is a proxy that hands on to a container."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, ip_address
from typing import Any

from pyroute2 import DiagSocket
from pyroute2.netlink.exceptions import NetlinkError

from tracer.model.topology import Address
from tracer.topology.netns import in_namespace

# include/net/tcp_states.h; a UDP socket without a peer is in TCP_CLOSE
LISTENING = {"tcp": (socket.IPPROTO_TCP, 1 << 10), "udp": (socket.IPPROTO_UDP, 1 << 7)}


@dataclass(frozen=True, slots=True)
class Relay:
    """Where a proxy connects to."""

    address: Address
    port: int


@dataclass(frozen=True, slots=True)
class Listener:
    """Who holds a listening (TCP) or bound (UDP) socket."""

    pid: int | None  # None: the kernel itself, or a process that cannot be seen from here
    program: str | None  # its file's name as it was started: "docker-proxy", "nginx"; untrusted text
    relay: Relay | None = None  # None: no proxy, or one that does not tell its goal (rootlesskit's, Podman's)


def listener(path: str, transport: str, address: Address, port: int) -> Listener | None:
    """Whom a packet to `address`:`port` reaches that is delivered in the namespace at `path`; None: nobody listens.

    `transport`: "tcp" or "udp". Of several sockets that share the port by SO_REUSEPORT, and of several processes that share
    one socket, the first is named. OSError where the namespace is gone, or the kernel lists no sockets.
    """
    protocol, states = LISTENING[transport]

    def ask() -> list[Any]:
        with DiagSocket() as diag:
            diag.bind()
            families = (socket.AF_INET, socket.AF_INET6) if address.version == 4 else (socket.AF_INET6,)
            return [row for family in families
                    for row in diag.get_sock_stats(family=family, states=states, protocol=protocol)]

    try:
        rows = in_namespace(path, ask)
    except NetlinkError as error:  # the callers know OSError only
        raise OSError(error.code, os.strerror(error.code), path) from error
    found = [(score, row["idiag_inode"]) for row in rows if row["idiag_sport"] == port and (score := _score(row, address))]
    if not found:
        return None
    first = None
    for pid, argv in _holders(max(found, key=lambda one: one[0])[1], os.stat(path).st_ino):
        holder = Listener(pid, os.path.basename(argv[0]), relay(argv))
        if holder.relay:  # the daemon that opened a proxy's socket may hold it too
            return holder
        first = first or holder
    return first or Listener(None, None)


def relay(argv: list[str]) -> Relay | None:
    """The goal of Docker's userland proxy, by its command line (cmd/docker-proxy/main_linux.go of moby); None for others."""
    if os.path.basename(argv[0]) != "docker-proxy":
        return None
    options: Mapping[str, str] = dict(re.findall(r"(?:^|\0)--?(container-ip|container-port)[=\0]([^\0]*)", "\0".join(argv)))
    try:
        return Relay(ip_address(options["container-ip"]), int(options["container-port"]))
    except (KeyError, ValueError):
        return None


def _score(row: Any, address: Address) -> int:
    """How well the socket fits, as the kernel's compute_score() has it: its own address before any, IPv4's sockets before
    IPv6's that take IPv4 too. One that is bound to a device is last, since only that device's packets reach it. 0: never."""
    bound = ip_address(row["idiag_src"])
    if address.version == 4 and bound.version == 6:
        mapped = bound.ipv4_mapped
        if mapped is None and (not bound.is_unspecified or row.get_attr("INET_DIAG_SKV6ONLY")):
            return 0
        bound = mapped or IPv4Address(0)
        score = 1
    else:
        score = 2
    if bound != address and not bound.is_unspecified:
        return 0
    return score + (4 if bound == address else 0) + (0 if row["idiag_if"] else 8)


def _holders(number: int, netns_inode: int) -> Iterator[tuple[int, list[str]]]:
    """(pid, command line) of the namespace's processes that hold the socket with this inode, the lowest pid first."""
    wanted = f"socket:[{number}]"
    for pid in sorted(int(name) for name in os.listdir("/proc") if name.isdecimal()):
        at = f"/proc/{pid}"
        try:
            if os.stat(f"{at}/ns/net").st_ino != netns_inode or not any(
                    _is(f"{at}/fd/{fd}", wanted) for fd in os.listdir(f"{at}/fd")):
                continue
            with open(f"{at}/cmdline", "rb") as file:
                line = file.read().rstrip(b"\0").decode(errors="replace")
        except OSError:  # it ended meanwhile, or may not be looked at
            continue
        if line:
            yield pid, line.split("\0")


def _is(link: str, wanted: str) -> bool:
    try:
        return os.readlink(link) == wanted
    except OSError:  # closed meanwhile
        return False
