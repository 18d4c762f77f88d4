"""TCP connections instead of single SYNs, for where a program stands between: a proxy connects to whom it serves only once
it has accepted a connection itself.

The kernel makes the packets. A probe's connection is held until finish(), which resets it, so that it leaves no state at
either side.
"""

from __future__ import annotations

import errno
import socket
import struct
import time

from tracer.topology.netns import in_namespace
from tracer.traffic.answer import SendFailure, State
from tracer.traffic.by_port import Probe
from tracer.traffic.ports import reserve_port
from tracer.traffic.tcp import SynProber, state_of

_RESET_AT_CLOSE = struct.pack("ii", 1, 0)  # struct linger


class ConnectProber(SynProber):
    """As SynProber, with connections that are completed. `ttl` of the reserved sockets is the kernel's own."""

    def _prepare(self) -> None:
        """Nothing to import."""

    def send(self, seq: int) -> int | SendFailure:
        at = seq % len(self._reserved)
        self.finish(seq)
        address = str(self.destination) if self.destination.version == 6 else f"::ffff:{self.destination}"
        if self._reserved[at].family == socket.AF_INET:
            address = str(self.destination)
        before = time.monotonic_ns()
        try:
            self._reserved[at].connect((address, self.port))
        except OSError as error:
            if error.errno not in (errno.EINPROGRESS, errno.ECONNREFUSED):  # a refusal is read as every answer is
                return SendFailure.to(self.destination, error)
        self._probes[at] = Probe(seq, 0)
        return before

    def finish(self, seq: int) -> None:
        at = seq % len(self._reserved)
        self._probes[at] = None
        self._reserved[at].setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_AT_CLOSE)
        self._reserved[at].close()
        self._reserved[at] = in_namespace(self._namespace, lambda: reserve_port(self.base_port + at, self.kind))

    def _state(self, data: bytes, probe: Probe) -> State | None:
        """The kernel chose the sequence number, and answers to others do not come to a port that is held."""
        return state_of(data, None)
