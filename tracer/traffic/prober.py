"""What every kind of probe can do."""

from __future__ import annotations

from types import TracebackType
from typing import Protocol

from tracer.model.topology import Address
from tracer.traffic.answer import Answer, SendFailure


class Prober(Protocol):
    """Probes from one namespace to one destination, any number in flight. Closes its sockets at the end of a `with`."""

    destination: Address

    def __enter__(self) -> Prober: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None: ...

    def close(self) -> None: ...

    def fileno(self) -> int:
        """Readable when there is something for receive()."""

    def send(self, seq: int) -> int | SendFailure:
        """Send one probe. Returns CLOCK_MONOTONIC just before, in ns."""

    def receive(self) -> list[Answer]:
        """What has arrived about our probes. Does not block."""
