"""The network kept true during a long run: what its namespaces and devices are called, while they come and go.

A thread follows what the kernel announces in the host's namespace and what the engine tells of its containers. It holds no
socket in any other namespace: that would keep it, and its devices, alive after its container ended. The namespaces of
containers and those behind the host's veth pairs are read when they come, when the host's end or the engine tells of a
change, and when a packet was met at a device that is not known there.
"""

from __future__ import annotations

import os
import select
import socket
import struct
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from tracer.errors import UserError
from tracer.model.topology import Container, FormerLink, Link, LinkKey, Namespace, Topology
from tracer.topology import changes, netns
from tracer.topology.directory import Claim, container_path
from tracer.topology.engine import EngineEvent
from tracer.topology.host import Host
from tracer.topology.lives import Life, Lives

ROUND_S = 0.02  # between two rounds while things change
PUBLISH_S = 0.15  # between two topologies
IDLE_S = 0.1  # between two while nothing is announced
ALIVE_S = 1.0  # between two looks for namespaces whose end nothing told; between two rounds where nobody asks
GRACE_S = 10.0  # how long what is gone is remembered for packets that are yet to be told
WHOLE_S, WHOLE_SHARE = 0.5, 10  # the host is read whole so seldom, and a tenth of the time at most
AGAIN_S, FORGET_S = 0.2, 60.0  # the first and the longest wait before one device is looked for again
START_S = 1.0  # the longest that is waited for all of them at the start
READ_S = 0.03  # for namespaces in one round: each takes some 10 ms
SETTLED_S = 1.0  # until a new one is read again: it is set up in steps, not all of which are heard
RECEIVE_BYTES = 4 << 20
PUZZLES = 1024

HEADER = struct.Struct("=IHHII")  # nlmsghdr
INTERFACE = struct.Struct("=B3xi")  # ifinfomsg, up to the index
NEWLINK, DELLINK = 16, 17  # RTM_*


class _Ended(NamedTuple):
    """A namespace that is no more: packets of it are yet to be told."""

    netns: int
    name: str
    namespace: Namespace | None  # None: it was not read
    until: int  # when its end was noticed, CLOCK_MONOTONIC ns


@dataclass
class _Announced:
    """Of the host's devices."""

    told: dict[int, bytes] = field(default_factory=dict)  # the last that the kernel said of one
    gone: dict[int, bytes] = field(default_factory=dict)  # the last that it said before, or only that it is gone
    others: set[int] = field(default_factory=set)  # that changed otherwise
    too_many: bool = False  # the kernel had more to say than the socket takes

    @property
    def devices(self) -> set[int]:
        return {*self.told, *self.gone, *self.others}

    def add(self, ends: bool, family: int, index: int, message: bytes) -> None:
        if family != socket.AF_UNSPEC:  # a bridge, of its port
            self.others.add(index)
        elif ends:
            self.gone[index] = self.told.pop(index, message)
        else:
            self.told[index] = message
            self.gone.pop(index, None)


class Watcher:
    """A context manager. Everything but poll(), met(), stir(), renew(), `topology`, `heard` and `news` belongs to its thread
    once that runs; `host` too. What it raises there, poll() raises."""

    topology: Topology  # the latest
    heard: int  # it has all that was announced until then, CLOCK_MONOTONIC ns
    news: int  # a file descriptor that can be read while poll() has something

    def __init__(self, host: Host) -> None:
        self._host, self._directory = host, host.directory
        self._here = host.place.netns
        self._namespaces: dict[int, Namespace] = {}  # that were read
        self._ended: list[_Ended] = []
        self._former: list[FormerLink] = []
        self._nsids: dict[int, int] = {}  # the host's ids of other namespaces -> number
        self._stale = {self._here}  # namespaces to read
        self._later: dict[int, float] = {}  # the same, not before a time, monotonic s
        self._changes = False  # that are not published
        self._whole_at = self._alive_at = self._publish_at = 0.0  # not before, monotonic s
        self._again: dict[LinkKey, tuple[float, float]] = {}  # unknown device -> (not before, next wait)
        self._busy_until = 0.0  # monotonic s
        self._lock = threading.Lock()
        self._met: set[LinkKey] = set()
        self._renewing = threading.Event()
        self._stop = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="watcher", daemon=True)

    def __enter__(self) -> Watcher:
        self._socket = netns.in_namespace(self._host.place.path, changes.open_socket)
        self.news, self._wake = (os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC) for _ in range(2))
        self._lives = Lives(self._directory.named, lambda: os.eventfd_write(self._wake, 1), self._directory.engine,
                            self._host.place.path)
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BYTES)
            self._told: Topology | None = None
            begun = time.monotonic()
            self._round()
            while self._stale - {self._here} and time.monotonic() < begun + START_S:
                self._round()
            self._later.clear()  # what is there at the start is set up
            self._publish()
            self._changes = False
        except BaseException:
            self._close()
            raise
        self._thread.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        self._stop.set()
        os.eventfd_write(self._wake, 1)
        self._thread.join()
        self._close()

    def _close(self) -> None:
        self._socket.close()
        self._lives.close()
        for fd in (self.news, self._wake):
            os.close(fd)

    def poll(self) -> Topology | None:
        """The network, where it is another than at the last call. Costs next to nothing."""
        if self._failure:
            raise self._failure
        with suppress(BlockingIOError):
            os.eventfd_read(self.news)
        before, self._told = self._told, self.topology
        return self._told if self._told is not before else None

    def met(self, keys: Iterable[LinkKey]) -> None:
        """Packets were seen at these devices, and the topology does not have them: look for them soon."""
        found = set(keys)
        with self._lock:
            self._met |= found
        if found:
            os.eventfd_write(self._wake, 1)

    def stir(self) -> None:
        """Packets are being told: keep `heard` near to now for a while."""
        now = time.monotonic()
        if now >= self._busy_until:
            os.eventfd_write(self._wake, 1)
        self._busy_until = now + ALIVE_S

    def renew(self) -> None:
        """More can be read than before: read every namespace again."""
        self._renewing.set()
        os.eventfd_write(self._wake, 1)

    # -- the thread ----------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while not self._stop.wait(ROUND_S):
                waiting = select.poll()
                for fd in (self._wake, self._socket.fileno()):
                    waiting.register(fd, select.POLLIN)
                busy = self._stale or self._later or self._changes or time.monotonic() < self._busy_until
                waiting.poll(0 if self._stale - {self._here} else int(1000 * (IDLE_S if busy else ALIVE_S)))
                with suppress(BlockingIOError):
                    os.eventfd_read(self._wake)
                self._round()
        except Exception as error:  # poll() raises it
            self._failure = error
            os.eventfd_write(self.news, 1)

    def _round(self) -> None:
        begun, now = time.monotonic_ns(), time.monotonic()
        announced = self._announced()
        lives = self._lives.take()
        events = self._listen()
        with self._lock:
            met, self._met = self._met, set()
        if self._renewing.is_set():
            self._renewing.clear()
            self._stale |= self._namespaces.keys()
        known = dict(self._directory.names)
        for life in lives:
            self._live(life)
        if announced.devices or announced.too_many or events or now >= self._alive_at:
            self._alive_at = now + ALIVE_S
            self._bury()
        changed = self._learn(events)
        for key in self._due(met, now):
            if key.netns == self._here:
                announced.others.add(key.ifindex)
            elif key.netns in self._directory.names:
                self._stale.add(key.netns)
            else:
                self._lives.search(key.netns)
        renamed = known != self._directory.names or bool(lives)
        changed |= self._read_host(announced.too_many, now)
        changed |= self._devices(announced, renamed)
        if changed or renamed:
            self._stale |= self._near() - self._namespaces.keys()
        changed |= self._read(now)
        changed |= self._expire()
        self._changes |= changed or renamed
        if self._changes and now >= self._publish_at:
            self._publish_at, self._changes = now + PUBLISH_S, False
            self._publish()
        if not self._changes:
            self.heard = begun

    def _announced(self) -> _Announced:
        found = _Announced()
        while True:
            try:
                data = self._socket.recv(1 << 16)
            except BlockingIOError:
                return found
            except OSError as error:
                if not changes.overrun(error):
                    raise
                found = _Announced(too_many=True)
                self._stale.add(self._here)
                continue
            at = 0
            while at + HEADER.size <= len(data):
                length, kind, *_rest = HEADER.unpack_from(data, at)
                if kind in (NEWLINK, DELLINK):
                    family, index = INTERFACE.unpack_from(data, at + HEADER.size)
                    found.add(kind == DELLINK, family, index, data[at:at + length])
                else:  # addresses, routes, rules: read with everything else of the host
                    self._stale.add(self._here)
                at += max((length + 3) & ~3, HEADER.size)

    def _listen(self) -> list[EngineEvent]:
        """The engine's events. An engine that was away is asked for its list when it is back."""
        connected, events = self._lives.hear()
        if connected:
            self._directory.list_anew()
            events = [*(EngineEvent("container", "start", c.id) for c in self._directory.containers()
                        if c.state in ("running", "paused")), *events]
        return events

    def _live(self, life: Life) -> None:
        """What came and went between two rounds has its name all the same."""
        if self._directory.learn(life.path, life.name, life.claim) != life.netns:
            self._ended.append(_Ended(life.netns, life.name, None, time.monotonic_ns()))

    def _bury(self) -> None:
        """Namespaces that ended."""
        for number, path in tuple(self._directory.paths.items()):
            if number != self._here and not netns.leads(path, number):
                self._end(number)

    def _end(self, number: int) -> None:
        self._ended.append(_Ended(number, self._directory.names[number], self._namespaces.pop(number, None),
                                  time.monotonic_ns()))
        self._directory.forget(number)
        self._stale.discard(number)
        self._nsids = {nsid: known for nsid, known in self._nsids.items() if known != number}
        # the container that it was made for ended, and another shares it still
        for container in self._directory.inspected.values():
            if container.pid and netns.leads(container_path(container), number):
                self._directory.learn(container_path(container), container.name, Claim.GUEST)

    def _learn(self, events: list[EngineEvent]) -> bool:
        directory = self._directory
        for event in events:
            identity = event.container
            known = directory.inspected.get(identity)
            if event.kind == "network":
                if event.action in ("create", "destroy", "remove"):
                    directory.list_networks_anew()
                elif known and known.pid:
                    self._inspect(identity)
            elif event.action in ("start", "restart", "unpause", "rename"):
                if event.action == "rename":
                    for number in [n for n, name in directory.names.items() if known and name == event.old_name
                                   and netns.leads(container_path(known), n)]:
                        directory.forget(number)
                self._inspect(identity)
            elif event.action in ("die", "died") and known:
                directory.inspected[identity] = replace(known, pid=0, state="exited")
            elif event.action in ("destroy", "remove"):
                directory.drop(identity)
        return bool(events)

    def _inspect(self, identity: str) -> None:
        container = self._directory.inspect(identity)
        for number in self._of([container] if container else []):
            self._touch(number)

    def _due(self, met: set[LinkKey], now: float) -> Iterator[LinkKey]:
        """Those that are unknown indeed, each at growing intervals: a device that nobody knows costs next to nothing."""
        for key in met:
            namespace = self._namespaces.get(key.netns)
            not_before, wait = self._again.get(key, (0.0, AGAIN_S))
            if now < not_before or (namespace and key.ifindex in namespace.links):
                continue
            if len(self._again) >= PUZZLES:
                self._again.clear()
            self._again[key] = (now + wait, min(2 * wait, FORGET_S))
            yield key

    def _touch(self, number: int) -> None:
        """It changed, and goes on changing for a moment."""
        if number in self._namespaces:
            self._later.setdefault(number, time.monotonic() + SETTLED_S)
        else:
            self._stale.add(number)

    def _of(self, containers: Iterable[Container]) -> set[int]:
        """Their namespaces."""
        paths = {container_path(container) for container in containers if container.pid}
        return {number for number, path in self._directory.paths.items() if path in paths}

    def _near(self) -> set[int]:
        """Namespaces that belong to this host's network: of its containers, behind its veth pairs, and asked for."""
        peers = {link.peer.netns for link in self._namespaces[self._here].links.values() if link.peer}
        wanted = peers | self._of(self._directory.inspected.values()) | self._host.asked_for()
        return wanted & self._directory.paths.keys()

    def _read_host(self, at_once: bool, now: float) -> bool:
        """Whole: 0.3 s where it has 200 devices."""
        if self._here not in self._stale or (now < self._whole_at and not at_once):
            return False
        before = self._namespaces.get(self._here)
        found = self._host.read(self._here, self._by_hand())
        if found:
            self._stale.discard(self._here)
            self._namespaces[self._here] = found
            for index, link in before.links.items() if before else ():
                self._changed(link, found.links.get(index), time.monotonic_ns())
        elif before is None:
            raise UserError("The host's network namespace cannot be read.")
        self._whole_at = now + max(WHOLE_S, WHOLE_SHARE * (time.monotonic() - now))
        return found is not None

    def _read(self, now: float) -> bool:
        """Others, as many as there is time for."""
        due = {number for number, when in self._later.items() if when < now}
        self._later = {number: when for number, when in self._later.items() if number not in due}
        self._stale |= due & self._namespaces.keys()
        changed = False
        begun = time.monotonic()
        for number in self._stale - {self._here}:
            self._stale.discard(number)
            if number not in self._namespaces:
                self._later[number] = now + SETTLED_S
            found = self._host.read(number, self._by_hand())
            if found:  # else it ended
                changed |= found != self._namespaces.get(number)
                self._namespaces[number] = found
            if time.monotonic() > begun + READ_S:
                break
        return changed

    def _by_hand(self) -> dict[int, str]:
        """Where ends of veth pairs are looked for: the host first, the latest that were made next."""
        return {self._here: self._host.place.path} | dict(reversed(self._directory.paths.items()))

    def _devices(self, announced: _Announced, more: bool) -> bool:
        """Of the host. `more`: there are namespaces in which the other end of one may be found now."""
        from tracer.topology.snapshot import former_links, read_links

        host, indexes = self._namespaces[self._here], announced.devices
        known = dict(host.links)
        waiting = {link.ifindex for link in known.values() if link.kind == "veth" and (
            (more and link.peer is None) or (link.peer and link.peer.netns == self._here and (
                link.peer.ifindex not in known or link.peer.ifindex in indexes)))}
        asked = (announced.others | waiting - announced.told.keys()) - announced.gone.keys()
        if not asked and not indexes:
            return False
        found = read_links(host.path, asked, announced.told.values(), self._nsids, self._by_hand())
        now = time.monotonic_ns()
        came_and_went = former_links(announced.gone[index] for index in announced.gone.keys() - known.keys())
        self._former += [FormerLink(link, now) for link in came_and_went.values()]
        for index in asked | indexes:
            link, before = found.get(index), known.pop(index, None)
            if link and link.peer and not netns.leads(self._directory.paths[link.peer.netns], link.peer.netns):
                link = replace(link, peer=None)  # it ended, and its id may be another's: found once that has a name
                self._nsids.clear()
            if link:
                known[index] = link = replace(link, addresses=before.addresses if before else ())
            if before:
                self._changed(before, link, now)
        for link in known.values():  # a container that was read has its own view of what changed
            if link.ifindex in indexes and link.peer and link.peer.netns in self._namespaces.keys() - {self._here}:
                self._touch(link.peer.netns)
        self._namespaces[self._here] = replace(host, links=known)
        return known != host.links

    def _changed(self, before: Link, link: Link | None, now: int) -> None:
        """Keep what is gone. A veth pair goes in steps: off its bridge, both ends in the host, and away."""
        away = before.peer and before.peer.netns != self._here
        if link is None or (away and link.peer != before.peer) or (before.master and link.master != before.master):
            self._former.append(FormerLink(before, now, link is None))

    def _expire(self) -> bool:
        end = time.monotonic_ns() - int(GRACE_S * 1e9)
        before = len(self._ended) + len(self._former)
        self._ended = [ended for ended in self._ended if ended.until > end]
        self._former = [former for former in self._former if former.until > end]
        return before != len(self._ended) + len(self._former)

    def _publish(self) -> None:
        directory = self._directory
        names = {end.netns: end.name for end in self._ended} | directory.names
        read = {end.netns: end.namespace for end in self._ended if end.namespace} | self._namespaces
        host = read[self._here]
        gone = {former.link.ifindex for former in self._former if former.gone} - host.links.keys()
        links = {}
        for former in self._former:
            index, peer = former.link.ifindex, former.link.peer
            whole = peer is not None and former.link.master is not None
            if index in gone and (whole or index not in links):
                links[index] = former.link
        read[self._here] = replace(host, links=links | dict(host.links))
        containers = {c.id: c for c in directory.containers()} | directory.inspected
        self.topology = Topology(self._here, {n: replace(one, name=names.get(n, one.name)) for n, one in read.items()},
                                 names, tuple(containers.values()), tuple(directory.networks()), tuple(self._former),
                                 directory.client)
        os.eventfd_write(self.news, 1)
