"""bpf(2) and perf_event_open(2), for what BCC 0.26 does not wrap: BTF-typed tracepoints, netfilter links, and function
probes, also in modules, that go with their file descriptor.

Layouts are those of union bpf_attr in include/uapi/linux/bpf.h and struct perf_event_attr in perf_event.h; the kernel takes
a shorter attr as zero-filled.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct
from pathlib import Path

from tracer.kernel.architecture import architecture

PROG_LOAD, OBJ_GET_INFO_BY_FD, RAW_TRACEPOINT_OPEN, BTF_GET_FD_BY_ID, BTF_GET_NEXT_ID, LINK_CREATE = (
    5, 15, 17, 19, 23, 28)  # enum bpf_cmd
TYPE_KPROBE, TYPE_RAW_TRACEPOINT, TYPE_TRACING, TYPE_NETFILTER = 2, 17, 26, 32  # enum bpf_prog_type
ATTACH_TRACE_RAW_TP, ATTACH_TRACE_FENTRY, ATTACH_TRACE_FEXIT, ATTACH_NETFILTER = 23, 24, 25, 45  # enum bpf_attach_type
PERF_SET_BPF, PERF_ENABLE, PERF_CLOEXEC = 0x40042408, 0x2400, 8  # PERF_EVENT_IOC_*, PERF_FLAG_FD_CLOEXEC
PERF_ATTR_BYTES = 112  # PERF_ATTR_SIZE_VER5
KPROBE_TYPE = Path("/sys/bus/event_source/devices/kprobe/type")
LOG_BYTES = 1 << 20

_libc = ctypes.CDLL(None, use_errno=True)


def _bpf(command: int, attr: bytes) -> int:
    return _call(architecture().bpf, command, ctypes.create_string_buffer(attr, len(attr)), len(attr))


def _call(number: int, *arguments: object) -> int:
    result: int = _libc.syscall(number, *arguments)
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def load_program(name: str, instructions: bytes, program_type: int, attach_type: int = 0, btf_id: int = 0,
                 btf_fd: int = 0) -> int:
    """The program's file descriptor. OSError where the kernel refuses, with the verifier's last words. `btf_fd`: of the
    module that has `btf_id`, 0 for the kernel itself."""
    code = ctypes.create_string_buffer(instructions, len(instructions))
    licence = ctypes.create_string_buffer(b"GPL")

    def attr(log_size: int, log: int) -> bytes:
        return struct.pack("IIQQIIQII16sIIIIQIIQIII", program_type, len(instructions) // 8, ctypes.addressof(code),
                           ctypes.addressof(licence), 1 if log_size else 0, log_size, log, 0, 0, name.encode()[:15], 0,
                           attach_type, 0, 0, 0, 0, 0, 0, 0, btf_id, btf_fd)

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


def open_kprobe(program: int, function: str, returns: bool = False) -> int:
    """A probe at a function's entry, or where it returns, of a module too, on all CPUs: closing the file descriptor, or
    dying, detaches."""
    if not KPROBE_TYPE.exists():
        raise OSError(errno.EOPNOTSUPP, "this kernel was built without them")
    name = ctypes.create_string_buffer(function.encode())
    values = struct.pack("IIQQQQQIIQQ", int(KPROBE_TYPE.read_text()), PERF_ATTR_BYTES, int(returns), 0, 0, 0, 0, 0, 0,
                         ctypes.addressof(name), 0)
    attr = ctypes.create_string_buffer(values, PERF_ATTR_BYTES)
    fd = _call(architecture().perf_event_open, attr, -1, 0, -1, PERF_CLOEXEC)
    try:
        fcntl.ioctl(fd, PERF_SET_BPF, program)
        fcntl.ioctl(fd, PERF_ENABLE, 0)
    except OSError:
        os.close(fd)
        raise
    return fd


def open_btf(module: str) -> int:
    """The BTF object of a module that is loaded, as load_program() takes it. OSError where it has none."""
    last = 0
    while True:
        following = ctypes.create_string_buffer(struct.pack("III", last, 0, 0), 12)
        _call(architecture().bpf, BTF_GET_NEXT_ID, following, 12)  # ENOENT behind the last
        last = struct.unpack_from("I", following, 4)[0]
        fd = _bpf(BTF_GET_FD_BY_ID, struct.pack("III", last, 0, 0))
        name = ctypes.create_string_buffer(64)
        # struct bpf_btf_info
        info = ctypes.create_string_buffer(struct.pack("QIIQII", 0, 0, 0, ctypes.addressof(name), len(name), 0), 32)
        _bpf(OBJ_GET_INFO_BY_FD, struct.pack("IIQ", fd, len(info), ctypes.addressof(info)))
        if name.value.decode() == module:
            return fd
        os.close(fd)
