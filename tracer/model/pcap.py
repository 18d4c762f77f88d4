"""libpcap's compiler of filter expressions, called directly: scapy's wrapper needs 0.4 s to import, and lost libpcap's words
before 2.6. Needs no root and no interface."""

from __future__ import annotations

import ctypes
import functools
import os

from tracer.errors import UserError
from tracer.model.classic import JA, JMP, Instruction, Program

DLT_EN10MB = 1
SNAPLEN = 262144  # tcpdump's; what a match returns, unused here
NETMASK_UNKNOWN = 0xFFFFFFFF
MAX_INSTRUCTIONS = 8192  # before libpcap's optimizer, whose time grows with the cube: some 270 hosts, 2 s


class _Instruction(ctypes.Structure):
    _fields_ = [("code", ctypes.c_ushort), ("jt", ctypes.c_ubyte), ("jf", ctypes.c_ubyte), ("k", ctypes.c_uint32)]


class _Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_uint), ("instructions", ctypes.POINTER(_Instruction))]


def compile_expression(expression: str) -> Program:
    """The classic BPF of a filter expression as tcpdump takes it, for Ethernet. Looks up names of hosts, as tcpdump does.
    UserError with libpcap's words where that does not take it."""
    lib = _libpcap()
    handle = lib.pcap_open_dead(DLT_EN10MB, SNAPLEN)
    if not handle:
        raise MemoryError("pcap_open_dead")
    try:
        length = len(_compile(lib, handle, expression, optimize=False))
        if length > MAX_INSTRUCTIONS:
            raise UserError(f"This filter is too long: {length} instructions, where {MAX_INSTRUCTIONS} are possible. Say it "
                            "with fewer terms, with `net` for many hosts or `portrange` for many ports.")
        program = _compile(lib, handle, expression, optimize=True)
    finally:
        lib.pcap_close(handle)
    if any(i.code == JMP | JA and i.k >= len(program) for i in program):  # backwards
        raise UserError("A filter cannot use `protochain`: it loops, and a program of the kernel must not. Say where the "
                        "header is, as in `ip6[40] = 17`.")
    return program


def _compile(lib: ctypes.CDLL, handle: int, expression: str, optimize: bool) -> Program:
    compiled = _Program()
    if lib.pcap_compile(handle, ctypes.byref(compiled), os.fsencode(expression), optimize, NETMASK_UNKNOWN):
        said = lib.pcap_geterr(handle).decode(errors="replace")
        raise UserError(f"Filter '{expression}': {said} (`man 7 pcap-filter` has what can be said).")
    program = tuple(Instruction(i.code, i.jt, i.jf, i.k) for i in compiled.instructions[:compiled.length])
    lib.pcap_freecode(ctypes.byref(compiled))
    return program


@functools.cache
def _libpcap() -> ctypes.CDLL:
    for name in ("libpcap.so.0.8", "libpcap.so.1"):  # Debian's name, and the others'
        try:
            lib = ctypes.CDLL(name)
        except OSError:
            continue
        lib.pcap_open_dead.restype = ctypes.c_void_p
        lib.pcap_compile.argtypes = [ctypes.c_void_p, ctypes.POINTER(_Program), ctypes.c_char_p, ctypes.c_int,
                                     ctypes.c_uint32]
        lib.pcap_geterr.argtypes, lib.pcap_geterr.restype = [ctypes.c_void_p], ctypes.c_char_p
        lib.pcap_freecode.argtypes, lib.pcap_freecode.restype = [ctypes.POINTER(_Program)], None
        lib.pcap_close.argtypes, lib.pcap_close.restype = [ctypes.c_void_p], None
        return lib
    raise UserError("Filter expressions need libpcap: run `sudo ./scripts/setup`, or install libpcap0.8 (Debian, Ubuntu) or "
                    "libpcap (Fedora, Arch).")
