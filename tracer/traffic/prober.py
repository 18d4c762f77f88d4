"""What every kind of probe can do."""

from __future__ import annotations

from abc import ABC, abstractmethod
from types import TracebackType
from typing import TypeVar

from tracer.model.topology import Address
from tracer.traffic.answer import Answer, SendFailure

Self = TypeVar("Self", bound="Prober")


class Prober(ABC):
    """Probes from one namespace to one destination, any number in flight. Closes its sockets at the end of a `with`."""

    destination: Address

    def __enter__(self: Self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()

    @abstractmethod
    def close(self) -> None: ...

    @abstractmethod
    def fileno(self) -> int:
        """Readable when there is something for receive()."""

    @abstractmethod
    def send(self, seq: int) -> int | SendFailure:
        """Send one probe. Returns CLOCK_MONOTONIC just before, in ns."""

    def finish(self, seq: int) -> None:  # noqa: B027
        """All is known about this probe: let go what is held for it."""

    @abstractmethod
    def receive(self) -> list[Answer]:
        """What has arrived about our probes. Does not block."""
