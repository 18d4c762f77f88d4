"""What TCP and UDP probes share: a block of source ports, of which each stands for one probe at a time."""

from __future__ import annotations

import secrets
import select
import socket
import struct
import time
from abc import abstractmethod
from contextlib import ExitStack
from dataclasses import dataclass
from typing import ClassVar

from tracer.errors import UserError
from tracer.model.selection import PORTS
from tracer.model.topology import Address
from tracer.topology.netns import in_namespace
from tracer.traffic import filters
from tracer.traffic.answer import Answer, SendFailure, State
from tracer.traffic.icmp import ERRORS, ICMP_OF, Error, parse_error
from tracer.traffic.ports import release, reserve
from tracer.traffic.prober import Prober
from tracer.traffic.sockets import (
    Packet,
    attach_filter,
    bind_source,
    check_versions,
    open_raw,
    packets,
    source_towards,
    take_icmp,
)


@dataclass(frozen=True, slots=True)
class Probe:
    """The last one that left from its port."""

    seq: int
    token: int  # 32 random bits


class PortProber(Prober):
    """The segments or datagrams are scapy's, sent through the namespace's own IP stack by a raw IP socket, and answers are
    read by it as well, whoever they are from. ICMP errors come in by a second one.

    `source` is the address that the kernel would choose; None where it has no way to the destination yet. `base_port` is
    from free_base_port(). UserError where a socket cannot be had as asked, OSError where the namespace is gone.
    """

    protocol: ClassVar[int]
    kind: ClassVar[socket.SocketKind]
    checksum_at: ClassVar[int]  # bytes into the transport header

    def __init__(self, namespace: str, destination: Address, port: int, source: Address | None, base_port: int, *,
                 ttl: int | None = None) -> None:
        if not 1 <= port <= 65535:
            raise UserError(f"There is no port {port}: give 1 to 65535.")
        check_versions(source, destination)
        self.destination = destination
        self.port = port
        self.base_port = base_port
        self._source = source
        self._namespace = namespace
        self._probes: list[Probe | None] = [None] * PORTS
        self._buffer = bytearray(1 << 16)
        self._prepare()
        with ExitStack() as stack:
            in_namespace(namespace, lambda: self._open(stack, ttl))
            self._stack = stack.pop_all()

    def close(self) -> None:
        self._stack.close()

    def fileno(self) -> int:
        """Of an epoll over both sockets."""
        return self._epoll.fileno()

    def send(self, seq: int) -> int | SendFailure:
        """Send one probe, from port base_port + seq % PORTS. Returns CLOCK_MONOTONIC just before, in ns. What an earlier
        probe from the same port is answered from then on is lost."""
        probe = Probe(seq, secrets.randbits(32))
        try:
            if self._source is None:
                self._source = in_namespace(self._namespace, lambda: source_towards(self.destination))
            message = self._message(self.base_port + seq % PORTS, probe.token, self._source)
            before = time.monotonic_ns()
            self._socket.sendto(message, self._target)
        except OSError as error:
            return SendFailure.to(self.destination, error)
        self._probes[seq % PORTS] = probe
        return before

    def receive(self) -> list[Answer]:
        """What has arrived about our probes: answers to their ports, and ICMP errors that quote one."""
        version = self.destination.version
        found = [self._answer(packet) for packet in packets(self._socket, version, self._buffer)]
        found += [self._error(packet) for packet in packets(self._icmp, version, self._buffer)]
        return [answer for answer in found if answer]

    def _open(self, stack: ExitStack, ttl: int | None) -> None:
        """Runs inside the namespace."""
        version = self.destination.version
        self._socket = stack.enter_context(open_raw(version, self.protocol, ttl))
        attach_filter(self._socket, filters.ports(version, self.base_port))
        if version == 6:  # the kernel knows the source better than we; what arrives is checked as well
            self._socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_CHECKSUM, self.checksum_at)
        self._target = bind_source(self._socket, self._source, self.destination)
        self._icmp = stack.enter_context(open_raw(version, ICMP_OF[version]))
        take_icmp(self._icmp, version, ERRORS[version])
        attach_filter(self._icmp, filters.errors(version, self.protocol, self.base_port))
        self._reserved = reserve(self.base_port, self.kind)
        stack.callback(release, self._reserved)
        self._epoll = stack.enter_context(select.epoll())
        for one in (self._socket, self._icmp):
            self._epoll.register(one, select.EPOLLIN)

    def _answer(self, packet: Packet) -> Answer | None:
        if len(packet.data) < 8:
            return None
        source_port, to = struct.unpack_from("!HH", packet.data)
        probe = self._probe(to)
        state = self._state(packet.data, probe) if probe else None
        if probe is None or state is None:
            return None
        if source_port != self.port or not self._is_from_destination(packet.source):
            state = "astray"
        return Answer(probe.seq, "reply", packet.source, packet.ttl, len(packet.data), packet.monotonic_ns, state=state)

    def _error(self, packet: Packet) -> Answer | None:
        error = parse_error(packet.data, self.destination.version)
        if error is None or error.protocol != self.protocol or len(error.head) < 8:
            return None
        port, to = struct.unpack_from("!HH", error.head)
        probe = self._probe(port)
        if probe is None or to != self.port or error.destination != self.destination.packed \
                or not self._is_quoted(error.head, probe):
            return None
        return Answer(probe.seq, "error", packet.source, packet.ttl, len(packet.data), packet.monotonic_ns, error.type,
                      error.code, self._error_state(error, packet.source))

    def _probe(self, port: int) -> Probe | None:
        at = port - self.base_port
        return self._probes[at] if 0 <= at < PORTS else None

    def _is_from_destination(self, source: Address) -> bool:
        return source.packed == self.destination.packed

    @abstractmethod
    def _prepare(self) -> None:
        """Import scapy, before there is anything to time."""

    @abstractmethod
    def _message(self, source_port: int, token: int, source: Address) -> bytes:
        """What follows the IP header. For IPv6 the kernel fills in the checksum."""

    @abstractmethod
    def _state(self, data: bytes, probe: Probe) -> State | None:
        """What came to the probe's port says this of the asked one; None if it is no answer to the probe."""

    def _is_quoted(self, head: bytes, probe: Probe) -> bool:
        """Is this the beginning of that very probe, as far as can be told?"""
        return True

    def _error_state(self, error: Error, source: Address) -> State:
        return "unreachable"
