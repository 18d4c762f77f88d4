"""What this process may do, and what the kernel forbids to everybody."""

from __future__ import annotations

import os
import re
from pathlib import Path

from tracer.model.health import Rights

CAPABILITIES = {"CAP_NET_ADMIN": 12, "CAP_NET_RAW": 13, "CAP_SYS_ADMIN": 21, "CAP_PERFMON": 38, "CAP_BPF": 39}
PARTS_OF_ADMIN = {"CAP_BPF", "CAP_PERFMON"}  # which has them all the same, and was all there was before Linux 5.8
STATUS, LOCKDOWN = Path("/proc/self/status"), Path("/sys/kernel/security/lockdown")


def read_rights() -> Rights:
    return Rights(os.geteuid() == 0, _lacking(STATUS.read_text()), _lockdown())


def _lacking(status: str) -> tuple[str, ...]:
    """Of a process' /proc/PID/status."""
    line = re.search(r"^CapEff:\s*([0-9a-f]+)$", status, re.M)
    effective = int(line[1], 16) if line else 0
    has = {name for name, bit in CAPABILITIES.items() if effective >> bit & 1}
    if "CAP_SYS_ADMIN" in has:
        has |= PARTS_OF_ADMIN
    return tuple(name for name in CAPABILITIES if name not in has)


def _lockdown() -> str | None:
    try:
        chosen = re.search(r"\[(\w+)\]", LOCKDOWN.read_text())  # "[none] integrity confidentiality"
    except OSError:  # not built in, or no securityfs is mounted
        return None
    return chosen[1] if chosen else None
