"""bpf/event.h is the one truth about an event."""

from __future__ import annotations

import struct
import subprocess
import sys
from pathlib import Path

from tracer.kernel.probes import DEPTH_AND_PLACE, FORM
from tracer.model.forms import FIRST
from tracer.model.layout import EVENT, NAME_BYTES, PACKET_BYTES, STACK, STACK_DEPTH, Event

ROOT = Path(__file__).parents[2]


def test_the_generated_module_is_that_of_the_header() -> None:
    done = subprocess.run([sys.executable, ROOT / "scripts/layout", "--check"], check=False)
    assert done.returncode == 0, "run scripts/layout"


def test_there_is_no_padding() -> None:
    assert EVENT.size % 8 == 0
    assert STACK.size == 8 * STACK_DEPTH
    event = Event(*EVENT.unpack(bytes(EVENT.size)))
    assert (len(event.name), len(event.packet), len(event.padding)) == (NAME_BYTES, PACKET_BYTES, 2)


def test_what_is_read_of_a_record_before_the_rest() -> None:
    event = Event(*EVENT.unpack(bytes(EVENT.size)))._replace(depth=513, place=6)
    head = EVENT.pack(*event[:24])[struct.calcsize(f"={FIRST}"):]
    assert DEPTH_AND_PLACE.unpack_from(head) == (513, 6)
    assert FORM.unpack_from(head) == event[len(FIRST):22]
