"""What is told by a template is what reading the events says."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.unit.recording import load
from tracer.journey.stream import Stream
from tracer.journey.templates import Templates
from tracer.model.journey import Journey, Stage
from tracer.model.layout import Event, Function, Place
from tracer.model.probes import Batch

NAMES = ["one_bridge", "one_bridge_v6", "gateway", "from_host", "outside", "isolated", "published", "fragments", "ttl",
         "probed", "probed_flood", "probed_tcp", "probed_host", "probed_waiting"]


def told(name: str) -> list[list[Journey]]:
    """The same packets four times, each time a second later and with other times between their hops."""
    recording = load(name)
    machine = recording.machine
    stream = Stream(recording.topology, lambda: machine)
    turns = []
    for turn in range(4):
        events = [later(event, turn, at) for at, event in enumerate(recording.events)]
        stream.feed(Batch(events, 0))
        turns.append([replace(journey, id=0) for journey in stream.take(events[-1].time + 10**10)])
    return turns


def later(event: Event, turn: int, at: int) -> Event:
    return event._replace(time=event.time + turn * 10**9 + at * turn * 100,
                          journey=event.journey + turn if event.journey or event.place != Place.ROUTE else 0)


@pytest.mark.parametrize("name", NAMES)
def test_the_same_journeys(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    by_template = told(name)
    monkeypatch.setattr(Templates, "journey", lambda _self, _track, _context, _also, read: read())
    assert by_template == told(name)
    assert all(turn for turn in by_template)


def test_templates_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    reads = []
    real = Templates.journey
    monkeypatch.setattr(Templates, "journey", lambda self, track, context, also, read: real(
        self, track, context, also, lambda: (reads.append(1), read())[1]))
    turns = told("outside")
    assert len(reads) < sum(len(turn) for turn in turns)


def test_what_the_bridge_learned_meanwhile_counts_for_a_packet_that_it_dropped() -> None:
    """It has no event at the port behind, where the fdb is asked for others."""
    recording = load("probed")
    topology = recording.topology
    host = replace(topology.namespaces[topology.host], fdb=())
    machine = replace(recording.machine, untraced=None)
    stream = Stream(replace(topology, namespaces={**topology.namespaces, topology.host: host}), lambda: machine)
    packets: dict[int, list[Event]] = {}
    for event in recording.events:
        if event.place != Place.ROUTE:
            packets.setdefault(event.journey, []).append(event)
    request = next(events for events in packets.values() if any(
        (event.place, event.hook) == (Place.FUNCTION, Function.FORWARD) for event in events))
    at = next(at for at, event in enumerate(request) if (event.place, event.hook) == (Place.FUNCTION, Function.FORWARD))
    dropped = [*request[:at + 1], request[at]._replace(place=Place.DROP, hook=0, time=request[at].time + 1000)]
    answers = [event for events in packets.values() if events is not request for event in events]

    def told(turn: int, events: list[Event]) -> list[str]:
        stream.feed(Batch([later(event, 10 * turn, 0) for event in events], 0))
        return [hop.detail for journey in stream.take(events[-1].time + (10 * turn + 5) * 10**9)
                for hop in journey.hops if hop.stage is Stage.L2_FORWARD]

    assert "not read" in told(0, dropped)[0]
    told(1, answers)
    assert "fdb learned" in told(2, dropped)[0]


def test_who_meets_a_device_without_a_name_waits_for_it() -> None:
    recording = load("one_bridge")
    topology = recording.topology
    last = recording.events[-1].time
    stream = Stream(topology, lambda: recording.machine)
    unnamed = next(netns for netns in topology.names if netns != topology.host)
    stream.know(replace(topology, names={n: name for n, name in topology.names.items() if n != unnamed}))
    stream.feed(Batch(list(recording.events), 0))
    for wait in (3 * 10**8, 4 * 10**8):
        assert not any(hop.netns == unnamed for journey in stream.take(last + wait) for hop in journey.hops)
    assert any(hop.netns == unnamed for journey in stream.take(last + 10**10) for hop in journey.hops)
