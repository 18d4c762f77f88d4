"""What is wrong with a TCP connection, by its packets alone."""

from __future__ import annotations

from collections import OrderedDict

from tracer.model.journey import Journey

FLOWS = 4096  # directions of connections that are remembered


class Problems:
    """Asked for each journey in order."""

    def __init__(self) -> None:
        self._next: OrderedDict[tuple[str, str, int | None, int | None], int] = OrderedDict()  # sequence number to come

    def of(self, journey: Journey) -> str | None:
        """"reset", "retransmission", or None. A segment counts as sent again where all of its bytes were seen before."""
        packet = journey.packet
        if packet.proto != "tcp" or packet.tcp_flags is None or packet.tcp_seq is None:
            return None
        flags = packet.tcp_flags.split()
        if "RST" in flags:
            return "reset"
        length = (packet.payload or 0) + ("SYN" in flags) + ("FIN" in flags)
        if not length:
            return None
        flow = (packet.src, packet.dst, packet.sport, packet.dport)
        end, expected = (packet.tcp_seq + length) % 2**32, self._next.get(flow)
        again = expected is not None and "SYN" not in flags and (expected - end) % 2**32 < 2**31
        again = again or ("SYN" in flags and expected == end)
        if not again:
            self._next[flow] = end
            self._next.move_to_end(flow)
            if len(self._next) > FLOWS:
                self._next.popitem(last=False)
        return "retransmission" if again else None
