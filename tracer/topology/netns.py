"""Network namespaces: their numbers, their names, and running a function inside one.

A namespace's number is its inode and, in the upper 32 bits, the lower half of its cookie. The kernel gives the inode of one
that ended to the next one that is made, and a cookie to one only. Where the kernel does not tell cookies (before Linux 5.14)
that half is 0, and so it is in events.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from tracer.model.topology import inode, netns_number

T = TypeVar("T")

NAMED = "/run/netns"  # where `ip netns` and pyroute2 keep named namespaces
CLONE_NEWNET = 0x40000000
IN_CREATE = 0x100
SO_NETNS_COOKIE = 71  # include/uapi/asm-generic/socket.h, since Linux 5.14 (e8b9eab99232)
REMEMBERED = 4096
_OWN = "/proc/thread-self/ns/net"
_NSFS_DEVICE = os.stat("/proc/self/ns/net").st_dev  # one nsfs instance holds every namespace of the machine

_libc = ctypes.CDLL(None, use_errno=True)
# (path, inode, its ctime) -> number. While something holds the namespace's inode, as every mount on a file does, its ctime
# stays; else each look makes another.
_numbers: dict[tuple[str, int, int], int] = {}


def identify(path: str) -> int:
    """The number of the namespace at `path`; without a cookie where it may not be entered. OSError if `path` is gone or
    forbidden."""
    found = os.stat(path)
    key = path, found.st_ino, found.st_ctime_ns
    number = _numbers.get(key)
    if number is None:
        try:
            number = inside(path, here)
        except PermissionError:
            return found.st_ino
        if len(_numbers) >= REMEMBERED:
            _numbers.clear()
        if inode(number) == found.st_ino:
            _numbers[key] = number
    return number


def here() -> int:
    """The number of the calling thread's own."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        try:
            cookie = int.from_bytes(one.getsockopt(socket.SOL_SOCKET, SO_NETNS_COOKIE, 8), sys.byteorder)
        except OSError as error:
            if error.errno != errno.ENOPROTOOPT:
                raise
            cookie = 0
    return netns_number(cookie, os.stat(_OWN).st_ino)


def leads(path: str, number: int) -> bool:
    """Does `path` still open this namespace? Not where that ended and the path is gone or another's."""
    try:
        return os.stat(path).st_ino == inode(number) and identify(path) == number
    except OSError:
        return False


def named() -> dict[str, str]:
    """Named namespaces: name -> path. A file left behind by a namespace that is gone is no nsfs mount: not listed."""
    found = {}
    try:
        entries = sorted(os.scandir(NAMED), key=lambda entry: entry.name)
    except OSError:
        return {}
    for entry in entries:
        try:
            if entry.stat().st_dev == _NSFS_DEVICE:
                found[entry.name] = str(Path(NAMED, entry.name))
        except OSError:  # removed meanwhile
            continue
    return found


def arrivals() -> int | None:
    """An inotify descriptor that can be read once a named namespace comes: a moment before it is mounted on its file. None
    where there is no folder for them, or no inotify."""
    fd = _libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    if fd >= 0 and _libc.inotify_add_watch(fd, NAMED.encode(), IN_CREATE) < 0:
        os.close(fd)
        return None
    return fd if fd >= 0 else None


def in_namespace(path: str, function: Callable[[], T]) -> T:
    """Run `function` inside the network namespace at `path` and return what it returns or raises.

    A thread of its own does it and ends with it: setns() moves one thread only, so no other thread ever finds itself
    in the wrong namespace. Sockets and files of /proc/sys/net and /proc/thread-self/net that are opened there belong
    to that namespace for good, and child processes start in it. OSError if the namespace is gone or forbidden.
    """
    result: list[T] = []
    error: list[BaseException] = []

    def run() -> None:
        try:
            _enter(path)
            result.append(function())
        except BaseException as raised:  # handed to the caller's thread, whatever it is
            error.append(raised)

    thread = threading.Thread(target=run, name=f"netns {path}", daemon=True)
    thread.start()
    thread.join()
    if error:
        raise error[0]
    return result[0]


def inside(path: str, function: Callable[[], T]) -> T:
    """The same, and where that is the calling thread's own namespace, without the right to enter another."""
    return function() if os.stat(path).st_ino == os.stat(_OWN).st_ino else in_namespace(path, function)


def _enter(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if _libc.setns(fd, CLONE_NEWNET):  # os.setns() is there from Python 3.12
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), path)
    finally:
        os.close(fd)
