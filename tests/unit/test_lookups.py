"""Neighbour lookups in a sentence."""

from __future__ import annotations

import re

import pytest

from tests.unit.recording import load
from tracer.journey.lookups import sentences


@pytest.mark.parametrize(("name", "said"), [
    ("one_bridge", ["c1 (172.17.0.2) asked for the MAC of c2 (172.17.0.3) first: 12 hops, N µs"]),
    ("one_bridge_v6", ["c2 (fd00:17::3) asked for the MAC of c1 (fd00:17::2) first: 28 hops, N µs"]),
    ("nobody", ["c1 (172.17.0.2) asked 3 times for the MAC of 172.17.0.99: no answer was seen"]),
    ("itself", []),
    ("outside", ["c1 (172.17.0.2) asked for the MAC of host (172.17.0.1) first: 9 hops, N µs",
                 "host (198.51.100.2) asked for the MAC of outside (198.51.100.1) first: 6 hops, N µs"]),
])
def test_one_sentence_a_lookup(name: str, said: list[str]) -> None:
    recording = load(name)
    assert [re.sub(r"\d+ µs", "N µs", s) for s in sentences(recording.journeys(), recording.topology)] == said
