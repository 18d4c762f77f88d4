"""Real runs as items, for the tests of trace files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from tests.unit.recording import load
from tracer.capture.writer import Writer
from tracer.model.counters import CountedRule, Risen
from tracer.model.journey import Table
from tracer.model.probes import Batch, HookPoint, Machine, Missing, Trace
from tracer.model.report import LiveStart, OnBridge, Place, Seen, Start
from tracer.model.run import Answer, Armed, Begin, Finish, Item, Know, LiveBegin, Pulse, Sent, Silence, Sweep, Tell

TRACE = Trace(4026531840, 7, "ip", "filter", "FORWARD", "rule", "drop", 12, network=b"E\0\0T", text="-j DROP")
RISEN = {4026531840: Risen(4026531840, (CountedRule("ip", "filter", "FORWARD", "-j DROP", "DROP", 1),),
                           frozenset({("ip", "filter", True), ("ip6", "nat", False)}))}


def items(name: str = "one_bridge") -> list[Item]:
    """A recorded run, as its session would have played it; each probe's events in a batch of its own."""
    recording = load(name)
    missing = (Missing("netfilter", "no links"),)
    machine = replace(recording.machine, missing=missing)
    start = Start("0.1.0", machine.release, Place("c1", "172.17.0.2", OnBridge("docker0", "172.17.0.1/16")),
                  Place("c2", "172.17.0.3"), ("kfree_skb",), missing, ("a note",))
    found: list[Item] = [Begin(start, recording.selection, 4.0, machine, recording.topology,
                               recording.events[0].netns, recording.target,
                               recording.events[0].time + machine.clock_offset_ns)]
    times = [when for when, _seq in recording.sent] + [recording.events[-1].time + 1]
    for (when, seq), until in zip(recording.sent, times[1:], strict=True):
        mine = [e._replace(padding=bytes(2)) for e in recording.events if e.time < until and (seq == 1 or e.time >= when)]
        found += [Sent(seq, when), Batch(mine, 0)]
        if seq in recording.answered:
            found.append(Answer(seq, "", 0.1 + seq / 7))
        found += [machine, Tell(seq)]
    return [*found, Finish()]


def every_kind() -> list[Item]:
    """As items(), with everything else that a run may have."""
    found = items()
    begin = found[0]
    assert isinstance(begin, Begin)
    way = next(journey for journey in load("isolated").journeys() if journey.kind == "request")
    found[0] = begin = replace(begin, expected=way)
    point = HookPoint(4026531840, "forward", 2, 0, (Table("ip", "filter", "FORWARD", 0),), True)
    more: list[Item] = [
        _machine(begin, point), Know(begin.topology, None), Know(begin.topology, begin.target),
        Batch([], 3, (TRACE,), (4026531840,), {2: 1, 0: 2}, 0.25), Sent(9, 5, "no route"),
        Answer(9, "", error="an ICMP error"),
        Tell(9, True, RISEN), Sweep(77)]
    return [*found[:-1], *more, found[-1]]


def _machine(begin: Begin, point: HookPoint) -> Machine:
    return replace(begin.machine, clock_offset_ns=begin.machine.clock_offset_ns + 1, untraced={5: "why"},
                   hook_points={(point.netns, point.hook, point.slot): point})


def repeated(turns: int) -> Iterator[Item]:
    """A recorded run over and over: a long one."""
    first, *once, last = items()
    yield first
    span = 1_000_000_000
    for turn in range(turns):
        for item in once:
            if isinstance(item, Batch):
                yield replace(item, events=[e._replace(
                    time=e.time + turn * span, journey=e.journey and e.journey + turn * 1000) for e in item.events])
            else:
                yield replace(item, when=item.when + turn * span) if isinstance(item, Sent) else item
    yield last


def write(path: Path, run: Iterable[Item], force: bool = False) -> Path:
    with Writer(str(path), force) as writer:
        for item in run:
            writer.play(item)
    return path


def plain(found: Iterable[Item]) -> list[Item]:
    """As they were written: who writes does not say which events are alike."""
    return [replace(item, events=[event._replace(like=None) for event in item.events]) if isinstance(item, Batch) else item
            for item in found]


def live_items(name: str = "one_bridge") -> list[Item]:
    """The packets of a recorded run, as a run of live would have met them."""
    begin, *rest = items(name)
    assert isinstance(begin, Begin)
    start = LiveStart("0.1.0", begin.machine.release, "icmp", ("kfree_skb",), begin.machine.missing)
    batches = [item for item in rest if isinstance(item, Batch)]
    found: list[Item] = [LiveBegin(start, begin.machine, begin.topology, begin.wall_ns), begin.machine,
                         Armed(batches[0].events[0].time - 1), Know(begin.topology, None)]
    for batch in batches:
        found += [batch, Sweep(batch.events[-1].time, None), Pulse(0.5)]
    return [*found, Silence(3.0, Seen(2, {"udp": 2})), Finish()]
