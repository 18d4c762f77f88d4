"""By which mechanism netfilter's hooks are watched here, and kernel functions probed: tried with a program that does
nothing, before anything is compiled, since what is compiled depends on it."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tracer.errors import UserError
from tracer.kernel import btf, syscall
from tracer.kernel.architecture import architecture
from tracer.kernel.btf import Btf
from tracer.kernel.catalogue import CATALOGUE, CHAINS, FUNCTION_WAYS, TABLES, TABLES_BEGIN, WHOLE_HOOKS, Mechanism, Probe
from tracer.kernel.own_chains import mark

NOTHING = bytes((0xB7, 0, 0, 0, 1, 0, 0, 0, 0x95, 0, 0, 0, 0, 0, 0, 0))  # return 1, NF_ACCEPT
ZERO = bytes((0xB7, 0, 0, 0, 0, 0, 0, 0, 0x95, 0, 0, 0, 0, 0, 0, 0))  # return 0, which fentry programs must
KALLSYMS, MODULES = Path("/proc/kallsyms"), Path("/sys/module")


@dataclass(frozen=True, slots=True)
class HookWay:
    """`mechanism` None: by none, and `why` not."""

    mechanism: Mechanism | None
    why: str = ""
    flags: tuple[str, ...] = ()  # for bpf/probes.c
    lacks: str = ""  # a module that is not loaded, with which there may be one, or a better one
    probes: tuple[str, ...] = ()  # of the catalogue, that netfilter's hooks are watched by


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
    name, lacks = _chain_name(types)
    names = WHOLE_HOOKS if name is None else CHAINS[:1]
    for way in ways:
        try:
            for probe in [probe for probe in CATALOGUE if probe.name in names]:
                program = load_function(types, "hook_trial", probe, ZERO, way)
                try:
                    os.close(open_function(program, probe, way))
                finally:
                    os.close(program)
        except OSError as error:
            refused.append(f"{way.name.lower()}: {error.strerror or error}")
            continue
        if name is None:
            tables, flags = _tables(types, way)
            return HookWay(way, "", (*_result(way), *_arguments(way), *flags), lacks, (*WHOLE_HOOKS, *tables))
        return HookWay(way, "", (f"-DCHAIN_MARK={mark()}", f"-DCHAIN_NAME={name}", *_arguments(way)), "", CHAINS)
    return HookWay(None, "; ".join(refused), lacks=lacks)


def _chain_name(types: Btf) -> tuple[int | None, str]:
    """Where nftables' chains have their name, None where there is no telling, and the module that is not loaded for that."""
    module = next(probe.module for probe in CATALOGUE if probe.name in CHAINS)
    if not is_loaded(module) and not types.id("nft_chain", btf.STRUCT):
        return None, "" if (MODULES / module).exists() or not _modules_have_types() else module
    try:
        with _types_of(types, module) as (module_types, _fd):
            return module_types.offset("nft_chain", "name"), ""
    except OSError:
        return None, ""


def _tables(types: Btf, way: Mechanism) -> tuple[list[str], tuple[str, ...]]:
    """The probes of iptables-legacy's tables that there are, which all have the arguments' places in common; for
    bpf/probes.c."""
    found: dict[tuple[str, ...], list[str]] = {}
    places, result = _places(way), 3 if way is Mechanism.FENTRY else architecture().result
    for probe in (probe for probe in CATALOGUE if probe.name in (*TABLES_BEGIN, *TABLES) and way in probe.ways):
        with suppress(OSError, ValueError), _types_of(types, probe.module) as (module_types, _fd):
            os.close(load_function(types, "hook_trial", probe, ZERO, way))
            name = module_types.offset("xt_table", "name")
            parameters = module_types.parameters(module_types.id(probe.symbol, btf.FUNC))
            packet, state = parameters.index("sk_buff"), parameters.index("nf_hook_state")
            if name is not None and len(parameters) == 3:
                found.setdefault((f"-DTABLE_AT={places[3 - packet - state]}", f"-DSKB_AT={places[packet]}",
                                  f"-DSTATE_AT={places[state]}", f"-DTABLE_RESULT_AT={result}",
                                  f"-DTABLE_NAME={name}"), []).append(probe.name)
    for flags, names in found.items():
        return names, flags
    return [], ()


def is_loaded(module: str) -> bool:
    """With its types."""
    return Path("/sys/kernel/btf", module).exists()


def _modules_have_types() -> bool:
    """As far as those that are loaded tell."""
    return os.listdir("/sys/kernel/btf") != ["vmlinux"] or not any(MODULES.glob("*/initstate"))


def find_functions(types: Btf, hooking: HookWay, mechanisms: Collection[Mechanism]) -> HookWay:
    """How the functions are probed that the catalogue has beside the hooks': as the hooks are, or else by fentry alone,
    since a kprobe would have all programs read as it must."""
    way = hooking.mechanism if hooking.mechanism in FUNCTION_WAYS else Mechanism.FENTRY
    if way not in mechanisms or way not in FUNCTION_WAYS:
        return HookWay(None)
    try:
        os.close(load_function(types, "trial", next(p for p in CATALOGUE if p.takes and not p.module), ZERO, way))
        with _types_of(types, "bridge") as (bridge_types, _fd):
            port = bridge_types.offset("net_bridge_port", "dev")
    except OSError:
        return HookWay(None)
    flags = ("-DFUNCTIONS", *([] if port is None else [f"-DPORT_DEV={port}"]))
    return HookWay(way, "", flags if way is hooking.mechanism else (*flags, *_arguments(way)))


def _places(way: Mechanism) -> tuple[int, int, int]:
    """Where a function's first three arguments are in a program's context."""
    return architecture().arguments if way is Mechanism.KPROBE else (0, 1, 2)


def _arguments(way: Mechanism) -> tuple[str, ...]:
    return tuple(f"-D{name}_AT={at}" for name, at in zip(("FIRST", "SECOND", "THIRD"), _places(way), strict=True))


def _result(way: Mechanism) -> tuple[str, ...]:
    """Where nf_hook_slow() has its result: behind four arguments, or in a register. At a kprobe on its return the arguments
    are gone: its place on the stack, which nothing else has meanwhile, leads back to them."""
    if way is Mechanism.FENTRY:
        return "-DRESULT_AT=4",
    here = architecture()
    return f"-DRESULT_AT={here.result}", f"-DSTACK_AT={here.stack}", f"-DRETURN_BYTES={here.return_bytes}"


def load_function(types: Btf, name: str, probe: Probe, code: bytes, way: Mechanism) -> int:
    """A program for the probe's function. OSError where the kernel refuses, or has no such function."""
    with _types_of(types, probe.module) as (module_types, fd):
        function_id = module_types.id(probe.symbol, btf.FUNC)
        if not function_id or module_types.parameters(function_id)[:len(probe.takes)] != probe.takes:
            raise OSError(errno.ENOENT, f"this kernel has no function {probe.symbol} that dnettrace knows")
        if way is Mechanism.KPROBE:
            return syscall.load_program(name, code, syscall.TYPE_KPROBE)
        return syscall.load_program(name, code, syscall.TYPE_TRACING, syscall.ATTACH_TRACE_FEXIT if probe.returns
                                    else syscall.ATTACH_TRACE_FENTRY, function_id, fd)


def open_function(program: int, probe: Probe, way: Mechanism) -> int:
    """Attach it; closing the file descriptor detaches."""
    if way is Mechanism.FENTRY:
        return syscall.open_raw_tracepoint(program, None)
    try:
        return syscall.open_kprobe(program, probe.symbol, probe.returns)
    except FileNotFoundError:
        return syscall.open_kprobe(program, _renamed(probe.symbol), probe.returns)


def _renamed(function: str) -> str:
    """The symbol of a function that the compiler made another one of, which kprobes want whole. One whose arguments it
    changed has no types (pahole leaves it out), and a .part or .cold one is not the function's beginning."""
    wanted = re.compile(rf"^\S+ [tT] ({re.escape(function)}\.(?:isra|constprop)\.\d+)\s", re.M)
    found = wanted.search(KALLSYMS.read_text())
    if found is None:
        raise OSError(errno.ENOENT, f"this kernel has no function {function}")
    return found[1]


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
def _types_of(types: Btf, module: str) -> Iterator[tuple[Btf, int]]:
    """Types with those of the module, and its BTF object's file descriptor, 0 where it is built in, or not loaded."""
    if not module or not is_loaded(module):
        yield types, 0
        return
    fd = syscall.open_btf(module)
    try:
        module_types = Btf(types, module)
    except UserError as error:
        os.close(fd)
        raise OSError(errno.ENOENT, str(error)) from None
    try:
        yield module_types, fd
    finally:
        module_types.close()
        os.close(fd)
