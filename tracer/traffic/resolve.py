"""A hostname as the source itself would resolve it: its hosts file, then its nameservers, asked from its namespace.

A container's own resolver is not run: that would mean its mount namespace and its shared objects in our root process.
What nsswitch.conf, nscd or systemd-resolved's own protocol add inside a container is therefore not known here.
"""

from __future__ import annotations

import logging
import secrets
import socket
import time
from collections.abc import Iterator
from ipaddress import ip_address

from tracer.errors import UserError
from tracer.model.topology import Address
from tracer.topology.netns import in_namespace
from tracer.traffic.etc import ResolvConf, in_hosts, read, resolv_conf

_HERE = "/etc"
_PORT = 53
_TRIES = 2
_WAIT_S = 1.5
_TYPES = {4: 1, 6: 28}  # A, AAAA
_NO_ERROR, _NO_SUCH_NAME = 0, 3  # response codes; every other one says that the server could not answer


class _Silent(Exception):
    """No nameserver answered."""


def resolve(name: str, netns_path: str, etc: str, version: int | None = None) -> Address:
    """The name's first address of IP `version`; without one, IPv4 if there is any.

    `etc` is "/etc" for the host, whose whole resolver is asked, /etc/netns/NAME for a named namespace, and
    /proc/PID/root/etc for a container. UserError where it has no address.
    """
    versions = (version,) if version else (4, 6)
    try:
        ascii_name = name.encode("idna").decode()
    except UnicodeError:
        ascii_name = ""
    if not ascii_name.strip("."):
        raise UserError(f"{name!r} is no hostname: give a container, an IP address, host or a name.")
    if etc == _HERE:
        return in_namespace(netns_path, lambda: _by_libc(ascii_name, version))
    hosts, conf = _files(etc)
    listed = in_hosts(hosts, ascii_name, versions)
    if listed:
        return listed
    asked = ", ".join(str(server) for server in conf.servers)
    try:
        address = in_namespace(netns_path, lambda: _by_dns(ascii_name, conf, versions))
    except _Silent:
        raise UserError(f"{name} could not be resolved: {asked} ({etc}/resolv.conf) did not answer. "
                        "Give an IP address, or mend the way there.") from None
    if address is None:
        kind = f"IPv{version} address" if version else "address"
        raise UserError(f"{name} has no {kind}, says {asked} ({etc}/resolv.conf): mend the name or give an IP address.")
    return address


def _files(etc: str) -> tuple[str, ResolvConf]:
    """As ip-netns(8) has it, a namespace without a file of its own uses the host's. A container never does."""
    hosts, conf = read(etc, "hosts"), read(etc, "resolv.conf")
    if not etc.startswith("/proc/"):
        hosts = read(_HERE, "hosts") if hosts is None else hosts
        conf = read(_HERE, "resolv.conf") if conf is None else conf
    return hosts or "", resolv_conf(conf or "")


def _by_libc(name: str, version: int | None) -> Address:
    families = {4: socket.AF_INET, 6: socket.AF_INET6, None: socket.AF_UNSPEC}
    try:
        rows = socket.getaddrinfo(name, None, families[version], socket.SOCK_RAW)
    except socket.gaierror as error:
        raise UserError(f"{name} could not be resolved on the host ({error.strerror}): mend the name or give an "
                        "IP address.") from None
    addresses = [ip_address(row[4][0]) for row in rows]
    return next((a for a in addresses if a.version == 4), addresses[0])


def _by_dns(name: str, conf: ResolvConf, versions: tuple[int, ...]) -> Address | None:
    """Asks from the namespace of the calling thread."""
    return next((address for full in _candidates(name, conf) for version in versions
                 if (address := _ask_all(full, _TYPES[version], conf))), None)


def _candidates(name: str, conf: ResolvConf) -> Iterator[str]:
    """What to ask for in which order, resolver(5): a name with fewer dots than `ndots` tries the search list first."""
    if name.endswith("."):
        yield name.rstrip(".")
        return
    searched = [f"{name}.{domain}" for domain in conf.search]
    yield from [name, *searched] if name.count(".") >= conf.ndots else [*searched, name]


def _ask_all(name: str, kind: int, conf: ResolvConf) -> Address | None:
    """None where a nameserver says that there is none. _Silent where none said anything."""
    for _ in range(_TRIES):
        for server in conf.servers:
            try:
                return _ask(name, kind, server)
            except (_Silent, OSError):
                continue
    raise _Silent


def _ask(name: str, kind: int, server: Address) -> Address | None:
    from scapy.layers.dns import DNS, DNSQR

    logging.getLogger("scapy").setLevel(logging.CRITICAL)  # what it thinks of a strange answer is no news for the user
    ident = secrets.randbelow(1 << 16)
    query = bytes(DNS(id=ident, rd=1, qd=DNSQR(qname=name, qtype=kind)))
    with socket.socket(socket.AF_INET if server.version == 4 else socket.AF_INET6, socket.SOCK_DGRAM) as asking:
        asking.connect((str(server), _PORT))  # so that only the server's datagrams come in, and a refusal is an error
        asking.send(query)
        deadline = time.monotonic() + _WAIT_S
        while (left := deadline - time.monotonic()) > 0:
            asking.settimeout(left)
            data = asking.recv(65535)
            if len(data) >= 12 and data[:2] == query[:2] and data[2] & 0x80:
                try:
                    return _answer(DNS(data), kind)
                except (_Silent, OSError):
                    raise
                except Exception:  # whatever scapy makes of malformed bytes: not an answer
                    raise _Silent from None
    raise _Silent


def _answer(message: object, kind: int) -> Address | None:
    """The first address of the answer; a recursive nameserver has followed the aliases to it already."""
    code = message.rcode  # type: ignore[attr-defined]
    if code not in (_NO_ERROR, _NO_SUCH_NAME):
        raise _Silent
    records = message.an or []  # type: ignore[attr-defined]
    if not isinstance(records, list):  # before scapy 2.6, a chain of layers
        count = message.ancount  # type: ignore[attr-defined]
        records = [records[at] for at in range(count)]
    return next((ip_address(record.rdata) for record in records if record.type == kind), None)
