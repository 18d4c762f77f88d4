"""Files of anybody's making: the reader and a replay end with a status and a sentence, whatever the bytes.

`DNETTRACE_EXAMPLES=100000 ./scripts/test tests/unit/test_capture_hostile.py` looks for longer.
"""

from __future__ import annotations

import io
import os
import struct
import tempfile
import tracemalloc
import zlib
from contextlib import redirect_stderr, redirect_stdout
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings, strategies as st

from tests.unit.trace import every_kind, items, live_items, write
from tracer.capture import layout, pcapng
from tracer.capture.plain import from_json, plain, to_json, typed
from tracer.capture.reader import ITEMS, Reader
from tracer.cli.main import main
from tracer.model.layout import EVENT, Event
from tracer.model.probes import HookPoint, Machine, Trace
from tracer.model.run import Answer, Know, Sent, Tell
from tracer.model.selection import Selection

THOROUGH = settings(max_examples=int(os.environ.get("DNETTRACE_EXAMPLES", "150")), deadline=None, database=None,
                    suppress_health_check=[HealthCheck.too_slow])
JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(
    ["172.17.0.2", "::", "forward", "rule"]), lambda inner: st.lists(inner, max_size=4) | st.dictionaries(
        st.sampled_from(["seq", "when", "topology", "traces", "namespaces", "names", "ended", "now", "ms", "risen", "x"]),
        inner, max_size=4))


@cache
def sample(name: str) -> bytes:
    if name.startswith("version_"):
        return (Path(__file__).parent / f"traces/{name}.pcapng").read_bytes()
    with tempfile.TemporaryDirectory() as folder:
        run = every_kind() if name == "every_kind" else live_items() if name == "live" else items(name)
        return write(Path(folder, "run.pcapng"), run).read_bytes()


@cache
def beginning(name: str = "one_bridge", blocks: int = -1) -> bytes:
    """So many whole blocks of it; all but the last one."""
    return sample(name)[:[block.at for block in pcapng.blocks(io.BytesIO(sample(name)))][blocks]]


def replayed(data: bytes, *options: str) -> tuple[int, str]:
    """(status, all that was printed). No exception comes out, and no escape sequence."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(data)
        file.flush()
        out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True) for _ in range(2))
        with redirect_stdout(out), redirect_stderr(err):
            status = main(["replay", file.name, *options])
        printed = b"".join(stream.buffer.getvalue() for stream in (out, err)).decode()  # type: ignore[attr-defined]
    assert status in (0, 1, 2)
    assert "\x1b" not in printed and "Traceback" not in printed
    return status, printed


def statistics(letter: int, value: bytes) -> bytes:
    return pcapng.statistics(0, 0, [(pcapng.CUSTOM, layout.PREFIX + bytes((letter,)) + value)])


@THOROUGH
@given(st.binary(max_size=300))
@example(b"\n\r\r\n" + struct.pack("=II", 0xFFFFFFFC, pcapng.BYTE_ORDER))
@example(b"\n\r\r\n" + struct.pack("=II", 12, pcapng.BYTE_ORDER) * 2)
def test_any_bytes(data: bytes) -> None:
    assert replayed(data)[0] == 2


@THOROUGH
@given(st.sampled_from(["every_kind", "isolated", "live", "version_1", "version_1_live"]),
       st.lists(st.tuples(st.floats(0, 1), st.binary(max_size=9)), max_size=6),
       st.floats(0.5, 1), st.sampled_from(["-v", "--json"]))
def test_a_trace_with_bytes_changed(name: str, edits: list[tuple[float, bytes]], length: float, option: str) -> None:
    data = bytearray(sample(name))
    for place, new in edits:
        at = int(place * len(data))
        data[at:at + len(new)] = new
    replayed(bytes(data[:int(length * len(data))]), option)


@THOROUGH
@given(st.lists(st.tuples(st.sampled_from([1, 2, 3, 4, 5, 6, 7, 0x0A0D0D0A, 0xBAD]), st.binary(max_size=80)), max_size=5))
def test_any_blocks_behind_a_beginning(found: list[tuple[int, bytes]]) -> None:
    behind = b"".join(pcapng.block(kind, body + bytes(-len(body) % 4)) for kind, body in found)
    replayed(beginning() + behind)


@THOROUGH
@given(st.sampled_from([*ITEMS, "Other"]), JSON)
def test_any_item(name: str, value: Any) -> None:
    item = statistics(layout.ITEM, to_json([name, value]))
    replayed(beginning("isolated") + item)
    replayed(beginning("live") + item)
    replayed(beginning("isolated", 1) + item)  # the section alone
    replayed(beginning("version_1") + item)
    replayed(beginning("version_1", 1) + item)


@THOROUGH
@given(st.binary(max_size=400), st.binary(max_size=120), st.sampled_from(b"ELSFIi"))
def test_any_event(value: bytes, frame: bytes, letter: int) -> None:
    option = (pcapng.CUSTOM, layout.PREFIX + bytes((letter,)) + value)
    batch = statistics(layout.ITEM, b'["Batch",{"lost":0}]')
    for name in "isolated", "live":
        data = beginning(name, -3) + pcapng.packet(0, 0, frame, len(frame), [option]) + batch
        replayed(data, "-v", "--filter", "ip or arp")


@pytest.mark.parametrize("text", [
    b"[" * 60_000,
    b"[" + b"9" * 60_000 + b"]",
    b'["Sent",{"seq":1e999,"when":2}]',
    b'["Know",{"topology":{"host":1,"namespaces":[[[],1]]}}]',
    b'["Know",{"target":"\xff"}]',
], ids=["nested", "digits", "infinite", "unhashable", "encoding"])
def test_json_that_is_none(text: bytes) -> None:
    _status, printed = replayed(beginning() + statistics(layout.ITEM, text))
    assert "is not whole" in printed


def test_a_bomb_takes_no_memory() -> None:
    bomb = zlib.compress(b"[" + b" " * (1 << 28), 9)
    data = beginning()
    parts = [bomb[at:at + 60_000] for at in range(0, len(bomb), 60_000)]
    data += b"".join(statistics(layout.PART, part) for part in parts[:-1]) + statistics(layout.ITEM, parts[-1])
    reader = Reader(io.BytesIO(data), "bomb")
    tracemalloc.start()
    try:
        assert len(list(reader)) > 2
        _now, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert reader.cut and "too long" in reader.cut
    assert peak < 3 * layout.ITEM_BYTES


@pytest.mark.parametrize("block", [
    statistics(layout.PART, b"x" * 60_000),
    pcapng.packet(0, 0, b"", 0, [(pcapng.CUSTOM, layout.PREFIX + b"S" + b"\0" * 60_000)]),
    pcapng.interface("x" * 60_000),
], ids=["parts", "symbols", "interfaces"])
def test_what_comes_without_end_is_not_kept(block: bytes) -> None:
    class Endless(io.RawIOBase):
        """The beginning of a run, and then the same block for 200 MB."""

        def __init__(self) -> None:
            self.left, self.rest = 200_000_000, beginning()

        def read(self, _size: int = -1) -> bytes:
            new, self.rest = self.rest, block if self.left > 0 else b""
            self.left -= len(new)
            return new

    tracemalloc.start()
    try:
        list(Reader(Endless(), "endless"))  # type: ignore[arg-type]
        _now, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 3 * layout.ITEM_BYTES


def test_blocks_of_many_options_are_not_remembered() -> None:
    flags = (pcapng.packet(0, 0, bytes(14), 0, [*[(pcapng.PACKET_FLAGS, b"")] * size, (
        pcapng.CUSTOM, layout.PREFIX + layout.OF_PACKET.to_bytes(1, "big") + bytes(200))]) for size in range(5, 50))
    reader = Reader(io.BytesIO(beginning() + b"".join(flags)), "many")
    list(reader)
    assert all(len(shape.marks) <= 7 for shapes in reader._shapes.values() for shape in shapes)


@THOROUGH
@given(st.sampled_from([Sent, Answer, Tell, Selection, Machine, HookPoint, Trace]).flatmap(st.from_type))
def test_any_value_has_its_json(value: Any) -> None:
    back = typed(from_json(to_json(plain(value))), type(value))
    assert plain(back) == plain(value) or "nan" in repr(value)


def test_members_of_later_minor_versions_are_passed_over() -> None:
    assert typed({"seq": 1, "when": 2, "later": [3]}, Sent) == Sent(1, 2)
    with pytest.raises((ValueError, TypeError)):
        typed({"seq": 1}, Sent)
    with pytest.raises((ValueError, TypeError)):
        typed({"seq": True, "when": 2}, Sent)
    with pytest.raises((ValueError, TypeError)):
        typed({"topology": None, "target": 1}, Know)


@pytest.mark.parametrize("member", ["place", "hook", "captured"])
def test_an_event_that_no_kernel_has_ends_the_file(member: str) -> None:
    event = Event(*EVENT.unpack(bytes(EVENT.size)))._replace(**{member: 200})
    value = layout.EVENT_HEAD.pack(*event[:22]) + layout.FRAME_COUNT.pack(0)
    option = (pcapng.CUSTOM, layout.PREFIX + layout.OF_PACKET.to_bytes(1, "big") + value)
    reader = Reader(io.BytesIO(beginning() + pcapng.packet(0, 0, bytes(14), 0, [option])), "odd")
    list(reader)
    assert reader.cut and "an event that no kernel has" in reader.cut
