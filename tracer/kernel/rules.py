"""Which rules the run's packets meet: nftables' own trace messages, in each watched namespace.

A private table sets `meta nftrace` on the run's packets alone. The table belongs to a netlink socket of this process
(NFT_TABLE_F_OWNER, Linux 5.12): whatever way the process ends, the kernel takes it away. The table is there only while a
probe is under way: other packets pay nothing. (A dormant one cannot be woken: Linux 6.9 refuses updates of a table with an
owner.) Crossing a namespace clears the mark (skb_scrub_packet), so each namespace has a table of its own; within one it
stays through every rewrite.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

from tracer.model.journey import Packet
from tracer.model.probes import Trace
from tracer.model.selection import PORTS, Selection
from tracer.model.topology import Namespace
from tracer.topology import nfnetlink
from tracer.topology.chains import is_loaded
from tracer.topology.netns import here, in_namespace, leads
from tracer.topology.nfnetlink import Connection, attribute, nested, number, text, unpack, word

TRACE_GROUP = 9  # NFNLGRP_NFTRACE
SOL_NETLINK, ADD_MEMBERSHIP = 270, 1
RECEIVE_BYTES = 8 << 20  # 20,000 messages; the kernel takes that much only while they wait
AT_ONCE = 4096  # messages: whoever else traces rules there may make them without end
SO_RCVBUFFORCE = 33
OWNER = 2  # NFT_TABLE_F_OWNER
PRIORITY = -350  # before raw, behind defragmentation
LOWEST = -(2**31) + 1
PREROUTING, OUTPUT = 0, 3  # NF_INET_*, NF_BR_*
DEVICE_HOOKS = {"ingress": 0, "egress": 1}
LOGGERS = {"ip": 2, "ip6": 10}  # NFPROTO_*
KINDS = {1: "policy", 2: "return", 3: "rule"}  # NFT_TRACETYPE_*
VERDICTS = {0: "drop", 1: "accept", 2: "stolen", 3: "queue", -1: "continue", -3: "jump", -4: "goto", -5: "return"}
ARP = 0x0806
ETHERTYPES = {2: 0x0800, 3: ARP, 10: 0x86DD}  # by NFPROTO_*
CONNTRACK = -200  # NF_IP_PRI_CONNTRACK

Matches = tuple[tuple[int, bytes], ...]  # (EtherType, expressions)


@dataclass(frozen=True, slots=True)
class _Chain:
    """A chain of our own."""

    family: str
    hook: int
    priority: int
    matches: Matches
    device: str | None = None


class RuleTracer:
    """Opens nothing until watch() is called. A context manager."""

    def __init__(self, matches: Matches, translated: Matches = ()) -> None:
        """`translated`: to be looked for once more behind conntrack, where there is NAT."""
        self._matches, self._translated = matches, translated
        self._watched: dict[int, _Watched] = {}
        self._paths: dict[int, str] = {}  # of namespaces that are watched or untraced
        self._armed = False
        self.untraced: dict[int, str] = {}  # netns -> why rules are not traced there

    def __enter__(self) -> RuleTracer:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def close(self) -> None:
        for watched in self._watched.values():
            watched.close()
        self._watched.clear()

    def watch(self, namespace: Namespace) -> None:
        """Trace rules in this namespace, whenever armed. Why not, where it cannot be, is in `untraced`."""
        if leads(self._paths.get(namespace.netns, ""), namespace.netns):
            return
        self._let_go(namespace.netns)
        if namespace.chains is not None and all(chain.legacy for chain in namespace.chains):
            return  # nothing sends trace messages
        self._paths[namespace.netns] = namespace.path
        if namespace.chains is None:
            self.untraced[namespace.netns] = "its tables could not be read"
            return

        def open_one() -> _Watched:
            if here() != namespace.netns:
                raise OSError(errno.ESTALE, "its process ended")
            for family in {chain.family for chain in namespace.chains or () if chain.legacy}:
                path = Path(f"/proc/sys/net/netfilter/nf_log/{LOGGERS[family]}")
                logger = path.read_text().strip() if path.exists() else "NONE"
                if logger != "NONE":
                    raise OSError(0, f"iptables-legacy would write each traced packet to the log of {logger}")
            return _Watched(list(_own_chains(namespace, self._matches, self._translated)))

        try:
            self._watched[namespace.netns] = watched = in_namespace(namespace.path, open_one)
            if self._armed:
                watched.arm()
        except OSError as error:
            if error.errno != errno.ESTALE and os.path.exists(namespace.path):  # else it ended: no packet can be there
                self.untraced[namespace.netns] = _why(error)

    def let_go(self) -> None:
        """Of namespaces that ended: the sockets keep them alive, with their devices."""
        for netns, path in tuple(self._paths.items()):
            if not leads(path, netns):
                self._let_go(netns)

    def _let_go(self, netns: int) -> None:
        self._paths.pop(netns, None)
        self.untraced.pop(netns, None)
        if watched := self._watched.pop(netns, None):
            watched.close()

    def arm(self) -> None:
        if not self._armed:
            self._armed = True
            self._switch("arm")

    def disarm(self) -> None:
        if self._armed:
            self._armed = False
            self._switch("disarm")

    def read(self) -> tuple[list[Trace], list[int]]:
        """The messages that are there, and the namespaces that lost some, once a loss. Does not wait."""
        traces: list[Trace] = []
        lost: list[int] = []
        for netns, watched in self._watched.items():
            found, losses = watched.read(netns)
            traces += found
            lost += [netns] * losses
        return traces, lost

    def _switch(self, how: str) -> None:
        for netns, watched in tuple(self._watched.items()):
            try:
                getattr(watched, how)()
            except OSError as error:
                self.untraced[netns] = _why(error)
                self._watched.pop(netns).close()


def _why(error: OSError) -> str:
    if error.errno in (errno.EOPNOTSUPP, errno.EINVAL):
        return "this nf_tables has no tables with an owner (Linux 5.12 brought them)"
    return f"no table could be added: {error.strerror}" if error.errno else str(error.strerror or error)


class _Watched:
    """One namespace's table and its messages. Made inside of the namespace; OSError where that cannot be."""

    def __init__(self, chains: list[_Chain]) -> None:
        self._name = f"dnettrace-{os.getpid()}"
        self._families = sorted({chain.family for chain in chains})
        self._making = list(self._requests(chains))
        self._tables: dict[tuple[str, str], int] = {}  # (family, name) -> handle, when last armed
        self._control = Connection()
        self._traces = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, nfnetlink.NETLINK_NETFILTER)
        try:
            try:
                self._traces.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, RECEIVE_BYTES)
            except PermissionError:  # without CAP_NET_ADMIN in the initial user namespace
                self._traces.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BYTES)
            self._traces.bind((0, 0))
            self._traces.setsockopt(SOL_NETLINK, ADD_MEMBERSHIP, TRACE_GROUP)
            self._traces.setblocking(False)
            self.arm()  # to know at once whether it can be had
            self.disarm()
        except OSError:
            self.close()
            raise

    def close(self) -> None:
        self._control.close()
        self._traces.close()

    def arm(self) -> None:
        self._control.commit(self._making)
        # attributes: NFTA_TABLE_NAME, NFTA_TABLE_HANDLE
        self._tables = {(family, word(row.get(1))): int.from_bytes(row.get(4, b""), "big")
                        for family, row in self._control.dump(nfnetlink.GETTABLE, "")}

    def disarm(self) -> None:
        self._control.commit([(nfnetlink.DELTABLE, family, text(1, self._name)) for family in self._families])

    def read(self, netns: int) -> tuple[list[Trace], int]:
        found: list[Trace] = []
        lost = 0
        while len(found) < AT_ONCE:
            try:
                data = self._traces.recv(1 << 16)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                lost += 1
                continue
            for kind, family, body in nfnetlink.messages(data):
                if kind == nfnetlink.SUBSYSTEM << 8 | nfnetlink.TRACE:
                    trace = decode(netns, family, body, self._tables)
                    if not trace.table.startswith("dnettrace-"):
                        found.append(trace)
        return found, lost

    def _requests(self, chains: list[_Chain]) -> Iterator[tuple[int, str, bytes]]:
        mark = _expression("immediate", number(1, 1) + nested(2, attribute(1, b"\1"))) + \
            _expression("meta", number(2, 12) + number(3, 1))  # NFTA_META_KEY: NFT_META_NFTRACE
        for family in self._families:
            yield nfnetlink.NEWTABLE, family, text(1, self._name) + number(2, OWNER)
        own = text(1, self._name)
        for at, chain in enumerate(chains):
            name = f"trace{at}"
            place = number(1, chain.hook) + number(2, chain.priority) + (text(3, chain.device) if chain.device else b"")
            yield nfnetlink.NEWCHAIN, chain.family, own + text(3, name) + nested(4, place) + text(7, "filter")
            for protocol, match in chain.matches:
                if chain.family == "inet" and protocol == ARP:
                    continue  # none there
                expressions = _cmp(_meta(1), protocol.to_bytes(2, "big")) + match + mark
                yield nfnetlink.NEWRULE, chain.family, own + text(2, name) + nested(4, expressions)


def _own_chains(namespace: Namespace, matches: Matches, translated: Matches) -> Iterator[_Chain]:
    """One before all others wherever packets come into their sight, and one behind connection tracking where that is at
    work: a rule that looks at an entry would bring it to a namespace that had none."""
    chains = [chain for chain in namespace.chains or () if not chain.legacy]
    devices = {link.name for link in namespace.links.values()}
    for family, seen in (("inet", ("ip", "ip6", "inet")), ("bridge", ("bridge",))):
        priorities = [chain.priority for chain in chains if chain.family in seen and chain.hook not in DEVICE_HOOKS]
        if priorities:
            for hook_number in (PREROUTING, OUTPUT):
                yield _Chain(family, hook_number, max(min(*priorities, PRIORITY + 1) - 1, LOWEST), matches)
    if any(chain.kind == "nat" for chain in chains) and is_loaded("nft_ct"):
        yield _Chain("inet", PREROUTING, CONNTRACK + 1, translated)
    for hook, at in DEVICE_HOOKS.items():
        for device in sorted({device for chain in chains if chain.hook == hook for device in chain.devices} & devices):
            before = min(chain.priority for chain in chains if chain.hook == hook and device in chain.devices)
            yield _Chain("netdev", at, max(before - 1, LOWEST), matches, device)


def selected(selection: Selection) -> tuple[Matches, Matches]:
    """What RuleTracer takes."""
    return tuple(_matches(selection)), tuple(_translated(selection))


def alike(packet: Packet) -> Iterator[tuple[int, bytes]]:
    """Packets of this one's flow and direction: from and to the same addresses, of the same protocol, to the same port."""
    if packet.family not in (4, 6):
        return
    v4 = packet.family == 4
    source, destination = ip_address(packet.src).packed, ip_address(packet.dst).packed
    number = {"tcp": 6, "udp": 17, "icmp": 1, "icmpv6": 58}.get(packet.proto)
    yield 0x0800 if v4 else 0x86DD, _cmp(_payload(1, 12 if v4 else 8, len(source)), source) + \
        _cmp(_payload(1, 16 if v4 else 24, len(destination)), destination) + \
        (_is(16, number) if number else b"") + \
        (_cmp(_payload(2, 2, 2), packet.dport.to_bytes(2, "big")) if packet.dport else b"")


def _matches(selection: Selection) -> Iterator[tuple[int, bytes]]:
    """The packets that bpf/filter.h follows. Addresses are left out where the run's own ICMP identifier or ports are in the
    packet: what else has these costs a few messages that belong to no journey."""
    v4 = selection.version == 4
    ether, icmp = (0x0800, 1) if v4 else (0x86DD, 58)
    protocol = {"tcp": 6, "udp": 17}.get(selection.transport, icmp)
    token = selection.token.to_bytes(2, "big")
    ports = (~(PORTS - 1) & 0xFFFF).to_bytes(2, "big")
    if selection.transport in ("tcp", "udp"):
        own = [(token + bytes(2), ports + bytes(2)), (bytes(2) + token, bytes(2) + ports)]
    else:
        kinds = b"\xf7" if v4 else b"\xfe"  # echo request and reply differ in one bit
        own = [(bytes([0 if v4 else 128]) + bytes(3) + token, kinds + bytes(3) + b"\xff\xff")]
    header = 20 if v4 else 40
    for value, mask in own:
        yield ether, _is(16, protocol) + _masked(2, 0, value, mask)
        # an error quotes the packet behind its own 8 bytes
        yield ether, _is(16, icmp) + _cmp(_payload(2, 8 + (9 if v4 else 6), 1), bytes([protocol])) + \
            _masked(2, 8 + header, value, mask)
    if relay := selection.relay:  # to or from whom it connects to, by its address and port
        for address_at, port_at in ((16 if v4 else 24, 2), (12 if v4 else 8, 0)):
            address = relay.address.packed
            yield ether, _is(16, protocol) + _cmp(_payload(1, address_at, len(address)), address) + \
                _cmp(_payload(2, port_at, 2), relay.port.to_bytes(2, "big"))
    for target in selection.addresses:
        address = target.packed
        if v4 and target.version == 4:
            yield ARP, _cmp(_payload(1, 24, 4), address)
        elif not v4 and target.version == 6:  # solicitation, advertisement
            yield ether, _is(16, icmp) + _masked(2, 0, b"\x86", b"\xfe") + _cmp(_payload(2, 8, 16), address)
            yield ether, _is(16, icmp) + _cmp(_payload(2, 0, 1), b"\x87") + _cmp(_payload(2, 8, 16), address)


def _translated(selection: Selection) -> Iterator[tuple[int, bytes]]:
    """Answers, and errors, that have another port or identifier until their translation is undone: the connection's entry
    has the run's own."""
    v4 = selection.version == 4
    protocol = {"tcp": 6, "udp": 17}.get(selection.transport, 1 if v4 else 58)
    mask = PORTS - 1 if selection.transport in ("tcp", "udp") else 0
    yield (0x0800 if v4 else 0x86DD), _cmp(_original(10), bytes([protocol])) + _cmp(
        _original(11) + _mask((~mask & 0xFFFF).to_bytes(2, "big")), selection.token.to_bytes(2, "big"))


def _original(key: int) -> bytes:
    """Of the connection's first packet: NFT_CT_PROTOCOL (10), or source port or identifier, NFT_CT_PROTO_SRC (11)."""
    return _expression("ct", number(1, 1) + number(2, key) + attribute(3, b"\0"))


def _expression(name: str, data: bytes) -> bytes:
    return nested(1, text(1, name) + nested(2, data))


def _meta(key: int) -> bytes:
    return _expression("meta", number(1, 1) + number(2, key))


def _payload(base: int, offset: int, size: int) -> bytes:
    return _expression("payload", number(1, 1) + number(2, base) + number(3, offset) + number(4, size))


def _cmp(load: bytes, value: bytes) -> bytes:
    return load + _expression("cmp", number(1, 1) + number(2, 0) + nested(3, attribute(1, value)))


def _is(key: int, value: int) -> bytes:
    return _cmp(_meta(key), bytes([value]))


def _masked(base: int, offset: int, value: bytes, mask: bytes) -> bytes:
    return _cmp(_payload(base, offset, len(mask)) + _mask(mask), value)


def _mask(mask: bytes) -> bytes:
    zeros = nested(5, attribute(1, bytes(len(mask))))
    return _expression(
        "bitwise", number(1, 1) + number(2, 1) + number(3, len(mask)) + nested(4, attribute(1, mask)) + zeros)


def decode(netns: int, family: int, body: bytes, tables: dict[tuple[str, str], int]) -> Trace:
    """A message's attributes (enum nft_trace_attributes). `tables`: (family, name) -> handle, as they were when armed."""
    row = unpack(body)
    verdict = unpack(row.get(5, b""))
    code = struct.unpack(">i", verdict[1])[0] if 1 in verdict else None
    kind = KINDS.get(_number(row.get(4)), "")
    if kind in ("rule", "return"):  # a rule that returns, or the end of a chain's rules: kernels differ in what they call it
        kind = "rule" if 3 in row else "return"
    if kind == "policy":
        code = _number(row.get(16))
    if code is not None and code > 0:
        code &= 0xFF  # NF_VERDICT_MASK: above it is the number of a queue
    name, table = nfnetlink.FAMILIES.get(family, str(family)), word(row.get(1))
    network, link = row.get(8, b""), row.get(7, b"")
    protocol = ETHERTYPES.get(_number(row.get(15)), 0) or (int.from_bytes(link[12:14], "big") if len(link) >= 14 else 0)
    if not protocol and network:
        protocol = {4: 0x0800, 6: 0x86DD}.get(network[0] >> 4, 0)
    return Trace(
        netns, _number(row.get(6)), name, table, word(row.get(2)), kind,
        VERDICTS.get(code, str(code)) if code is not None else "continue",
        _number(row[3]) if 3 in row else None, word(verdict[2]) if 2 in verdict else None,
        _number(row.get(10)), _number(row.get(12)), protocol, network, row.get(9, b""), tables.get((name, table)))


def _number(data: bytes | None) -> int:
    return int.from_bytes(data or b"", "big")
