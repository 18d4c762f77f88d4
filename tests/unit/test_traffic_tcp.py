"""Which segment says what of a port."""

from __future__ import annotations

import pytest
from scapy.layers.inet import TCP

from tracer.traffic.tcp import state_of

SENT = 0xFFFFFFFF  # its acknowledgement wraps


@pytest.mark.parametrize(("flags", "ack", "state"), [
    ("SA", 0, "open"), ("SAE", 0, "open"), ("RA", 0, "refused"), ("R", 0, None), ("A", 0, None), ("S", 0, None),
    ("SA", 1, None), ("RA", SENT, None), ("A", 77, None),
])
def test_an_answer_acknowledges_the_probe(flags: str, ack: int, state: str | None) -> None:
    assert state_of(bytes(TCP(flags=flags, ack=ack, options=[("MSS", 1460)], chksum=0)), SENT) == state


def test_what_is_too_short_is_no_answer() -> None:
    assert state_of(bytes(TCP(flags="SA", chksum=0))[:19], SENT) is None
