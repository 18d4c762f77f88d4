"""What differs from processor to processor, in one place: all else that crosses to the kernel is the same on each.

Both are little-endian and have pointers of 8 bytes. Pages have 4096 bytes on one, and 4096, 16384 or 65536 on the other.
"""

from __future__ import annotations

import platform
from dataclasses import dataclass

from tracer.errors import UserError


@dataclass(frozen=True, slots=True)
class Architecture:
    folder: str  # below arch/ of the kernel's sources
    bpf: int  # numbers of system calls that libc has no function for
    membarrier: int
    perf_event_open: int
    arguments: tuple[int, int, int]  # where a function's first three are in struct pt_regs, in words: di, si, dx; x0, x1, x2
    result: int  # the same for a function's result: ax; x0
    stack: int  # and for the stack pointer
    return_bytes: int  # that a function's return takes from the stack
    ordered: bool  # loads stay in their order, and stores behind loads, without a barrier


ARCHITECTURES = {  # by uname -m
    "x86_64": Architecture("x86", 321, 324, 298, (14, 13, 12), 10, 19, 8, ordered=True),
    "aarch64": Architecture("arm64", 280, 283, 241, (0, 1, 2), 0, 31, 0, ordered=False),
}


def architecture() -> Architecture:
    """This machine's. UserError where dnettrace does not know it: a 32-bit process' calls have other numbers, too."""
    found = ARCHITECTURES.get(platform.machine())
    if found is None:
        raise UserError(f"dnettrace runs on {' and '.join(ARCHITECTURES)}, not on {platform.machine()}: use such a machine.")
    return found
