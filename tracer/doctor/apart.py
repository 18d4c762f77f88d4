"""A function in a process of its own: BCC 0.26 takes its process down where clang leaves a source half-parsed, and a doctor
should tell of that."""

from __future__ import annotations

import ctypes
import signal
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import get_context
from typing import TypeVar

from tracer.errors import UserError

PR_SET_PDEATHSIG = 1  # linux/prctl.h

T = TypeVar("T")


def apart(function: Callable[[], T]) -> T:
    """What it returns. UserError where it raises one or its process dies, OSError where it raises one."""
    context = get_context("fork")  # with all that is imported already; nobody else has a thread here
    receiver, sender = context.Pipe(duplex=False)

    def run() -> None:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # what it attached goes with whoever asked for it
        try:
            sender.send(function())
        except (UserError, OSError, ImportError) as error:  # by words: their own classes want other arguments
            sender.send(UserError(str(error)) if isinstance(error, UserError) else OSError(0, str(error)))

    process = context.Process(target=run, daemon=True)
    process.start()
    sender.close()
    result: T | UserError | OSError | None = None
    with suppress(EOFError):
        result = receiver.recv()
    process.join()
    if isinstance(result, UserError | OSError):
        raise result
    if result is None:
        code = process.exitcode or 0
        how = signal.Signals(-code).name if code < 0 else f"status {code}"
        raise UserError(f"The process that tried the probes died ({how}): please report this, with what BCC wrote.")
    return result
