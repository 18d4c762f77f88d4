"""Writes a run to a trace file as it happens."""

from __future__ import annotations

import errno
import os
import stat
import struct
import threading
import zlib
from collections import OrderedDict
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import fields, replace
from typing import Any

from tracer import __version__
from tracer.capture import layout, pcapng
from tracer.capture.comments import Comments
from tracer.capture.pcapng import Option
from tracer.capture.plain import plain, to_json
from tracer.errors import UserError
from tracer.model.frame import ETHERNET_BYTES, frame
from tracer.model.layout import Event, Function, Place
from tracer.model.probes import HOOKS, Batch, Machine
from tracer.model.run import Armed, Begin, Item, Know, LiveBegin, Sent, Sweep

WORTH_COMPRESSING = 256
PART_BYTES = pcapng.OPTION_BYTES - len(layout.PREFIX) - 1
STAGES: Mapping[int, str] = {Place.QUEUE: "egress", Place.RECEIVE: "ingress", Place.DROP: "drop", Place.CONSUME: "end"}
FUNCTIONS: Mapping[int, str] = {
    Function.FORWARD: "l2_forward", Function.FLOOD: "l2_flood", Function.LOCAL: "l2_local", Function.SOCKET: "deliver",
    Function.PROTOCOL: "deliver", Function.NEIGHBOR: "neighbor"}
INBOUND, OUTBOUND = 1, 2
DIRECTION: Mapping[int, int] = {Place.QUEUE: OUTBOUND, Place.RECEIVE: INBOUND}
NUMBERS = 1 << 16  # journeys whose number is remembered
STACKS = 1 << 12  # stacks whose bytes are remembered
SYNC_S = 1.0
LOOKUPS = 1 << 10  # in one block


class Writer:
    """Listens to a run from its first item on. Each is in the file when play() returns, and on the disk a second later.

    `number` gives the journey of an event its number for a person, once it has been seen by whoever counts; None where
    nobody knows. Without it, journeys count in the order of first sight.

    UserError for a path that is taken, unless `force`; OSError where the disk is full: the file then ends with its last
    whole block.
    """

    def __init__(self, path: str, force: bool = False, number: Callable[[int], int | None] | None = None) -> None:
        self._path, self._count = path, number
        self._file = _create(path, force)
        self.size = 0  # up to the last whole item
        self._closing = threading.Event()
        self._syncing = threading.Thread(target=self._sync, daemon=True)
        self._syncing.start()
        self._symbols: dict[str, int] = {}
        self._stacks: dict[tuple[str, ...], bytes] = {}
        self._interfaces: dict[str, int] = {}
        self._places: dict[tuple[int, int, int, int, bytes], int] = {}  # with the names that are known now
        self._numbers: OrderedDict[int, int] = OrderedDict()
        self._comments = Comments()
        self._journeys = 0
        self._lost = 0
        self._time = 0  # of what was written last, CLOCK_MONOTONIC

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    @property
    def is_open(self) -> bool:
        return not self._closing.is_set()

    def close(self) -> None:
        """May be called again."""
        if self.is_open:
            self._closing.set()
            self._syncing.join()
            os.close(self._file)

    def _sync(self) -> None:
        """Beside the run, which must not wait for a disk."""
        while not self._closing.wait(SYNC_S):
            with suppress(OSError):  # that the disk is full is said by a write
                os.fdatasync(self._file)

    def play(self, item: Item) -> None:
        if isinstance(item, Batch):
            self._put(self._batch(item))
            return
        if isinstance(item, Begin | LiveBegin):
            self._machine = item.machine
            self._know = Know(item.topology, item.target if isinstance(item, Begin) else None)
            self._time = item.wall_ns - item.machine.clock_offset_ns
            self._put(self._head(item))
            self._put(self._item(type(item).__name__, plain(item)))
            return
        before: Item | None = None
        if isinstance(item, Machine):
            before, self._machine = self._machine, item
        elif isinstance(item, Know):
            before, self._know = self._know, item
            self._forget_names()
        elif isinstance(item, Sent):
            self._time = item.when
        elif isinstance(item, Sweep | Armed):
            self._time = item.now
        self._put(self._item(type(item).__name__, {
            field.name: plain(getattr(item, field.name)) for field in fields(item)
            if before is None or getattr(item, field.name) != getattr(before, field.name)}))

    def _forget_names(self) -> None:
        self._places.clear()

    def _head(self, begin: Begin | LiveBegin) -> bytes:
        self._interfaces["dnettrace"] = 0
        return pcapng.section([
            (pcapng.SECTION_OS, f"Linux {begin.start.kernel}".encode()),
            (pcapng.SECTION_APPLICATION, f"dnettrace {__version__}".encode()),
            custom(layout.FORMAT, struct.pack("=I", layout.VERSION))]) + pcapng.interface("dnettrace", [
                (pcapng.INTERFACE_DESCRIPTION, b"has no packets: its statistics carry what dnettrace replay needs")])

    def _item(self, name: str, members: Any, before: tuple[Option, ...] = ()) -> bytes:
        text = to_json([name, members])
        if len(text) > layout.ITEM_BYTES:
            raise UserError(f"{self._path}: the network is too large for a trace file ({len(text) >> 20} MB of {name}).")
        if len(text) > WORTH_COMPRESSING:
            text = zlib.compress(text)
        parts = [text[at:at + PART_BYTES] for at in range(0, len(text), PART_BYTES)]
        found = [*before, *(custom(layout.PART, part) for part in parts[:-1]), custom(layout.ITEM, parts[-1])]
        if self._lost:
            found.append((pcapng.STATISTICS_DROPPED, struct.pack("=Q", self._lost)))
        return pcapng.statistics(0, self._time + self._machine.clock_offset_ns, found)

    def _batch(self, batch: Batch) -> bytes:
        written: list[bytes] = []
        lookups: list[Option] = []
        self._lost += batch.lost
        self._comments.hear(batch.traces)
        for event in batch.events:
            if event.place == Place.ROUTE:
                lookups += self._record(event, layout.WITHOUT_PACKET, event.packet)
                if len(lookups) > LOOKUPS:
                    written.append(pcapng.statistics(0, event.time + self._machine.clock_offset_ns, lookups))
                    lookups = []
            else:
                written.append(self._frame(event, lookups, written))
                lookups = []
            self._time = event.time
        written.append(self._end_of_batch(batch, tuple(lookups)))
        return b"".join(written)

    def _end_of_batch(self, batch: Batch, before: tuple[Option, ...] = ()) -> bytes:
        members = plain(replace(batch, events=[]))
        del members["events"]
        return self._item("Batch", members, before)

    def _frame(self, event: Event, lookups: list[Option], written: list[bytes]) -> bytes:
        """The event's block. An interface that it needs first goes to `written`."""
        place = (event.netns, event.ifindex, event.place, event.hook, event.name)
        interface = self._places.get(place)
        if interface is None:
            interface = self._places[place] = self._interface(event, written)
        header = 0 if event.place == Place.QUEUE else ETHERNET_BYTES  # that `length` lacks
        original = max(event.length + header, ETHERNET_BYTES + event.captured)
        found = []
        if number := self._number(event.journey):
            found.append((pcapng.PACKET_ID, struct.pack("=Q", number)))
        if direction := DIRECTION.get(event.place):
            found.append((pcapng.PACKET_FLAGS, struct.pack("=I", direction)))
        said = self._comments.of(event, self._machine, self._know.topology)
        found += [(pcapng.COMMENT, text.encode(errors="replace")) for text in said]
        found += [*lookups, *self._record(event, layout.OF_PACKET)]
        return pcapng.packet(interface, event.time + self._machine.clock_offset_ns,
                             frame(event), min(original, 0xFFFFFFFF), found)

    def _record(self, event: Event, letter: int, packet: bytes = b"") -> list[Option]:
        """The event, behind the symbols that it has first."""
        found: list[Option] = []
        frames = self._stacks.get(event.stack)
        if frames is None:
            frames = self._frames(event.stack, found)
            if len(self._stacks) < STACKS:
                self._stacks[event.stack] = frames
        found.append(custom(letter, layout.EVENT_HEAD.pack(*event[:22]) + frames + event.tuples + packet))
        return found

    def _frames(self, stack: tuple[str, ...], found: list[Option]) -> bytes:
        """Their number and their symbols; those that are new go to `found`."""
        new = [name for name in dict.fromkeys(stack) if name not in self._symbols]
        new = new[:layout.SYMBOL_COUNT - 1 - len(self._symbols)]
        if new:
            self._symbols.update(zip(new, range(len(self._symbols), layout.SYMBOL_COUNT), strict=False))
            found.append(custom(layout.SYMBOLS, b"".join(map(_symbol, new))))
        numbers = [self._symbols.get(name, layout.SYMBOL_COUNT - 1) for name in stack]
        return struct.pack(f"={len(numbers) + 1}H", len(numbers), *numbers)

    def _interface(self, event: Event, written: list[bytes]) -> int:
        device = event.name.partition(b"\0")[0].decode(errors="replace")
        stage = HOOKS[event.hook] if event.place == Place.HOOK else STAGES.get(event.place) or FUNCTIONS[event.hook]
        node = self._know.topology.node(event.netns) if event.netns else ""
        name = f"{device if node == 'host' and device else '/'.join(filter(None, (node, device)))} {stage}".strip()
        name = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)  # of others' making
        if name not in self._interfaces:
            if len(self._interfaces) == layout.INTERFACE_COUNT:
                return 0
            self._interfaces[name] = len(self._interfaces)
            written.append(pcapng.interface(name))
        return self._interfaces[name]

    def _number(self, journey: int) -> int | None:
        number = self._numbers.get(journey)
        if number is None:
            self._journeys += 1
            number = self._count(journey) if self._count else self._journeys
            if number is not None:
                self._numbers[journey] = number
                if len(self._numbers) > NUMBERS:
                    self._numbers.popitem(last=False)
        return number

    def _put(self, *parts: bytes | memoryview) -> None:
        """All of it or, where the disk is full, nothing. A memoryview is of bytes."""
        left = [memoryview(part) for part in parts if part]
        size = sum(map(len, left))
        try:
            while left:
                written = os.writev(self._file, left)
                while left and written >= len(left[0]):
                    written -= len(left.pop(0))
                if written:
                    left[0] = left[0][written:]
        except OSError as error:
            with suppress(OSError):
                os.ftruncate(self._file, self.size)
            raise OSError(error.errno, os.strerror(error.errno or errno.EIO), self._path) from error
        self.size += size


def _symbol(name: str) -> bytes:
    return name.encode(errors="replace").replace(b"\0", b"?")[:layout.SYMBOL_BYTES] + b"\0"


def custom(letter: int, value: bytes) -> Option:
    return pcapng.CUSTOM, b"%b%c%b" % (layout.PREFIX, letter, value)


def _create(path: str, force: bool) -> int:
    """A new file for its owner's eyes alone, who is the user behind sudo. What `force` replaces is removed, not written
    over: whoever reads the old one keeps it, and no link leads root elsewhere."""
    try:
        if force:
            with suppress(FileNotFoundError):
                if not stat.S_ISREG(os.lstat(path).st_mode):
                    raise UserError(f"{path} is no file: choose another name.")
                os.unlink(path)
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        raise UserError(f"{path} exists: choose another name, or add --force to replace it.") from None
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}.") from None
    if os.geteuid() == 0 and os.environ.get("SUDO_UID", "").isdigit():
        user = int(os.environ["SUDO_UID"])
        group = os.environ.get("SUDO_GID", "")
        with suppress(OSError):  # a file system without owners
            os.fchown(file, user, int(group) if group.isdigit() else -1)
    return file
