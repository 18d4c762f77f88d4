"""Reads /etc/hosts and /etc/resolv.conf of somebody else's root, who may have prepared them for us.

A container's files belong to whoever is root in it. So its symlinks are followed inside its root only, nothing but a
regular file is ever opened for reading (no FIFO that blocks, no device that acts), no more than a fixed size is read,
and all of it has a time-out (a file system in userspace need not answer).
"""

from __future__ import annotations

import ctypes
import os
import re
import stat
import struct
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import ip_address

from tracer.model.topology import Address

_LIMIT = 1 << 20  # bytes of a file that are read; block lists in hosts files have more lines than any real one
_PATIENCE_S = 2.0
_SYS_OPENAT2 = 437  # the same on every architecture; Linux 5.6
_RESOLVE_IN_ROOT = 0x10
_CONTAINER = re.compile(r"(/proc/[0-9]+/root)/(.+)")
_SERVERS = 3  # MAXNS in resolv.h
_SEARCHES = 8

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class ResolvConf:
    """resolver(5), as far as it decides which questions are put to whom."""

    servers: tuple[Address, ...]
    search: tuple[str, ...] = ()
    ndots: int = 1


def read(etc: str, name: str) -> str | None:
    """The file's text, or None where there is none to be had. `etc` is /etc, /etc/netns/NAME or /proc/PID/root/etc."""
    contained = _CONTAINER.fullmatch(etc)
    root, folder = contained.groups() if contained else ("/", etc.lstrip("/"))
    found: list[bytes] = []

    def attempt() -> None:
        with suppress(OSError):  # not there, not ours to read, or not a file
            found.append(_read_in(root, f"{folder}/{name}"))

    reader = threading.Thread(target=attempt, name=f"read {name}", daemon=True)
    reader.start()
    reader.join(_PATIENCE_S)
    return found[0].decode(errors="replace") if found else None


def _read_in(root: str, path: str) -> bytes:
    top = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        place = _open_in(top, path)
    finally:
        os.close(top)
    try:
        # O_PATH opens nothing yet; what it stands for is known before it is opened, by a name nobody can exchange.
        if not stat.S_ISREG(os.fstat(place).st_mode):
            raise OSError(f"{path} is no regular file")
        with open(os.open(f"/proc/self/fd/{place}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            return file.read(_LIMIT)
    finally:
        os.close(place)


def _open_in(top: int, path: str) -> int:
    """openat2() with RESOLVE_IN_ROOT: `..`, absolute paths and symlinks end at `top`, and magic links are refused."""
    how = struct.pack("=QQQ", os.O_PATH | os.O_CLOEXEC, 0, _RESOLVE_IN_ROOT)
    fd: int = _libc.syscall(_SYS_OPENAT2, top, os.fsencode(path), how, ctypes.c_size_t(len(how)))
    if fd < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), path)
    return fd


def in_hosts(text: str, name: str, versions: Sequence[int]) -> Address | None:
    """The first address of the first of these IP versions that hosts(5) has for the name."""
    wanted = name.rstrip(".").lower()
    found = []
    for line in text.splitlines():
        fields = line.partition("#")[0].split()
        if wanted in (field.lower() for field in fields[1:]):
            address = _address(fields[0])
            if address:
                found.append(address)
    return next((address for version in versions for address in found if address.version == version), None)


def resolv_conf(text: str) -> ResolvConf:
    """Of several `search` or `domain` lines the last counts; without a nameserver it is the one on this host."""
    servers: list[Address] = []
    search: tuple[str, ...] = ()
    ndots = 1
    for line in text.splitlines():
        keyword, *values = line.split() or [""]
        if keyword == "nameserver" and values:
            address = _address(values[0])
            servers += [address] if address else []
        elif keyword in ("search", "domain"):
            search = tuple(value.rstrip(".") for value in values if value.rstrip("."))[:_SEARCHES]
        elif keyword == "options":
            for value in values:
                match = re.fullmatch(r"ndots:([0-9]{1,3})", value)
                ndots = min(int(match[1]), 15) if match else ndots
    return ResolvConf(tuple(servers[:_SERVERS]) or (ip_address("127.0.0.1"),), search, ndots)


def _address(text: str) -> Address | None:
    try:
        return ip_address(text)
    except ValueError:
        return None
