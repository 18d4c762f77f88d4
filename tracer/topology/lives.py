"""Which network namespaces come, named ones and containers', noticed within milliseconds: one may live for less than a look
at the host takes. And what else an engine tells of its containers and networks.

A thread of its own, which does nothing else. Nothing that it holds keeps a namespace alive.
"""

from __future__ import annotations

import os
import select
import struct
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import NamedTuple

from tracer.topology import netns
from tracer.topology.directory import Claim, claim, container_path
from tracer.topology.engine import Engine, EngineError, EngineEvent, Events

EVENT = struct.Struct("=iIII")  # inotify_event, without the name
MOUNT_MS = 2  # between the first looks whether a new file in the folder of named namespaces is one by now
MOUNT_SHARE = 10  # then a tenth of the file's age
FOLDER_MS = 200  # between two looks for the folder, which the first named namespace brings
RECONNECT_S, RECONNECT_MOST_S = 1.0, 30.0  # between two attempts to hear of an engine
MOUNTED_NS = 10_000_000_000  # the longest from the file to the mount


class Life(NamedTuple):
    """A namespace that came, and may be gone by now."""

    name: str
    path: str
    netns: int
    claim: Claim


class Lives:
    def __init__(self, named: Callable[[], Mapping[str, str]], told: Callable[[], None],
                 engine: Engine | None = None) -> None:
        """`named` lists the named namespaces (name -> path). `told` is called whenever there is something to take() or
        hear()."""
        self._engine = engine.another() if engine else None
        self._events: Events | None = None
        self._reconnect = (0.0, RECONNECT_S)  # (not before, next wait), monotonic s
        self._connected, self._heard = False, list[EngineEvent]()  # as hear() tells it
        self._named, self._told = named, told
        self._inotify = netns.arrivals()
        self._wake, self._waker = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._known: dict[str, Life] = {}  # by path
        self._found: list[Life] = []
        self._lock = threading.Lock()
        self._stop = False
        self._list()
        self._connect()
        self._thread = threading.Thread(target=self._run, name="lives", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._stop = True
        os.write(self._waker, b"\0")
        self._thread.join()
        for fd in (self._wake, self._waker, *([] if self._inotify is None else [self._inotify])):
            os.close(fd)
        if self._events:
            self._events.close()

    def take(self) -> list[Life]:
        """What came since the last call, in order."""
        with self._lock:
            found, self._found = self._found, []
        return found

    def hear(self) -> tuple[bool, list[EngineEvent]]:
        """The same of the engine: whether it is there anew, and its events since then."""
        with self._lock:
            connected, heard, self._connected, self._heard = self._connected, self._heard, False, []
        return connected, heard

    def _run(self) -> None:
        waiting = select.poll()
        for fd in (self._wake, self._inotify, self._events):
            if fd is not None:
                waiting.register(fd, select.POLLIN)
        pending: dict[str, int] = {}  # files that are no namespaces yet -> since when, CLOCK_MONOTONIC ns
        while not self._stop:
            if (events := self._connect()) is not None:
                waiting.register(events, select.POLLIN)
            rest_ms = FOLDER_MS if self._inotify is None else None if self._events or not self._engine else \
                1000 * max(self._reconnect[0] - time.monotonic(), 0)
            age_ms = (time.monotonic_ns() - max(pending.values(), default=0)) / 1e6
            ready = {fd for fd, _event in waiting.poll(max(MOUNT_MS, age_ms / MOUNT_SHARE) if pending else rest_ms)}
            now = time.monotonic_ns()
            if self._events and (heard := self._events.fileno()) in ready and not self._hear():
                waiting.unregister(heard)
            if self._inotify is None and (fd := netns.arrivals()) is not None:
                self._inotify = fd
                waiting.register(fd, select.POLLIN)
                pending = dict.fromkeys(os.listdir(netns.NAMED), now)
            if self._inotify in ready:
                pending |= dict.fromkeys(self._created(), now)
            if pending:
                self._list()
                there = {os.path.basename(path) for path in self._known}
                pending = {name: since for name, since in pending.items()
                           if name not in there and now < since + MOUNTED_NS}

    def _created(self) -> list[str]:
        assert self._inotify is not None
        data, found, at = os.read(self._inotify, 1 << 16), [], 0
        while at < len(data):
            _watch, _mask, _cookie, length = EVENT.unpack_from(data, at)
            at += EVENT.size + length
            found.append(data[at - length:at].rstrip(b"\0").decode(errors="surrogateescape"))
        return found

    def _list(self) -> None:
        there = {}
        for name, path in self._named().items():
            with suppress(OSError):
                there[path] = Life(name, path, netns.identify(path), Claim.NAMED)
        new = [life for path, life in there.items() if self._known.get(path) != life]
        self._known = there
        if new:
            self._tell(new)

    def _connect(self) -> Events | None:
        """A new connection, where there is none and it is time for one."""
        now = time.monotonic()
        not_before, wait = self._reconnect
        if self._engine is None or self._events or now < not_before:
            return None
        self._reconnect = (now + wait, min(2 * wait, RECONNECT_MOST_S))
        with suppress(EngineError):
            self._events = self._engine.events()
            self._reconnect = (0.0, RECONNECT_S)
            self._tell(connected=True)
        return self._events

    def _hear(self) -> bool:
        """False: the engine is gone."""
        assert self._events
        try:
            events = self._events.read()
            self._tell([life for event in events if (life := self._started(event))], events)
        except EngineError:
            self._events.close()
            self._events = None
        return self._events is not None

    def _started(self, event: EngineEvent) -> Life | None:
        """The namespace of a container that starts, before it may have ended."""
        assert self._engine
        if event.kind == "container" and event.action in ("start", "restart") and \
                (container := self._engine.inspect(event.container)) and container.pid:
            path = container_path(container)
            with suppress(OSError):
                return Life(container.name, path, netns.identify(path), claim(container))
        return None

    def _tell(self, new: Sequence[Life] = (), events: Sequence[EngineEvent] = (), connected: bool = False) -> None:
        with self._lock:
            self._found += new
            self._heard += events
            self._connected |= connected
        self._told()
