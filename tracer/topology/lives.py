"""When network namespaces begin and end, to a few milliseconds: the next one that is made has the inode of one that ended.

A thread of its own, which does nothing else: named namespaces by inotify, containers' by the end of their first process
(pidfd). Neither keeps a namespace alive.
"""

from __future__ import annotations

import os
import select
import struct
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace

from tracer.topology import netns

EVENT = struct.Struct("=iIII")  # inotify_event, without the name
MOUNT_MS = 2  # between the first looks whether a new file in the folder of named namespaces is one by now
MOUNT_SHARE = 10  # then a tenth of the file's age
FOLDER_MS = 200  # between two looks for the folder, which the first named namespace brings
MOUNTED_NS = 10_000_000_000  # the longest from the file to the mount


@dataclass(frozen=True, slots=True)
class Life:
    """A namespace that began, or with `until`, one that ended. Times are CLOCK_MONOTONIC ns."""

    name: str  # of a named one
    path: str
    inode: int
    since: int = 0  # it began after this
    until: int | None = None  # its end was noticed then


class Lives:
    def __init__(self, named: Callable[[], Mapping[str, str]], told: Callable[[], None]) -> None:
        """`named` lists the named namespaces (name -> path). `told` is called whenever there is something to take()."""
        self._named, self._told = named, told
        self._inotify = netns.arrivals()
        self._wake, self._waker = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._known: dict[str, Life] = {}  # named ones, by path
        self._processes: dict[int, Life] = {}  # by pidfd
        self._new: list[Life] = []  # to follow
        self._found: list[Life] = []
        self._lock = threading.Lock()
        self._stop = False
        self._listed = 0
        self._list()
        self._thread = threading.Thread(target=self._run, name="lives", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._stop = True
        os.write(self._waker, b"\0")
        self._thread.join()
        for fd in (self._wake, self._waker, *self._processes, *([] if self._inotify is None else [self._inotify])):
            os.close(fd)

    def follow(self, path: str, inode: int) -> None:
        """Tell the end of this namespace of a process, /proc/PID/ns/net."""
        with self._lock:
            self._new.append(Life("", path, inode))
        os.write(self._waker, b"\0")

    def take(self) -> list[Life]:
        """What began and ended since the last call, in order."""
        with self._lock:
            found, self._found = self._found, []
        return found

    def _run(self) -> None:
        waiting = select.poll()
        for fd in (self._wake, self._inotify):
            if fd is not None:
                waiting.register(fd, select.POLLIN)
        rest_ms = FOLDER_MS if self._inotify is None else None
        pending: dict[str, int] = {}  # files that are no namespaces yet -> since when, CLOCK_MONOTONIC ns
        while not self._stop:
            age_ms = (time.monotonic_ns() - max(pending.values(), default=0)) / 1e6
            ready = {fd for fd, _event in waiting.poll(max(MOUNT_MS, age_ms / MOUNT_SHARE) if pending else rest_ms)}
            now = time.monotonic_ns()
            if self._inotify is None and (fd := netns.arrivals()) is not None:
                self._inotify, rest_ms = fd, None
                waiting.register(fd, select.POLLIN)
                pending = dict.fromkeys(os.listdir(netns.NAMED), now)
            if self._wake in ready:
                os.read(self._wake, 4096)
                self._take_in(waiting)
            if self._inotify in ready:
                pending |= dict.fromkeys(self._created(), now)
            if self._inotify in ready or pending:
                self._list()
                there = {os.path.basename(path) for path in self._known}
                pending = {name: since for name, since in pending.items()
                           if name not in there and now < since + MOUNTED_NS}
            for fd in ready & self._processes.keys():
                life = self._processes.pop(fd)
                waiting.unregister(fd)
                os.close(fd)
                self._tell(replace(life, until=now))

    def _take_in(self, waiting: select.poll) -> None:
        with self._lock:
            new, self._new = self._new, []
        for life in new:
            with suppress(OSError, ValueError):  # it ended, or the kernel has none: then its path is looked at now and again
                fd = os.pidfd_open(int(life.path.split("/")[2]))
                self._processes[fd] = life
                waiting.register(fd, select.POLLIN)

    def _created(self) -> list[str]:
        assert self._inotify is not None
        data, found, at = os.read(self._inotify, 1 << 16), [], 0
        while at < len(data):
            _watch, mask, _cookie, length = EVENT.unpack_from(data, at)
            at += EVENT.size + length
            if mask & netns.IN_CREATE:
                found.append(data[at - length:at].rstrip(b"\0").decode(errors="surrogateescape"))
        return found

    def _list(self) -> None:
        now = time.monotonic_ns()
        there = {}
        for name, path in self._named().items():
            with suppress(OSError):
                there[path] = Life(name, path, netns.inode(path), self._listed)
        for path, life in tuple(self._known.items()):
            if path not in there or there[path].inode != life.inode:
                del self._known[path]
                self._tell(replace(life, until=now))
        for path, life in there.items():
            if path not in self._known:
                self._known[path] = life
                self._tell(life)
        self._listed = now

    def _tell(self, life: Life) -> None:
        with self._lock:
            self._found.append(life)
        self._told()
