"""The running kernel's types (BTF), read through libbpf.

BCC is given only the struct members that the programs name, each at its exact offset. No headers package is needed, and
the compiler cannot lay a struct out differently from the kernel: a full C dump of BTF can, since alignment and
members embedded by -fms-extensions do not survive it (on Linux 7.2 `net->ns.inum` silently read as 0).
"""

from __future__ import annotations

import ctypes
import functools
import os
import re
from collections.abc import Iterator
from pathlib import Path

from tracer.errors import UserError
from tracer.kernel.architecture import architecture

# struct -> members that bpf/*.c names; embedded structs are listed after those that embed them.
MEMBERS = {
    "sk_buff": ("dev", "len", "data_len", "head", "data", "network_header", "mac_header", "protocol", "_nfct", "vlan_proto",
                "vlan_tci", "vlan_all", "__pkt_vlan_present_offset"),
    "net_device": ("ifindex", "name", "nd_net", "priv_flags"),
    "neighbour": ("nud_state",),
    "nf_conn": ("tuplehash",),
    "nf_hook_state": ("hook", "pf", "in", "out", "net"),
    "bpf_nf_ctx": ("state", "skb"),
    "fib6_result": ("nh", "fib6_flags"),
    "fib6_table": ("tb6_id",),
    "fib_nh_common": ("nhc_dev", "nhc_gw_family", "nhc_gw"),
    "flowi4": ("__fl_common", "saddr", "daddr", "uli"),
    "flowi6": ("__fl_common", "saddr", "daddr", "uli"),
    "flowi_common": ("flowic_iif",),
    "possible_net_t": ("net",),
    "net": ("ns", "net_cookie"),
    "ns_common": ("inum",),
}
# Linux 6.4 (fd9c663b9ad6) brought netfilter programs; before, their context does not exist. IPv6 and conntrack can be
# modules.
OPTIONAL = ("bpf_nf_ctx", "nf_conn", "fib6_result", "fib6_table", "flowi6")
# Linux 6.2 (354259fa73e2) has the first, older ones the second. Without priv_flags, stacks are taken at every device.
OPTIONAL_MEMBERS = ("vlan_all", "__pkt_vlan_present_offset", "priv_flags", "net_cookie")

PTR, ARRAY, STRUCT, UNION, ENUM, TYPEDEF, VOLATILE, CONST, RESTRICT, FUNC, TYPE_TAG, ENUM64 = (
    2, 3, 4, 5, 6, 8, 9, 10, 11, 12, 18, 19)  # BTF_KIND_*, include/uapi/linux/btf.h
TRACE_RAW_TP = 23  # enum bpf_attach_type

BASICS = """#pragma once
typedef unsigned char u8; typedef unsigned short u16; typedef unsigned int u32; typedef unsigned long long u64;
typedef signed char s8; typedef short s16; typedef int s32; typedef long long s64;
typedef u8 __u8; typedef u16 __u16; typedef u32 __u32; typedef u64 __u64;
typedef s8 __s8; typedef s16 __s16; typedef s32 __s32; typedef s64 __s64;
typedef u16 __be16; typedef u32 __be32; typedef u32 __wsum; typedef u64 __aligned_u64 __attribute__((aligned(8)));
typedef _Bool bool; typedef __SIZE_TYPE__ size_t; typedef __UINTPTR_TYPE__ uintptr_t;
#define __always_inline inline __attribute__((always_inline))
#define true 1
#define false 0
"""
# What BCC's own prologue and helpers.h include; BCC brings its own uapi/linux/bpf.h.
KCONFIG = """#pragma once
#define CONFIG_BPF_SYSCALL 1
#define __HAVE_BUILTIN_BSWAP16__
#define __HAVE_BUILTIN_BSWAP32__
#define __HAVE_BUILTIN_BSWAP64__
#include "../kernel_types.h"
"""
EMPTY = ("uapi/linux/if_packet.h", "uapi/linux/bpf.h", "uapi/linux/ptrace.h", "uapi/linux/if_ether.h",
         "linux/log2.h", "linux/types.h", "linux/bpf_common.h")


class Btf:
    """Types of vmlinux, with those of a module on top where one is named. Raises UserError where the kernel or libbpf has
    none."""

    def __init__(self, base: Btf | None = None, module: str = "") -> None:
        self._lib = lib = _libbpf()
        lib.btf__load_vmlinux_btf.restype = ctypes.c_void_p
        lib.btf__load_module_btf.argtypes, lib.btf__load_module_btf.restype = (
            [ctypes.c_char_p, ctypes.c_void_p], ctypes.c_void_p)
        lib.btf__type_by_id.argtypes, lib.btf__type_by_id.restype = [ctypes.c_void_p, ctypes.c_uint], ctypes.c_void_p
        lib.btf__name_by_offset.argtypes, lib.btf__name_by_offset.restype = (
            [ctypes.c_void_p, ctypes.c_uint], ctypes.c_char_p)
        lib.btf__find_by_name.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
        lib.btf__find_by_name_kind.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_uint]
        lib.btf__free.argtypes, lib.btf__free.restype = [ctypes.c_void_p], None
        self._handle: int | None = \
            lib.btf__load_module_btf(module.encode(), base._handle) if base else lib.btf__load_vmlinux_btf()
        # libbpf returns an error pointer (-errno) in its old mode and NULL in the new one
        if not self._handle or self._handle >= 2**64 - 4096:
            self._handle = None
            raise UserError("This kernel has no BTF (/sys/kernel/btf/vmlinux): boot one built with "
                            "CONFIG_DEBUG_INFO_BTF=y, as every Debian and Ubuntu kernel since 5.10 is.")

    def close(self) -> None:
        if self._handle:
            self._lib.btf__free(self._handle)
            self._handle = None

    def enum(self, name: str) -> dict[int, str]:
        """Value -> constant; empty where the kernel has no such enum."""
        type_id = self._lib.btf__find_by_name(self._handle, name.encode())
        if type_id <= 0:
            return {}
        kind, _name, _size, address, count, _kflag = self._type(type_id)
        step = 12 if kind == ENUM64 else 8
        rows = ((ctypes.c_uint32 * 2).from_address(address + step * i) for i in range(count))
        return {value: self._name(offset) for offset, value in rows}

    def tracepoint(self, name: str) -> tuple[int, int]:
        """(type id to attach to, number of arguments) of a tracepoint; (0, 0) where the kernel has none of that name."""
        type_id = self._lib.btf__find_by_name_kind(self._handle, f"btf_trace_{name}".encode(), TYPEDEF)
        if type_id <= 0:
            return 0, 0
        pointer = self._type(type_id)[2]
        prototype = self._type(self._type(pointer)[2])
        return type_id, prototype[4] - 1  # the first parameter is void *data

    def id(self, name: str, kind: int) -> int:
        """The id of a type by its name and BTF kind; 0 where the kernel has none."""
        found: int = self._lib.btf__find_by_name_kind(self._handle, name.encode(), kind)
        return max(found, 0)

    def parameters(self, function_id: int) -> tuple[str, ...]:
        """The struct that each parameter of a function points to; "" for others."""
        _kind, _name, _size, address, count, _kflag = self._type(self._type(function_id)[2])
        types = ((ctypes.c_uint32 * 2).from_address(address + 8 * i)[1] for i in range(count))
        return tuple(map(self._pointed, types))

    def _pointed(self, type_id: int) -> str:
        kind, _name, target, *_more = self._type(self._strip(type_id)) if type_id else (0, "", 0)
        kind, name, *_more = self._type(self._strip(target)) if kind == PTR and target else (0, "")
        return name if kind == STRUCT else ""

    def offset(self, struct: str, member: str) -> int | None:
        """Of a member, in bytes; None where there is no such thing."""
        struct_id = self._find(struct)
        found = self._member(struct_id, member) if struct_id is not None else None
        return found[0] if found else None

    def declarations(self) -> str:
        """C for MEMBERS, with HAVE_<struct> or HAVE_<struct>_<member> for each optional one that exists. Raises UserError
        for one that must."""
        text = [BASICS, *(f"struct {name};" for name in MEMBERS)]
        for name in reversed(MEMBERS):
            struct_id = self._find(name)
            if struct_id is None and name not in OPTIONAL:
                raise UserError(f"This kernel's BTF has no struct {name}: it is not a kernel that dnettrace knows.")
            if struct_id is not None:
                text += self._declare_struct(name, struct_id)
        return "\n".join(text) + "\n"

    def _declare_struct(self, name: str, struct_id: int) -> Iterator[str]:
        if name in OPTIONAL:
            yield f"#define HAVE_{name} 1"
        yield f"struct {name} {{ union {{ u8 _size[{self._type(struct_id)[2]}];"
        for i, member in enumerate(MEMBERS[name]):
            found = self._member(struct_id, member)
            if found is None and member in OPTIONAL_MEMBERS:
                continue
            if found is None:
                raise UserError(f"This kernel's struct {name} has no member {member}: dnettrace does not know it yet.")
            offset, declared = found
            padding = f"u8 _{i}[{offset}]; " if offset else ""
            if member in OPTIONAL_MEMBERS:
                yield f"#define HAVE_{name}_{member} 1"
            yield f"  struct {{ {padding}{declared}; }};"
        yield "}; };"

    def _name(self, offset: int) -> str:
        name: bytes = self._lib.btf__name_by_offset(self._handle, offset)
        return name.decode()

    def _type(self, type_id: int) -> tuple[int, str, int, int, int, int]:
        """(kind, name, size or type referred to, address of what follows the header, count of that, kflag)"""
        address = self._lib.btf__type_by_id(self._handle, type_id)
        name, info, size = (ctypes.c_uint32 * 3).from_address(address)
        return info >> 24 & 0x1F, self._name(name), size, address + 12, info & 0xFFFF, info >> 31

    def _strip(self, type_id: int) -> int:
        while self._type(type_id)[0] in (TYPEDEF, VOLATILE, CONST, RESTRICT, TYPE_TAG):
            type_id = self._type(type_id)[2]
        return type_id

    def _find(self, name: str) -> int | None:
        type_id = self._lib.btf__find_by_name_kind(self._handle, name.encode(), STRUCT)
        if type_id < 0:
            type_id = self._lib.btf__find_by_name_kind(self._handle, name.encode(), TYPEDEF)
        return self._strip(type_id) if type_id > 0 else None

    def _member(self, struct_id: int, wanted: str, base: int = 0) -> tuple[int, str] | None:
        """(byte offset, C declaration), also of a member of an anonymous member; None for a bit field of broken bytes."""
        _kind, _name, _size, address, count, kflag = self._type(struct_id)
        for i in range(count):
            name, type_id, offset = (ctypes.c_uint32 * 3).from_address(address + 12 * i)
            bits, offset = (offset >> 24, offset & 0xFFFFFF) if kflag else (0, offset)
            if self._name(name) == wanted:
                if bits in (0, 8, 16, 32) and (base + offset) % (bits or 8) == 0:
                    return (base + offset) // 8, f"u{bits} {wanted}" if bits else self._declare(type_id, wanted)
                return None
            inner = self._strip(type_id)
            if not self._name(name) and self._type(inner)[0] in (STRUCT, UNION):
                found = self._member(inner, wanted, base + offset)
                if found:
                    return found
        return None

    def _declare(self, type_id: int, name: str) -> str:
        typedef = self._type(type_id)[1] if self._type(type_id)[0] == TYPEDEF else ""
        kind, type_name, size, address, _count, _kflag = self._type(self._strip(type_id))
        if kind == PTR:
            target = self._type(self._strip(size)) if size else (0, "")
            return f"struct {target[1]} *{name}" if target[0] == STRUCT and target[1] else f"u8 *{name}"
        if kind == ARRAY:
            element, _index, length = (ctypes.c_uint32 * 3).from_address(address)
            return self._declare(element, f"{name}[{length}]")
        if kind in (STRUCT, UNION):
            embedded = type_name or typedef
            return f"struct {embedded} {name}" if embedded in MEMBERS else f"u8 {name}[{size}]"
        return f"u{8 * size} {name}"


@functools.cache
def _libbpf() -> ctypes.CDLL:
    for name in ("libbpf.so.1", "libbpf.so.0"):
        try:
            lib = ctypes.CDLL(name)
        except OSError:
            continue
        lib.libbpf_set_print(None)  # what it has to say, our errors say
        return lib
    raise UserError("libbpf is not installed: run `sudo ./scripts/setup`, or install your distribution's libbpf.")


def write_headers(btf: Btf, root: Path) -> None:
    """Fill `root` with what BCC takes for a kernel's sources (BCC_KERNEL_SOURCE)."""
    release = re.match(r"(\d+)\.(\d+)(?:\.(\d+))?", os.uname().release)
    major, minor, patch = release.groups(default="0") if release else ("0", "0", "0")
    files = dict.fromkeys((f"include/{name}" for name in EMPTY), "")
    files["include/linux/kconfig.h"] = KCONFIG
    files["include/kernel_types.h"] = btf.declarations()
    files["include/linux/version.h"] = (
        "#define KERNEL_VERSION(a, b, c) (((a) << 16) + ((b) << 8) + (c))\n"
        f"#define LINUX_VERSION_CODE KERNEL_VERSION({major}, {minor}, {min(int(patch), 255)})\n")
    files[f"arch/{architecture().folder}/include/asm/page.h"] = f"#define PAGE_SIZE {os.sysconf('SC_PAGE_SIZE')}\n"
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
