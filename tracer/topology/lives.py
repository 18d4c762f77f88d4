"""Which network namespaces come, named ones and containers', noticed within milliseconds: one may live for less than a look
at the host takes. And what else an engine tells of its containers and networks.

A thread of its own, which does nothing else. Nothing that it holds keeps a namespace alive. A busy engine says that a
container runs when that has ended, so processes are searched for it whenever the host's devices change: `runc` sets its
namespace up, and its end of the veth pair, before its program runs.
"""

from __future__ import annotations

import os
import re
import select
import struct
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple

from tracer.model.topology import inode
from tracer.topology import changes, netns
from tracer.topology.directory import Claim, claim, container_path
from tracer.topology.engine import Engine, EngineError, EngineEvent, Events

EVENT = struct.Struct("=iIII")  # inotify_event, without the name
MOUNT_MS = 2  # between the first looks whether a new file in the folder of named namespaces is one by now
MOUNT_SHARE = 10  # then a tenth of the file's age
FOLDER_MS = 200  # between two looks for the folder, which the first named namespace brings
RECONNECT_S, RECONNECT_MOST_S = 1.0, 30.0  # between two attempts to hear of an engine
SEARCH_REST = 2  # behind a search, in times that it took
NAMES = 4096  # of containers that are remembered
CONTAINER_ID = re.compile("[0-9a-f]{64}")
MOUNTED_NS = 10_000_000_000  # the longest from the file to the mount


class Life(NamedTuple):
    """A namespace that came, and may be gone by now."""

    name: str
    path: str
    netns: int
    claim: Claim


class Lives:
    def __init__(self, named: Callable[[], Mapping[str, str]], told: Callable[[], None],
                 engine: Engine | None = None, host: str | None = None) -> None:
        """`named` lists the named namespaces (name -> path). `told` is called whenever there is something to take() or
        hear(). `host` opens the namespace of the engine's bridges."""
        self._engine = engine.another() if engine else None
        self._events: Events | None = None
        self._reconnect = (0.0, RECONNECT_S)  # (not before, next wait), monotonic s
        self._connected, self._heard = False, list[EngineEvent]()  # as hear() tells it
        self._named, self._told = named, told
        self._inotify = netns.arrivals()
        self._wake, self._waker = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._known: dict[str, Life] = {}  # by path
        self._found: list[Life] = []
        self._names: dict[str, str] = {}  # of containers, by id; none where the engine does not know it
        self._wanted: set[int] = set()  # inodes
        self._searching, self._search_at = False, 0.0  # there is need, but not before, monotonic s
        self._lock = threading.Lock()
        self._stop = False
        self._devices = netns.in_namespace(host, partial(changes.open_socket, changes.LINKS)) if engine and host else None
        self._ours = {os.stat(path).st_ino for path in ("/proc/self/ns/net", host or "/proc/self/ns/net")}
        # (inode, container's id), as the last search found them. What is there at the start, the engine lists.
        self._searched = set(self._containers()) if engine else set()
        self._list()
        self._connect()
        self._thread = threading.Thread(target=self._run, name="lives", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._stop = True
        self._awake()
        self._thread.join()
        for fd in (self._wake, self._waker, *([] if self._inotify is None else [self._inotify])):
            os.close(fd)
        for heard in (self._events, self._devices):
            if heard:
                heard.close()

    def search(self, number: int) -> None:
        """A packet came from a namespace without a name: look for it."""
        with self._lock:
            self._wanted.add(inode(number))
        self._awake()

    def _awake(self) -> None:
        with suppress(BlockingIOError):  # it is
            os.write(self._waker, b"\0")

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
        for fd in (self._wake, self._inotify, self._events, self._devices):
            if fd is not None:
                waiting.register(fd, select.POLLIN)
        pending: dict[str, int] = {}  # files that are no namespaces yet -> since when, CLOCK_MONOTONIC ns
        while True:
            if (events := self._connect()) is not None:
                waiting.register(events, select.POLLIN)
            ready = {fd for fd, _event in waiting.poll(self._rest_ms(pending))}
            if self._stop:
                return
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
            if self._wake in ready:
                self._searching |= bool(os.read(self._wake, 1 << 16))
            if self._devices and self._devices.fileno() in ready:
                self._searching |= changes.drain(self._devices)
            if self._searching and time.monotonic() >= self._search_at:
                self._search()

    def _rest_ms(self, pending: Mapping[str, int]) -> float | None:
        """Until there is something to look at without being told. None: never."""
        found, now = [], time.monotonic()
        if pending:
            found.append(max(MOUNT_MS, (now * 1000 - max(pending.values()) / 1e6) / MOUNT_SHARE))
        if self._inotify is None:
            found.append(FOLDER_MS)
        if self._engine and not self._events:
            found.append(1000 * max(self._reconnect[0] - now, 0))
        if self._searching:
            found.append(1000 * max(self._search_at - now, 0))
        return min(found, default=None)

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
            for event in events:
                self._note(event)
            self._tell([life for event in events if (life := self._started(event))], events)
        except EngineError:
            self._events.close()
            self._events = None
        return self._events is not None

    def _started(self, event: EngineEvent) -> Life | None:
        """The namespace of a container that starts, before it may have ended."""
        assert self._engine
        if event.kind == "container" and event.action in ("start", "restart"):
            with suppress(OSError, EngineError):  # an engine that does not answer: what else it told counts
                if (container := self._engine.inspect(event.container)) and container.pid:
                    path = container_path(container)
                    return Life(container.name, path, netns.identify(path), claim(container))
        return None

    def _note(self, event: EngineEvent) -> None:
        """What it calls a container; and one that ended may start again, with the same inode."""
        if event.kind == "container" and event.name:
            self._names[event.container] = event.name
        if event.action in ("die", "died"):
            self._searched = {found for found in self._searched if found[1] != event.container}
        elif event.action in ("destroy", "remove"):
            self._names.pop(event.container, None)

    def _search(self) -> None:
        begun = time.monotonic()
        with self._lock:
            wanted, self._wanted = self._wanted, set()
        found = self._containers()
        new = []
        for key in found.keys() - {known for known in self._searched if known[0] not in wanted}:
            with suppress(OSError, EngineError):
                if name := self._name(key[1]):
                    new.append(Life(name, found[key], netns.identify(found[key]), Claim.GUEST))
        self._searched = set(found)
        if new:
            self._tell(new)
        end = time.monotonic()
        self._searching, self._search_at = False, end + SEARCH_REST * (end - begun)

    def _containers(self) -> dict[tuple[int, str], str]:
        """Where they have namespaces of their own: (inode, id of the latest that came there) -> path."""
        found, inodes = {}, set(self._ours)
        for pid in sorted((int(name) for name in os.listdir("/proc") if name.isdecimal()), reverse=True):
            with suppress(OSError):
                number = os.stat(path := f"/proc/{pid}/ns/net").st_ino
                if number not in inodes and (identity := CONTAINER_ID.search(Path(f"/proc/{pid}/cgroup").read_text())):
                    inodes.add(number)
                    found[number, identity[0]] = path
        return found

    def _name(self, identity: str) -> str:
        if identity not in self._names:
            if len(self._names) >= NAMES:
                self._names.clear()
            container = self._engine.inspect(identity) if self._engine else None
            self._names[identity] = container.name if container else ""
        return self._names[identity]

    def _tell(self, new: Sequence[Life] = (), events: Sequence[EngineEvent] = (), connected: bool = False) -> None:
        with self._lock:
            self._found += new
            self._heard += events
            self._connected |= connected
        self._told()
