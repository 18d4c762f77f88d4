"""By which mechanism netfilter's hooks are watched here: tried with a program that does nothing, before anything is
compiled, since what is compiled depends on it."""

from __future__ import annotations

import errno
import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tracer.errors import UserError
from tracer.kernel import btf, syscall
from tracer.kernel.architecture import architecture
from tracer.kernel.btf import Btf
from tracer.kernel.catalogue import CATALOGUE, FUNCTION_WAYS, MODULE, Mechanism
from tracer.kernel.own_chains import mark

NOTHING = bytes((0xB7, 0, 0, 0, 1, 0, 0, 0, 0x95, 0, 0, 0, 0, 0, 0, 0))  # return 1, NF_ACCEPT
ZERO = bytes((0xB7, 0, 0, 0, 0, 0, 0, 0, 0x95, 0, 0, 0, 0, 0, 0, 0))  # return 0, which fentry programs must


@dataclass(frozen=True, slots=True)
class HookWay:
    """`mechanism` None: by none, and `why` not."""

    mechanism: Mechanism | None
    why: str = ""
    flags: tuple[str, ...] = ()  # for bpf/probes.c


def find_way(types: Btf, mechanisms: Collection[Mechanism]) -> HookWay:
    """By one of these."""
    refused = []
    if Mechanism.NETFILTER_LINK in mechanisms:
        why = _no_links(types)
        if not why:
            return HookWay(Mechanism.NETFILTER_LINK)
        refused.append(f"netfilter links: {why}")
    ways = [way for way in FUNCTION_WAYS if way in mechanisms]
    if not ways:
        return HookWay(None, "; ".join(refused))
    function = next(probe.name for probe in CATALOGUE if Mechanism.KPROBE in probe.ways)
    try:
        with _types_of_module(types) as (module_types, _fd):
            name = module_types.offset("nft_chain", "name")
        if name is None:
            raise OSError(errno.ENOENT, "this kernel's nf_tables is not one that dnettrace knows")
    except OSError as error:
        return HookWay(None, "; ".join((*refused, f"function probes: {error.strerror or error}")))
    for way in ways:
        try:
            program = load_function(types, "hook_trial", function, ZERO, way)
            try:
                os.close(open_function(program, function, way))
            finally:
                os.close(program)
        except OSError as error:
            refused.append(f"{way.name.lower()}: {error.strerror or error}")
            continue
        chain, skb, state = architecture().arguments if way is Mechanism.KPROBE else (0, 1, 2)
        return HookWay(way, "", (f"-DCHAIN_MARK={mark()}", f"-DCHAIN_NAME={name}", f"-DCHAIN_AT={chain}", f"-DSKB_AT={skb}",
                                 f"-DSTATE_AT={state}"))
    return HookWay(None, "; ".join(refused))


def load_function(types: Btf, name: str, function: str, code: bytes, way: Mechanism) -> int:
    """A program for this function's entry. OSError where the kernel refuses."""
    if way is Mechanism.KPROBE:
        return syscall.load_program(name, code, syscall.TYPE_KPROBE)
    with _types_of_module(types) as (module_types, fd):
        function_id = module_types.id(function, btf.FUNC)
        if not function_id:
            raise OSError(errno.ENOENT, f"this kernel has no function {function}")
        return syscall.load_program(name, code, syscall.TYPE_TRACING, syscall.ATTACH_TRACE_FENTRY, function_id, fd)


def open_function(program: int, function: str, way: Mechanism) -> int:
    """Attach it; closing the file descriptor detaches."""
    return syscall.open_kprobe(program, function) if way is Mechanism.KPROBE else syscall.open_raw_tracepoint(program, None)


def _no_links(types: Btf) -> str:
    """Why there are no netfilter links, empty where there are."""
    if not types.id("bpf_nf_ctx", btf.STRUCT):
        return "this kernel has none (Linux 6.4 brought them)"
    try:
        os.close(syscall.load_program("hook_trial", NOTHING, syscall.TYPE_NETFILTER, syscall.ATTACH_NETFILTER))
    except OSError as error:
        return str(error.strerror or error)
    return ""


@contextmanager
def _types_of_module(types: Btf) -> Iterator[tuple[Btf, int]]:
    """Types with those of MODULE, and its BTF object's file descriptor, 0 where it is built in."""
    if not Path("/sys/kernel/btf", MODULE).exists():
        if not types.id("nft_chain", btf.STRUCT):
            raise OSError(errno.ENOENT, f"{MODULE} is not loaded")
        yield types, 0
        return
    fd = syscall.open_btf(MODULE)
    try:
        module_types = Btf(types, MODULE)
    except UserError as error:
        os.close(fd)
        raise OSError(errno.ENOENT, str(error)) from None
    try:
        yield module_types, fd
    finally:
        module_types.close()
        os.close(fd)
