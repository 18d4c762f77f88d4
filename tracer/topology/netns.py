"""Network namespaces: their inodes, their names, and running a function inside one."""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

NAMED = "/run/netns"  # where `ip netns` and pyroute2 keep named namespaces
CLONE_NEWNET = 0x40000000
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


def _enter(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if _libc.setns(fd, CLONE_NEWNET):  # os.setns() is there from Python 3.12
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), path)
    finally:
        os.close(fd)
