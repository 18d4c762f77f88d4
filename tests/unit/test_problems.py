"""Resets, and segments that are sent again."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.unit.recording import load
from tracer.journey.problems import Problems
from tracer.model.journey import Journey

SYN = next(j for j in load("published").journeys() if j.kind == "request")


def segment(seq: int, flags: str = "ACK", payload: int = 0) -> Journey:
    return replace(SYN, packet=SYN.packet._replace(tcp_flags=flags, tcp_seq=seq % 2**32, payload=payload))


@pytest.mark.parametrize(("sent", "expected"), [
    ([segment(7, "SYN"), segment(7, "SYN")], [None, "retransmission"]),
    ([segment(7, "SYN"), segment(9, "SYN")], [None, None]),  # a new connection from the same port
    ([segment(0, payload=100), segment(100, payload=100), segment(0, payload=100)], [None, None, "retransmission"]),
    ([segment(0, payload=100), segment(100), segment(100)], [None, None, None]),  # acknowledgements alone
    ([segment(0, payload=100), segment(50, payload=100)], [None, None]),  # half of it is new
    ([segment(2**32 - 50, payload=100), segment(50, payload=10), segment(2**32 - 50, payload=100)],
     [None, None, "retransmission"]),  # past the end of the numbers
    ([segment(0, "FIN ACK"), segment(0, "FIN ACK")], [None, "retransmission"]),
    ([segment(5, "RST ACK")], ["reset"]),
])
def test_problems(sent: list[Journey], expected: list[str | None]) -> None:
    problems = Problems()
    assert [problems.of(journey) for journey in sent] == expected


def test_what_is_no_tcp_has_none() -> None:
    problems = Problems()
    assert {problems.of(journey) for journey in load("one_bridge").journeys()} == {None}


def test_what_is_remembered_is_bounded() -> None:
    problems = Problems()
    for port in range(10_000):
        problems.of(replace(SYN, packet=SYN.packet._replace(sport=port)))
    assert len(problems._next) <= 4096
