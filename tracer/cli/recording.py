"""One run of `record`: as one of `live`, but nothing is told, and no journey put together, so that nothing is lost."""

from __future__ import annotations

import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from tracer import __version__
from tracer.capture.records import RecordWriter, begun
from tracer.capture.rotation import Names
from tracer.cli.stopping import Stopping
from tracer.cli.streaming import IDLE_S, POLL_MS, RING_BYTES, STATUS_S, Follower, Following
from tracer.errors import ExitStatus
from tracer.kernel.probes import Probes
from tracer.model.report import LiveStart
from tracer.model.run import Armed, Finish, Know, LiveBegin, Sweep
from tracer.model.selection import Stream as Selection
from tracer.model.topology import LinkKey, Topology
from tracer.topology.watcher import Watcher

RECORD_RING_BYTES = 4 * RING_BYTES


@dataclass(frozen=True, slots=True)
class Plan:
    """How it is written."""

    path: str
    force: bool
    snaplen: int | None
    size: int | None  # bytes of a file, about
    seconds: float | None  # of a file
    keep: int | None  # files


class Recording(Follower):
    """Made by open(), used once by run()."""

    _writer: RecordWriter
    _topology: Topology
    _plan: Plan

    @classmethod
    def open(cls, following: Following, plan: Plan, *, in_lab: bool) -> Recording:
        host, networks = cls.named(following, in_lab)
        recording = cls(host, following, networks)
        recording._plan = plan
        return recording

    def run(self) -> ExitStatus:
        """Until it is enough: Ctrl-C, the count or the time."""
        self._share = 1.0  # the least
        self._events = self._packets = self._lost = self._bytes = self._files = 0
        self._names = Names(self._plan.path, self._plan.keep, self._plan.force) if self._rotates() else None
        with ExitStack() as stack:
            stack.callback(self._wipe)
            probes = stack.enter_context(Probes(Selection(self._expression(), bool(self._following.containers)), rules=False,
                                                ring_bytes=RECORD_RING_BYTES, shed=True))
            watcher = stack.enter_context(Watcher(self._host))
            self._topology = watcher.topology
            self._watch(probes)
            watcher.read(self._at_first(self._topology))
            self._begin(probes)
            stack.callback(lambda: self._writer.close())
            stopping = stack.enter_context(Stopping())
            self._begun = time.monotonic()
            self._loop(probes, watcher, stopping)
            self._end()
        self._say_all()
        return ExitStatus.OK

    def _rotates(self) -> bool:
        return self._plan.size is not None or self._plan.seconds is not None

    def _begin(self, probes: Probes) -> None:
        """A file, whole in itself."""
        self._path = self._names.next() if self._names else self._plan.path
        self._writer = RecordWriter(self._path, self._plan.force, probes.stack_of, probes.events, self._plan.snaplen)
        self._files += 1
        self._opened = time.monotonic()
        machine = probes.machine
        start = LiveStart(__version__, machine.release, self._words(), machine.attached, machine.missing)
        self._writer.play(LiveBegin(start, machine, self._topology, time.time_ns()))
        self._writer.play(Armed(time.monotonic_ns()))

    def _end(self) -> None:
        self._writer.play(Finish())
        self._bytes += self._writer.size
        self._writer.close()

    def _loop(self, probes: Probes, watcher: Watcher, stopping: Stopping) -> None:
        following, matched = self._following, self._begun
        shown = swept = 0.0
        armed = self._arm(probes)
        while not stopping.asked and (following.count is None or self._packets < following.count):
            records, batch = probes.read_records(POLL_MS)
            now = time.monotonic()
            if following.duration is not None and now - self._begun >= following.duration:
                break
            if len(records):
                matched = now
                armed = armed or self._arm(probes)
            elif armed and now - matched > IDLE_S:
                probes.disarm()
                armed = False
            if len(records) or batch.lost:
                self._events += len(records)
                self._lost += batch.lost
                self._share = min(self._share, batch.share)
                self._packets += begun(records)
                self._writer.records(records, batch)
            heard = watcher.heard
            if topology := watcher.poll():
                more = topology.namespaces.keys() - self._topology.namespaces.keys()
                self._topology = topology
                self._watch(probes)
                self._writer.play(probes.machine)
                if more:  # where netfilter was not watched until now
                    self._writer.play(Armed(time.monotonic_ns()))
                self._writer.play(Know(topology, None))
            if now - swept > POLL_MS / 1000:
                swept = now
                self._meet(records, watcher)
                self._writer.play(Sweep(time.monotonic_ns(), heard))
            if now - shown > STATUS_S:
                shown = now
                self._say()
            if self._is_full(now):
                self._end()
                self._begin(probes)

    def _is_full(self, now: float) -> bool:
        plan = self._plan
        return (plan.size is not None and self._writer.size >= plan.size) or (
            plan.seconds is not None and now - self._opened >= plan.seconds)

    def _arm(self, probes: Probes) -> bool:
        probes.arm()
        self._writer.play(Armed(time.monotonic_ns()))
        return True

    def _watch(self, probes: Probes) -> None:
        if self._following.containers:
            probes.choose(self._chosen(self._topology))
        for namespace in self._topology.namespaces.values():
            probes.watch(namespace)

    def _meet(self, records: Any, watcher: Watcher) -> None:
        """Devices that nobody knows the names of yet: a sample, since each is seen often."""
        keys = {(int(record["netns"]), int(record["ifindex"])) for record in records[:64]}
        watcher.met({LinkKey(*key) for key in keys if all(key) and self._topology.link(*key) is None})

    # -- how it goes -----------------------------------------------------------------------------------------------

    def _say(self) -> None:
        if sys.stderr.isatty():
            sys.stderr.write(f"\r\x1b[2K{self._line()}")
            sys.stderr.flush()

    def _wipe(self) -> None:
        if sys.stderr.isatty():
            sys.stderr.write("\r\x1b[2K")

    def _line(self) -> str:
        size = self._bytes + (self._writer.size if self._writer.is_open else 0)
        lost = f"{self._lost:,} lost" if self._lost else "none lost"
        part = f", down to {self._share:.2%} of the packets followed under load" if self._share < 1 else ""
        return f"{self._events:,} events of {self._packets:,} packets, {lost}{part}, {size / 1e6:,.1f} MB"

    def _say_all(self) -> None:
        files = f"{self._path}" if self._files == 1 else f"{self._files} files, the last one {self._path}"
        print(f"{self._line()} in {time.monotonic() - self._begun:.1f} s: {files}")
