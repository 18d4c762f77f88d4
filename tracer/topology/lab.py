"""The built-in lab: a host as Docker leaves it, in network namespaces of its own, so that everything can be tried.

    outside  198.51.100.1 (and 203.0.113.1) ── eth0 198.51.100.2  host ─┬─ docker0      172.17.0.1 ─┬─ c1 172.17.0.2
                                                                        │                           └─ c2 172.17.0.3
                                                                        └─ br-…         172.18.0.1 ─── c3 172.18.0.2

All of it is named namespaces and what is in them. The machine's own namespace is not touched: devices are created
inside the lab's, kernel settings and rules are written by threads that have entered them.
"""

from __future__ import annotations

import array
import contextlib
import fcntl
import os
import secrets
import socket
import struct
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_interface
from pathlib import Path
from typing import Any

from tracer.errors import UserError
from tracer.topology import netns
from tracer.topology.lab_rules import rules
from tracer.topology.netns import NAMED, in_namespace

PREFIX = "dnettrace-lab-"
NODES = ("host", "c1", "c2", "c3", "outside")
WEB = "br-6c6162776562"  # the second network: Docker names bridges by twelve digits of the network's id ("labweb")
READY = "dnettrace lab: complete"  # the alias that docker0 gets last: without it, up() was interrupted

# device of the host -> its addresses
BRIDGES = {"docker0": ("172.17.0.1/16", "fd00:17::1/64"), WEB: ("172.18.0.1/16", "fd00:18::1/64")}
# container -> (bridge, addresses, MAC: Docker makes it from the IPv4 address)
CONTAINERS = {
    "c1": ("docker0", ("172.17.0.2/16", "fd00:17::2/64"), "02:42:ac:11:00:02"),
    "c2": ("docker0", ("172.17.0.3/16", "fd00:17::3/64"), "02:42:ac:11:00:03"),
    "c3": (WEB, ("172.18.0.2/16", "fd00:18::2/64"), "02:42:ac:12:00:02"),
}
UPLINK = ("198.51.100.2/24", "2001:db8:1::2/64")
OUTSIDE = ("198.51.100.1/24", "2001:db8:1::1/64")
FAR = ("203.0.113.1/32", "2001:db8:2::1/128")  # on the outside's lo: behind a router, as the Internet is

SIOCETHTOOL, ETHTOOL_GLINK = 0x8946, 0x0A
IFA_F_NODAD = 0x02  # an address that waits for duplicate detection cannot be used for a second


@dataclass(frozen=True, slots=True)
class LabStatus:
    up: bool  # complete
    namespaces: dict[str, str]  # node -> path, of those that exist; some without `up`: an interrupted `lab up`
    bridge_filter: bool | None  # bridge-nf-call-iptables of the host; None: br_netfilter is not loaded, or not up


def path(node: str) -> str:
    return f"{NAMED}/{PREFIX}{node}"


def named() -> dict[str, str]:
    """The lab's namespaces by the names that they go by in it; its host is not among them."""
    found = netns.named()
    return {node: path(node) for node in NODES[1:] if PREFIX + node in found}


def status() -> LabStatus:
    if os.geteuid() != 0:
        raise UserError("Looking into the lab needs root: run it with sudo.")
    existing = {node: path(node) for node in NODES if PREFIX + node in netns.named()}
    if set(existing) != set(NODES):
        return LabStatus(False, existing, None)
    return LabStatus(in_namespace(path("host"), _is_ready), existing, in_namespace(path("host"), _bridge_filter))


def up() -> bool:
    """Make the lab; True if that was needed. What an interrupted call left is removed first, and so is what a failing
    call has made. UserError if the machine lacks something."""
    with _alone():
        if status().up:
            return False
        _remove()
        try:
            _create()
        except BaseException:
            _remove()
            raise
        return True


def down() -> bool:
    """Remove the lab; True if there was any of it."""
    with _alone():
        return _remove()


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """One command at a time makes or removes the lab."""
    if os.geteuid() != 0:
        raise UserError("The lab is made of network namespaces, which needs root: run it with sudo.")
    Path(NAMED).mkdir(exist_ok=True)
    fd = os.open(NAMED, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _remove() -> bool:
    from pyroute2.netns import remove

    found = [node for node in NODES if os.path.exists(path(node))]
    for node in found:
        remove(path(node))
    return bool(found)


def _create() -> None:
    from pyroute2.netns import create

    for node in NODES:
        create(path(node))
        in_namespace(path(node), _plain_ipv6)
    in_namespace(path("outside"), _make_outside)
    in_namespace(path("host"), _make_host)
    for node in CONTAINERS:
        in_namespace(path(node), lambda node=node: _make_container(node))  # type: ignore[misc]
    for node in NODES:
        in_namespace(path(node), _settle)
    in_namespace(path("host"), _make_rules)
    in_namespace(path("host"), _make_ready)


# -- what follows runs inside the namespace that it is about ------------------------------------------------------


def _sysctl(name: str, value: int) -> None:
    Path("/proc/sys/net", name).write_text(f"{value}\n", encoding="ascii")


def _plain_ipv6() -> None:
    """Usable at once: no duplicate address detection. Before the first device is there, which inherits it."""
    if os.path.exists("/proc/sys/net/ipv6"):
        _sysctl("ipv6/conf/default/accept_dad", 0)
        _sysctl("ipv6/conf/default/dad_transmits", 0)
        _sysctl("ipv6/conf/default/accept_ra", 0)


def _make_outside() -> None:
    with _iproute() as ip:
        _set_up(ip, "lo", FAR)


def _make_host() -> None:
    with _iproute() as ip:
        _set_up(ip, "lo")
        ip.link("add", ifname="eth0", kind="veth", peer={"ifname": "eth0", "net_ns_fd": path("outside")})
        in_namespace(path("outside"), _connect_outside)
        _set_up(ip, "eth0", UPLINK)
        _default_routes(ip, OUTSIDE)
        for bridge, addresses in BRIDGES.items():
            ip.link("add", ifname=bridge, kind="bridge", address=_mac())
            _set_up(ip, bridge, addresses)
        for node, (bridge, _, mac) in CONTAINERS.items():
            port = f"veth{secrets.token_hex(4)[:7]}"
            ip.link("add", ifname=port, kind="veth",
                    peer={"ifname": "eth0", "address": mac, "net_ns_fd": path(node)})
            ip.link("set", index=_index(ip, port), master=_index(ip, bridge), state="up")
    _sysctl("ipv4/ip_forward", 1)
    _sysctl("ipv6/conf/all/forwarding", 1)
    for version in ("iptables", "ip6tables"):
        if os.path.exists(f"/proc/sys/net/bridge/bridge-nf-call-{version}"):
            _sysctl(f"bridge/bridge-nf-call-{version}", 1)


def _connect_outside() -> None:
    with _iproute() as ip:
        _set_up(ip, "eth0", OUTSIDE)


def _make_container(node: str) -> None:
    bridge, addresses, _ = CONTAINERS[node]
    with _iproute() as ip:
        _set_up(ip, "lo")
        _set_up(ip, "eth0", addresses)
        _default_routes(ip, BRIDGES[bridge])


def _settle() -> None:
    """The kernel notices within a second that a device's other end is up, and drops what is sent until then. Asked for
    the link's state by ETHTOOL_GLINK, it notices at once (linkwatch_sync_dev)."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        for _, device in socket.if_nameindex():
            value = array.array("I", (ETHTOOL_GLINK, 0))
            request = struct.pack("16sP16x", device.encode(), value.buffer_info()[0])  # struct ifreq
            with contextlib.suppress(OSError):  # a device that cannot tell has nothing to notice
                fcntl.ioctl(any_socket, SIOCETHTOOL, request)


def _make_rules() -> None:
    newest_first = list(reversed(BRIDGES.items()))
    for position, (version, tool) in enumerate(((4, "iptables-restore"), (6, "ip6tables-restore"))):
        networks = {bridge: ip_interface(addresses[position]).network for bridge, addresses in newest_first}
        text = rules(version, networks, published=ip_interface(CONTAINERS["c2"][1][position]).ip)
        try:
            subprocess.run([tool], input=text, check=True, capture_output=True, text=True)
        except FileNotFoundError:
            raise UserError(f"The lab needs {tool}, which is not installed: install the package iptables.") from None
        except subprocess.CalledProcessError as error:
            said = " ".join(error.stderr.split())
            raise UserError(f"{tool} cannot write the lab's rules ({said}): the kernel lacks what Docker itself needs, "
                            "such as nf_tables, nf_nat or xt_addrtype.") from None


def _make_ready() -> None:
    with _iproute() as ip:
        ip.link("set", index=_index(ip, "docker0"), ifalias=READY)


def _is_ready() -> bool:
    with _iproute() as ip:
        return any(link.get("ifalias") == READY for link in ip.link("dump"))


def _bridge_filter() -> bool | None:
    try:
        return Path("/proc/sys/net/bridge/bridge-nf-call-iptables").read_text(encoding="ascii").strip() == "1"
    except OSError:
        return None


def _iproute() -> Any:
    from pyroute2 import IPRoute

    return IPRoute()


def _index(ip: Any, device: str) -> int:
    return int(ip.link_lookup(ifname=device)[0])


def _set_up(ip: Any, device: str, addresses: tuple[str, ...] = ()) -> None:
    index = _index(ip, device)
    for interface in map(ip_interface, addresses):
        flags = {"flags": IFA_F_NODAD} if interface.version == 6 else {}
        ip.addr("add", index=index, address=str(interface.ip), prefixlen=interface.network.prefixlen, **flags)
    ip.link("set", index=index, state="up")


def _default_routes(ip: Any, gateways: tuple[str, ...]) -> None:
    for interface in map(ip_interface, gateways):
        anywhere = "0.0.0.0/0" if interface.version == 4 else "::/0"
        ip.route("add", dst=anywhere, gateway=str(interface.ip))


def _mac() -> str:
    """As Docker makes a bridge's: locally administered, random."""
    return "02:42:" + ":".join(f"{byte:02x}" for byte in secrets.token_bytes(4))
