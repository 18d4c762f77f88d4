"""Network namespaces: their inodes, their names, and running a function inside one."""

from __future__ import annotations

import ctypes
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

NAMED = "/run/netns"  # where `ip netns` and pyroute2 keep named namespaces
CLONE_NEWNET = 0x40000000
IN_CREATE, IN_DELETE = 0x100, 0x200
_NSFS_DEVICE = os.stat("/proc/self/ns/net").st_dev  # one nsfs instance holds every namespace of the machine

_libc = ctypes.CDLL(None, use_errno=True)


def inode(path: str) -> int:
    """The number that the kernel knows the namespace by (`net->ns.inum`). OSError if `path` is gone or forbidden."""
    return os.stat(path).st_ino


def leads(path: str, number: int) -> bool:
    """Does `path` still open the namespace with this inode? Not where that ended and the path is gone or another's."""
    try:
        return inode(path) == number
    except OSError:
        return False


def begun(path: str) -> int:
    """When the process of a /proc/PID/ns/net began, CLOCK_MONOTONIC in ns; 0 if it ended or is none."""
    try:
        ticks = int(Path(path).parents[1].joinpath("stat").read_text().rpartition(")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return 0
    suspended = time.clock_gettime_ns(time.CLOCK_BOOTTIME) - time.monotonic_ns()
    return ticks * 10**9 // os.sysconf("SC_CLK_TCK") - suspended


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
    """An inotify descriptor that can be read once a named namespace comes or goes: a moment before a new one is mounted on
    its file. None where there is no folder for them, or no inotify."""
    fd = _libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    if fd >= 0 and _libc.inotify_add_watch(fd, NAMED.encode(), IN_CREATE | IN_DELETE) < 0:
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
    return function() if leads("/proc/thread-self/ns/net", inode(path)) else in_namespace(path, function)


def _enter(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if _libc.setns(fd, CLONE_NEWNET):  # os.setns() is there from Python 3.12
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), path)
    finally:
        os.close(fd)
