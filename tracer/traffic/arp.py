"""Who has this address: ARP requests, and neighbour solicitations for IPv6.

An ARP request cannot go through the IP stack: it leaves by a packet socket, past every rule but nftables' and ebtables' of
a bridge. A solicitation is an ICMPv6 message like any other and leaves by a raw IP socket.
"""

from __future__ import annotations

import fcntl
import socket
import struct
import time
from collections import deque
from dataclasses import dataclass, field

from tracer.errors import UserError
from tracer.model.topology import Address
from tracer.topology.netns import in_namespace
from tracer.traffic.answer import Answer, SendFailure
from tracer.traffic.filters import arp_replies
from tracer.traffic.icmp import ICMPV6
from tracer.traffic.prober import Prober
from tracer.traffic.sockets import (
    arrival,
    attach_filter,
    bind_source,
    check_versions,
    messages,
    no_root,
    open_raw,
    packets,
    stamp,
    take_icmp,
)

_ETH_P_ARP, _ETH_HEADER, _ARP_LENGTH = 0x0806, 14, 28
_SIOCGIFFLAGS, _SIOCGIFHWADDR = 0x8913, 0x8927
_IFF_NOARP = 0x80
_ARPHRD_ETHER = 1
_ADVERTISEMENT = 136
_TARGET_MAC = 2  # option of an advertisement, RFC 4861 4.6.1
_HOP_LIMIT = 255  # of neighbour discovery: proof that no router was on the way
_PATIENCE_NS = 3_000_000_000  # after which no answer can be expected: the kernel itself gives up after 3 tries of 1 s


@dataclass(frozen=True, slots=True)
class _Request:
    seq: int
    sent_ns: int
    answered_by: set[str] = field(default_factory=set)


class ArpProber(Prober):
    """Requests for one address from a device of the namespace. Every answer is a "reply" in the state "answered", with the
    neighbour's MAC; two MACs for one address show as two answers.

    An answer holds nothing that tells which request it is to: it counts for the newest one that its sender has not
    answered. `source` is an address of the device. UserError where the device cannot ask, OSError where the namespace is
    gone.
    """

    def __init__(self, namespace: str, destination: Address, source: Address, device: str) -> None:
        check_versions(source, destination)
        if destination.is_multicast:
            raise UserError(f"{destination} is a multicast address, which nobody has alone: give a neighbour's address.")
        self.destination = destination
        self._source = source
        self._requests: deque[_Request] = deque(maxlen=64)
        self._buffer = bytearray(1 << 16)
        open_it = self._open_v4 if destination.version == 4 else self._open_v6
        self._socket, self._target, mac = in_namespace(namespace, lambda: open_it(device))
        self._request = self._arp(mac) if destination.version == 4 else self._solicitation(mac)

    def close(self) -> None:
        self._socket.close()

    def fileno(self) -> int:
        return self._socket.fileno()

    def send(self, seq: int) -> int | SendFailure:
        """Send one request. Returns CLOCK_MONOTONIC just before, in ns."""
        before = time.monotonic_ns()
        try:
            self._socket.sendto(self._request, self._target)
        except OSError as error:
            return SendFailure.to(self.destination, error)
        self._requests.append(_Request(seq, before))
        return before

    def receive(self) -> list[Answer]:
        """What has arrived about our requests."""
        found = self._replies() if self.destination.version == 4 else self._advertisements()
        return [answer for answer in found if answer]

    def _replies(self) -> list[Answer | None]:
        return [self._answer(mac_in_arp(data, self.destination, self._source), None, _ARP_LENGTH, arrival(ancillary)[1])
                for data, ancillary, _ in messages(self._socket, self._buffer)]

    def _advertisements(self) -> list[Answer | None]:
        return [self._answer(mac_in_advertisement(packet.data, self.destination), packet.ttl, len(packet.data),
                             packet.monotonic_ns)
                for packet in packets(self._socket, 6, self._buffer) if packet.ttl == _HOP_LIMIT]

    def _answer(self, mac: str | None, ttl: int | None, length: int, at: int) -> Answer | None:
        if mac is None:
            return None
        for request in reversed(self._requests):
            if at - request.sent_ns > _PATIENCE_NS:
                break
            if mac not in request.answered_by:
                request.answered_by.add(mac)
                kind, code = (None, None) if self.destination.version == 4 else (_ADVERTISEMENT, 0)
                return Answer(request.seq, "reply", self.destination, ttl, length, at, kind, code, "answered", mac)
        return None  # to the kernel's own request, or twice

    def _open_v4(self, device: str) -> tuple[socket.socket, tuple[str | int, ...], str]:
        """The socket, where to send to, and the device's MAC. Runs inside the namespace."""
        try:
            opened = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, 0)
        except PermissionError:
            raise no_root() from None
        try:
            mac = _mac_of(opened, device)
            stamp(opened)
            attach_filter(opened, arp_replies(self.destination.packed))
            target = (device, _ETH_P_ARP)
            opened.bind(target)  # nothing arrives before
            return opened, target, mac
        except BaseException:
            opened.close()
            raise

    def _open_v6(self, device: str) -> tuple[socket.socket, tuple[str | int, ...], str]:
        opened = open_raw(6, ICMPV6, _HOP_LIMIT)
        try:
            mac = _mac_of(opened, device)
            take_icmp(opened, 6, [_ADVERTISEMENT])
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device.encode() + b"\0")
            bind_source(opened, _in_zone(self._source, device), self.destination)
            group = f"ff02::1:ff{self.destination.packed[13]:02x}:{self.destination.packed[14]:02x}" \
                    f"{self.destination.packed[15]:02x}"
            return opened, (group, 0, 0, socket.if_nametoindex(device)), mac
        except BaseException:
            opened.close()
            raise

    def _arp(self, mac: str) -> bytes:
        from scapy.layers.l2 import ARP, Ether

        asking = ARP(op="who-has", hwsrc=mac, psrc=str(self._source), pdst=str(self.destination))
        return bytes(Ether(src=mac, dst="ff:ff:ff:ff:ff:ff") / asking)

    def _solicitation(self, mac: str) -> bytes:
        from scapy.layers.inet6 import ICMPv6ND_NS, ICMPv6NDOptSrcLLAddr

        # The kernel computes the checksum.
        target = str(self.destination).partition("%")[0]
        return bytes(ICMPv6ND_NS(tgt=target, cksum=0) / ICMPv6NDOptSrcLLAddr(lladdr=mac))


def mac_in_arp(frame: bytes, neighbour: Address, asker: Address) -> str | None:
    """The MAC that an Ethernet frame's ARP reply says the neighbour has; None where it is no such reply to us."""
    packet = frame[_ETH_HEADER:]
    if len(packet) < _ARP_LENGTH or packet[:8] != b"\0\1\x08\0\6\4\0\2":
        return None
    if packet[14:18] != neighbour.packed or packet[24:28] != asker.packed:
        return None
    return packet[8:14].hex(":")


def mac_in_advertisement(message: bytes, neighbour: Address) -> str | None:
    """The MAC that an ICMPv6 neighbour advertisement says the neighbour has; None where nobody had asked for it."""
    if len(message) < 24 or message[0] != _ADVERTISEMENT or message[1] or message[8:24] != neighbour.packed:
        return None
    if not message[4] & 0x40:  # not solicited
        return None
    at = 24
    while at + 8 <= len(message) and message[at + 1]:  # each option's length is in units of 8 bytes
        if message[at] == _TARGET_MAC:
            return message[at + 2:at + 8].hex(":")
        at += message[at + 1] * 8
    return None


def _mac_of(opened: socket.socket, device: str) -> str:
    """UserError where the device is not there or asks nobody for addresses."""
    try:
        name = struct.pack("16s24x", device.encode())  # struct ifreq
        flags: int = struct.unpack_from("=H", fcntl.ioctl(opened, _SIOCGIFFLAGS, name), 16)[0]
        kind, mac = struct.unpack_from("=H6s", fcntl.ioctl(opened, _SIOCGIFHWADDR, name), 16)
    except OSError as error:
        raise UserError(f"The sender's device {device} cannot be used ({error.strerror or error}): "
                        "`ip link` in its namespace shows the ones it has.") from None
    if kind != _ARPHRD_ETHER or flags & _IFF_NOARP:
        raise UserError(f"{device} has no neighbours to ask for an address: ask by a device of an Ethernet.")
    return str(mac.hex(":"))


def _in_zone(address: Address, device: str) -> Address:
    return type(address)(f"{address}%{device}") if address.is_link_local and "%" not in str(address) else address
