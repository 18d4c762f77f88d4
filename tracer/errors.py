"""What ends a command early, and the statuses that it ends with."""

from __future__ import annotations

from enum import IntEnum


class ExitStatus(IntEnum):
    OK = 0  # every probe packet was answered; a stream ended as asked
    LOST = 1  # a packet was lost or no answer came
    ERROR = 2  # the command or the machine is at fault
    INTERRUPTED = 130


class UserError(Exception):
    """The command or the machine is at fault: one sentence with the mend, shown without a traceback."""
