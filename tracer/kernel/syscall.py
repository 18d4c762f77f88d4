"""bpf(2), for what BCC 0.26 does not wrap: BTF-typed tracepoints and netfilter links.

Layouts are those of union bpf_attr in include/uapi/linux/bpf.h; the kernel takes a shorter attr as zero-filled.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct

from tracer.kernel.architecture import architecture

PROG_LOAD, RAW_TRACEPOINT_OPEN, LINK_CREATE = 5, 17, 28  # enum bpf_cmd
TYPE_RAW_TRACEPOINT, TYPE_TRACING, TYPE_NETFILTER = 17, 26, 32  # enum bpf_prog_type
ATTACH_TRACE_RAW_TP, ATTACH_NETFILTER = 23, 45  # enum bpf_attach_type
LOG_BYTES = 1 << 20

_libc = ctypes.CDLL(None, use_errno=True)


def _bpf(command: int, attr: bytes) -> int:
    fd: int = _libc.syscall(architecture().bpf, command, ctypes.create_string_buffer(attr, len(attr)), len(attr))
    if fd < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return fd


def load_program(name: str, instructions: bytes, program_type: int, attach_type: int = 0, btf_id: int = 0) -> int:
    """The program's file descriptor. OSError where the kernel refuses, with the verifier's last words."""
    code = ctypes.create_string_buffer(instructions, len(instructions))
    licence = ctypes.create_string_buffer(b"GPL")

    def attr(log_size: int, log: int) -> bytes:
        return struct.pack("IIQQIIQII16sIIIIQIIQII", program_type, len(instructions) // 8, ctypes.addressof(code),
                           ctypes.addressof(licence), 1 if log_size else 0, log_size, log, 0, 0, name.encode()[:15], 0,
                           attach_type, 0, 0, 0, 0, 0, 0, 0, btf_id)

    try:
        return _bpf(PROG_LOAD, attr(0, 0))
    except OSError as error:  # once more, for the reason: asking for a log costs time
        log = ctypes.create_string_buffer(LOG_BYTES)
        try:
            return _bpf(PROG_LOAD, attr(LOG_BYTES, ctypes.addressof(log)))
        except OSError:
            lines = log.value.decode(errors="replace").strip().splitlines()
            said = next((line for line in reversed(lines) if not line.startswith("processed ")), "")
            raise OSError(error.errno, f"{errno.errorcode.get(error.errno or 0)}{f': {said}' if said else ''}") from None


def open_raw_tracepoint(program: int, name: str | None) -> int:
    """The link's file descriptor: closing it, or dying, detaches. `name` is None for a BTF-typed program."""
    target = ctypes.create_string_buffer(name.encode()) if name else None
    return _bpf(RAW_TRACEPOINT_OPEN, struct.pack("QII", ctypes.addressof(target) if target else 0, program, 0))


def link_netfilter(program: int, family: int, hook: int, priority: int) -> int:
    """A link at a netfilter hook of the calling thread's network namespace."""
    return _bpf(LINK_CREATE, struct.pack("IIIIIIiI", program, 0, ATTACH_NETFILTER, 0, family, hook, priority, 0))
