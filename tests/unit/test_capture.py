"""The trace file: what is written is read back, cut files are read up to where they are cut, permissions, full disks."""

from __future__ import annotations

import errno
import io
import json
import os
import stat
import struct
import sys
from collections.abc import Mapping, Sequence
from enum import Enum
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import pytest

from tests.unit.trace import every_kind, items, plain, repeated, write
from tracer.capture import layout, pcapng
from tracer.capture.plain import ADDRESSES, has_members
from tracer.capture.reader import Reader
from tracer.capture.writer import Writer
from tracer.cli.telling import Telling
from tracer.errors import UserError
from tracer.model.layout import ALIKE, EVENT, Event, Place
from tracer.model.probes import Batch
from tracer.model.run import Begin, Item, Know, LiveBegin
from tracer.model.topology import has_cookie, inode
from tracer.render.json_lines import JsonRenderer

SAMPLES = Path(__file__).parent / "traces"


def read(path: Path) -> tuple[list[Item], str | None]:
    with path.open("rb") as stream:
        reader = Reader(stream, path.name)
        return plain(reader), reader.cut


@pytest.mark.parametrize("name", ["one_bridge", "gateway", "isolated", "outside", "arp", "one_bridge_v6", "fragments",
                                  "published", "itself", "nobody", "probed", "probed_host", "probed_udp", "probed_waiting"])
def test_what_is_read_is_what_was_written(name: str, tmp_path: Path) -> None:
    assert read(write(tmp_path / "run.pcapng", items(name))) == (items(name), None)


def test_events_of_one_flow_are_alike(tmp_path: Path) -> None:
    with write(tmp_path / "run.pcapng", repeated(2)).open("rb") as stream:
        events = [event for item in Reader(stream, "run") if isinstance(item, Batch) for event in item.events]
    same: dict[object, set[object]] = {}
    for event in events:
        same.setdefault(event.like, set()).add(ALIKE(event))
    assert None not in same and all(len(found) == 1 for found in same.values())
    assert len(same) == len({ALIKE(event) for event in events}) < len(events)


def test_every_kind_of_item(tmp_path: Path) -> None:
    assert read(write(tmp_path / "run.pcapng", every_kind())) == (every_kind(), None)


def test_every_type_of_a_run_has_its_json() -> None:
    """A new member of the model of a type that the codec does not know must not be found by a user's recording."""
    seen: set[Any] = set()

    def walk(kind: Any) -> None:
        if kind in seen or kind in (Event, type(None), Ellipsis):
            return
        seen.add(kind)
        if has_members(kind):
            for hint in get_type_hints(kind).values():
                walk(hint)
        elif origin := get_origin(kind):
            assert origin in (tuple, frozenset, list, Sequence, Union, UnionType) or issubclass(origin, Mapping), kind
            for argument in get_args(kind):
                walk(argument)
        else:
            assert kind in (bool, int, float, str, bytes, *ADDRESSES) or issubclass(kind, Enum), kind

    walk(Item)


def test_the_event_of_version_2() -> None:
    """Files depend on it: when it changes, the version and a converter come with it, and a sample stays in the tests."""
    assert layout.VERSION == 2
    assert EVENT.format == "=QQQQQQIIIIIHHHBBBBBB14s16s96s2s"


def test_a_file_that_is_cut_anywhere_is_read_up_to_there(tmp_path: Path) -> None:
    whole = write(tmp_path / "run.pcapng", every_kind()).read_bytes()
    starts = [block.at for block in pcapng.blocks((tmp_path / "run.pcapng").open("rb"))] + [len(whole)]
    begun, cut = starts[3], tmp_path / "cut.pcapng"
    for length in range(begun, len(whole), 997):
        cut.write_bytes(whole[:length])
        found, why = read(cut)
        assert isinstance(found[0], Begin)
        assert why == ("it ends before the run did" if length in starts else f"it is cut at byte {length}, within a block")
        complete = found[:-1] if isinstance(found[-1], Batch) else found
        assert complete == every_kind()[:len(complete)]


def test_options_may_have_another_order_in_each_block(tmp_path: Path) -> None:
    path = write(tmp_path / "run.pcapng", items())
    with path.open("rb") as stream:
        blocks = list(pcapng.blocks(stream))
    for turn in range(2):
        with path.open("wb") as out:
            for at, block in enumerate(blocks):
                body = block.body
                if block.kind == pcapng.PACKET and at % 2 == turn:
                    options = list(pcapng.read_packet(block)[3])
                    first = [option for option in options if option[0] in (pcapng.PACKET_ID, pcapng.PACKET_FLAGS)]
                    body = body[:-len(pcapng.options(options))] + pcapng.options([*reversed(first), *options[len(first):]])
                out.write(pcapng.block(block.kind, body))
        assert read(path) == (items(), None)


def test_a_batch_that_was_not_completed_is_told_all_the_same(tmp_path: Path) -> None:
    path = write(tmp_path / "run.pcapng", items())
    data = path.read_bytes()
    packets = [b for b in pcapng.blocks(path.open("rb")) if b.kind == pcapng.PACKET]
    path.write_bytes(data[:packets[5].at])
    found, _why = read(path)
    batch = next(item for item in items() if isinstance(item, Batch))
    last = found[-1]
    assert isinstance(last, Batch)
    assert 5 <= len(last.events) <= 10 and last.events == batch.events[:len(last.events)]


def test_it_is_for_its_owner_alone_who_is_the_user_behind_sudo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[tuple[int, int]] = []
    monkeypatch.setattr("os.geteuid", lambda: 0)
    monkeypatch.setattr("os.fchown", lambda _file, user, group: given.append((user, group)))
    monkeypatch.setenv("SUDO_UID", "1234")
    monkeypatch.setenv("SUDO_GID", "567")
    path = write(tmp_path / "run.pcapng", items())
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert given == [(1234, 567)]


def test_a_file_that_is_there_is_replaced_only_by_force(tmp_path: Path) -> None:
    path, other = tmp_path / "run.pcapng", tmp_path / "other"
    other.write_text("kept")
    path.symlink_to(other)
    for _turn in "link", "file":
        with pytest.raises(UserError, match=r"run.pcapng (exists: choose another name, or add --force|is no file)"):
            Writer(str(path))
        path.unlink()
        path.write_text("old")
    with Writer(str(path), force=True) as writer:
        writer.play(items()[0])
    assert path.read_bytes()[:4] == b"\n\r\r\n"
    assert other.read_text() == "kept"


@pytest.mark.parametrize(("name", "words"), [("none/run", "No such file or directory"), (".", "is no file")])
def test_a_path_that_cannot_be_written(name: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=words):
        Writer(str(tmp_path / name), force=True)


def test_a_full_disk_leaves_whole_items(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, run = tmp_path / "run.pcapng", items()
    with Writer(str(path)) as writer:
        for item in run[:2]:
            writer.play(item)
        room = [1000, 0]
        real = os.write

        def full(file: int, parts: list[memoryview]) -> int:
            if not (left := room.pop(0)):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return real(file, b"".join(parts)[:left])

        monkeypatch.setattr("os.writev", full)
        with pytest.raises(OSError, match=r"No space left on device: .*run\.pcapng"):
            writer.play(run[2])
    assert read(path) == (run[:2], "it ends before the run did")


@pytest.mark.parametrize("name", ["one_bridge", "fragments", "outside", "published"])
def test_frames_have_the_numbers_of_their_journeys(name: str, tmp_path: Path) -> None:
    path, shown = tmp_path / "run.pcapng", io.StringIO()
    telling = Telling(JsonRenderer(shown), verbose=True)
    with Writer(str(path), number=telling.number) as writer:
        for item in items(name):
            telling.play(item)
            writer.play(item)
    frames = [dict(pcapng.read_packet(block)[3]) for block in pcapng.blocks(path.open("rb")) if block.kind == pcapng.PACKET]
    rows = [json.loads(line) for line in shown.getvalue().splitlines()]
    assert {int.from_bytes(found[pcapng.PACKET_ID], sys.byteorder) for found in frames} == {
        row["id"] for row in rows if row["type"] == "journey"}


def of_blocks(path: Path, kind: int, at: int, code: int) -> list[str]:
    return [value.decode() for block in pcapng.blocks(path.open("rb")) if block.kind == kind
            for option, value in (pcapng.read_packet(block)[3] if kind == pcapng.PACKET else pcapng.read_options(block, at))
            if option == code]


def test_drops_and_rewrites_are_said(tmp_path: Path) -> None:
    said = of_blocks(write(tmp_path / "run.pcapng", items("published")), pcapng.PACKET, 0, pcapng.COMMENT)
    assert [text for text in said if not text.startswith("kernel stack: ")] == [
        "destination rewritten: 198.51.100.2 port 8080 → 172.17.0.3 port 80", "drop reason: NO_SOCKET",
        "source rewritten: 172.17.0.3 port 80 → 198.51.100.2 port 8080", "drop reason: NO_SOCKET"]


def test_a_device_s_name_is_shown_and_not_run(tmp_path: Path) -> None:
    begin, _sent, batch, *_rest = items()
    assert isinstance(batch, Batch)
    event = next(event for event in batch.events if event.ifindex)
    hostile = event._replace(place=Place.QUEUE, name=b"e\x1b[2J".ljust(16, b"\0"))
    path = write(tmp_path / "run.pcapng", [begin, Batch([hostile], 0)])
    assert of_blocks(path, pcapng.INTERFACE, 8, pcapng.INTERFACE_NAME) == ["dnettrace", "c1/e\\x1b[2J egress"]


def test_a_newer_file_is_refused_by_name(tmp_path: Path) -> None:
    path = write(tmp_path / "run.pcapng", items())
    mark = layout.PREFIX + bytes((layout.FORMAT,))
    data = path.read_bytes()
    assert data.count(mark) == 1
    path.write_bytes(data.replace(mark + struct.pack("=I", 2), mark + struct.pack("=I", 7)))
    with pytest.raises(UserError, match=r"run\.pcapng was written by a newer dnettrace \(format 7; this one reads up to 2"):
        read(path)


def test_the_sample_of_version_1() -> None:
    """Made when the format was new, and never made again: each later version reads it."""
    found, cut = read(SAMPLES / "version_1.pcapng")
    assert cut is None
    assert [type(item).__name__ for item in found] == [
        "Begin", "Sent", "Batch", "Answer", "Machine", "Tell", "Sent", "Batch", "Answer", "Machine", "Tell", "Machine",
        "Know", "Know", "Batch", "Sent", "Answer", "Tell", "Sweep", "Finish"]
    begin, batch = found[0], found[2]
    assert isinstance(begin, Begin) and isinstance(batch, Batch)
    assert (begin.start.source.name, str(begin.selection.destination), len(batch.events)) == ("c1", "172.17.0.3", 55)
    assert {event.name.partition(b"\0")[0] for event in batch.events} >= {b"eth0", b"docker0"}


def test_the_live_sample_of_version_1() -> None:
    found, cut = read(SAMPLES / "version_1_live.pcapng")
    assert cut is None
    assert {type(item).__name__ for item in found} == {
        "LiveBegin", "Machine", "Know", "Armed", "Sweep", "Pulse", "Batch", "Finish"}
    begin = found[0]
    assert isinstance(begin, LiveBegin) and begin.start.following == "icmp"
    assert sum(len(item.events) for item in found if isinstance(item, Batch)) == 153


def test_the_sample_of_version_2() -> None:
    found, cut = read(SAMPLES / "version_2.pcapng")
    assert cut is None
    begin, batch = found[0], next(item for item in found if isinstance(item, Batch) and item.events)
    assert isinstance(begin, Begin) and begin.start.source.name == "c1"
    assert has_cookie(begin.topology.host)
    assert {begin.topology.node(event.netns) for event in batch.events if event.netns} == {"c1", "c2", "host"}


def test_the_live_sample_of_version_2() -> None:
    """Two containers, one after the other, had one inode."""
    found, cut = read(SAMPLES / "version_2_live.pcapng")
    assert cut is None
    known = {number: name for item in found if isinstance(item, Know) for number, name in item.topology.names.items()}
    first, second = (next(number for number, name in known.items() if name == one) for one in ("short0", "short1"))
    assert inode(first) == inode(second) and first != second
    met = {event.netns for item in found if isinstance(item, Batch) for event in item.events}
    assert {first, second} <= met


def test_version_1_has_no_name_for_an_inode_that_two_namespaces_had() -> None:
    second = {"inode": 7, "name": "second"}
    topology = {"names": [[7, "second"], [8, "c1"]], "namespaces": [[7, second], [8, {"inode": 8, "name": "c1"}]],
                "ended": [{"inode": 7, "name": "first", "reused": True}, {"inode": 8, "name": "c1", "reused": False}]}
    _name, given = layout.CONVERTERS[1]("Know", {"topology": topology})
    assert given["topology"]["names"] == [[8, "c1"]]
    assert given["topology"]["namespaces"] == [[8, {"inode": 8, "name": "c1", "netns": 8}]]


def test_an_older_version_goes_through_its_converters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "run.pcapng", items())

    def third(name: str, members: Any) -> tuple[str, Any]:
        return name, members | {"timeout": 9.0} if name == "Begin" else members

    monkeypatch.setattr(layout, "VERSION", 3)
    monkeypatch.setattr(layout, "CONVERTERS", {**layout.CONVERTERS, 2: third})
    begin = read(path)[0][0]
    assert isinstance(begin, Begin) and begin.timeout == 9.0


@pytest.mark.parametrize(("data", "words"), [
    (b"", "is empty"),
    (b"hello, world", "is no pcapng file: it does not begin as pcapng does"),
    (b"\n\r\r\n", "is no pcapng file: it is cut at byte 4"),
    (pcapng.section([]) + pcapng.interface("eth0") + pcapng.packet(0, 5, b"x" * 61, 61, ()) * 3,
     "is not a dnettrace file: 3 packets on 1 interface"),
    (pcapng.section([]) + pcapng.interface("eth0") * 2 + pcapng.packet(0, 5, b"x", 1, ()) + b"junk",
     "is not a dnettrace file: 1 packet on 2 interfaces"),
])
def test_other_files(data: bytes, words: str, tmp_path: Path) -> None:
    path = tmp_path / "other"
    path.write_bytes(data)
    with pytest.raises(UserError, match=words):
        read(path)


def test_a_big_endian_file_of_others(tmp_path: Path) -> None:
    path = tmp_path / "other"
    section = struct.pack(">IIIHHqI", 0x0A0D0D0A, 28, 0x1A2B3C4D, 1, 0, -1, 28)
    path.write_bytes(section + struct.pack(">IIHHII", 1, 20, 1, 0, 0, 20))
    with pytest.raises(UserError, match="0 packets on 1 interface"):
        read(path)


def test_what_is_written_while_it_is_read(tmp_path: Path) -> None:
    run = items()
    path = tmp_path / "run.pcapng"
    with Writer(str(path)) as writer, path.open("rb") as stream:
        writer.play(run[0])
        left = run[1:]

        def more() -> bool:
            if left:
                writer.play(left.pop(0))
                return True
            return False

        assert plain(Reader(stream, "run", more)) == run
