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
from tracer.cli.streaming import POLL_MS, RING_BYTES, ROUND_S, STATUS_S, Follower, Following
from tracer.errors import ExitStatus
from tracer.model.report import LiveStart
from tracer.model.run import Armed, Finish, Item, LiveBegin, Sweep
from tracer.model.topology import LinkKey, Topology

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
    _plan: Plan

    @classmethod
    def open(cls, following: Following, plan: Plan, *, in_lab: bool, in_detail: bool) -> Recording:
        host, networks = cls.named(following, in_lab)
        recording = cls(host, following, networks, in_detail)
        recording._plan = plan
        return recording

    def run(self) -> ExitStatus:
        """Until it is enough: Ctrl-C, the count or the time."""
        self._share = 1.0  # the least
        self._events = self._packets = self._lost = self._bytes = self._files = 0
        self._names = Names(self._plan.path, self._plan.keep, self._plan.force) if self._rotates() else None
        with ExitStack() as stack:
            stack.callback(self._wipe)
            self._open(stack, RECORD_RING_BYTES)
            self._watch()
            self._begin()
            stack.callback(lambda: self._writer.close())
            stopping = stack.enter_context(Stopping())
            self._begun = time.monotonic()
            self._loop(stopping)
            self._end()
        self._say_all()
        return ExitStatus.OK

    def _rotates(self) -> bool:
        return self._plan.size is not None or self._plan.seconds is not None

    def _play(self, item: Item) -> None:
        self._writer.play(item)

    def _begin(self) -> None:
        """A file, whole in itself."""
        self._path = self._names.next() if self._names else self._plan.path
        self._writer = RecordWriter(self._path, self._plan.force, lambda frames: self._probes.stack_of(frames),
                                    lambda records: self._probes.events(records), self._plan.snaplen)
        self._files += 1
        self._opened = time.monotonic()
        machine = self._probes.machine
        start = LiveStart(__version__, machine.release, self._words(), machine.attached, machine.missing)
        self._play(LiveBegin(start, machine, self._topology, time.time_ns()))
        self._play(Armed(time.monotonic_ns()))

    def _end(self) -> None:
        self._play(Finish())
        self._bytes += self._writer.size
        self._writer.close()

    def _loop(self, stopping: Stopping) -> None:
        watcher, following = self._watcher, self._following
        shown = swept = 0.0
        self._start(self._begun)
        while not stopping.asked and (following.count is None or self._packets < following.count):
            records, batch = self._probes.read_records(*self._wait())
            now = time.monotonic()
            if self._until and now >= self._until:
                break
            self._matches(len(records) > 0, now)
            if len(records) or batch.lost:
                self._events += len(records)
                self._lost += batch.lost
                self._share = min(self._share, batch.share)
                self._packets += begun(records)
                self._writer.records(records, batch)
            heard = watcher.heard
            if topology := watcher.poll():
                self._know(topology)
            if now - swept > POLL_MS / 1000:
                swept = now
                self._meet(records)
                self._play(Sweep(self._probes.until, heard))
            if now - shown > STATUS_S:
                shown = now
                self._renew()
                self._say()
            if self._is_full(now):
                self._end()
                self._begin()
            if len(records) and not self._probes.behind:
                time.sleep(ROUND_S)  # many events at a time cost less

    def _is_full(self, now: float) -> bool:
        plan = self._plan
        return (plan.size is not None and self._writer.size >= plan.size) or (
            plan.seconds is not None and now - self._opened >= plan.seconds)

    def _meet(self, records: Any) -> None:
        """A sample, since each device is seen often."""
        self._watcher.met(unknown(records[:64], self._topology))

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


def unknown(records: Any, topology: Topology) -> set[LinkKey]:
    """Devices without a name that packets of this network were met at: not those of other engines and labs on the machine,
    whose packets never come to a namespace that it has."""
    places = [(int(record["journey"]), LinkKey(int(record["netns"]), int(record["ifindex"]))) for record in records]
    ours = {journey for journey, key in places if key.netns in topology.namespaces}
    return {key for journey, key in places if journey and journey in ours and key.netns and key.ifindex
            and topology.link(key.netns, key.ifindex) is None}
