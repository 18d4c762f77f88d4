"""A run as the sequence of what was observed and decided: enough to tell its story, at once or from a file.

A session hands each item to whatever listens, and that is all that listeners get: the telling of the live run, the writer
of its trace file, and the telling of a replay cannot tell where items come from.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tracer.model.counters import Risen
from tracer.model.journey import Journey
from tracer.model.probes import Batch, Machine
from tracer.model.report import LiveStart, Seen, Start
from tracer.model.selection import Selection
from tracer.model.topology import Topology


@dataclass(frozen=True, slots=True)
class Begin:
    """The first item. What it knows of the machine and the network holds until an item of that type comes."""

    start: Start
    selection: Selection
    timeout: float  # how long a probe's answer is waited for, seconds
    machine: Machine
    topology: Topology
    source: int  # namespace of the sender
    target: int | None  # namespace of the destination
    wall_ns: int  # since the epoch
    expected: Journey | None = None  # the request's way by the tables, as they were then; None: nobody asked for it


@dataclass(frozen=True, slots=True)
class Know:
    """The network changed, or more of it was read."""

    topology: Topology
    target: int | None


@dataclass(frozen=True, slots=True)
class Sent:
    """A probe is on its way, or never left."""

    seq: int
    when: int  # CLOCK_MONOTONIC, ns, just before
    failure: str | None = None  # why it never left
    number: str = ""  # of that, the name of the errno


@dataclass(frozen=True, slots=True)
class Answer:
    """The sender's socket has something about a probe."""

    seq: int
    state: str  # what it says, as Summary.states has it
    ms: float = 0.0  # from the send
    reply: bool = True  # a packet of the probe's flow; False: an ICMP error
    error: str | None = None  # a sentence, where no program would take it for an answer


@dataclass(frozen=True, slots=True)
class Tell:
    """All is known of this probe, or the wait for it is over."""

    seq: int
    interrupted: bool = False
    risen: Mapping[int, Risen] | None = None  # what iptables counted meanwhile, by namespace


@dataclass(frozen=True, slots=True)
class Sweep:
    """Time to tell what came late."""

    now: int  # CLOCK_MONOTONIC, ns
    heard: int | None = None  # the topology has all that was announced until then; None: it is not followed


@dataclass(frozen=True, slots=True)
class Finish:
    """The last item: each probe has been told."""


@dataclass(frozen=True, slots=True)
class LiveBegin:
    """The first item of a run of `live`, as Begin is of one of `ping`."""

    start: LiveStart
    machine: Machine
    topology: Topology
    wall_ns: int  # since the epoch


@dataclass(frozen=True, slots=True)
class Armed:
    """From now on, packets are seen wherever the machine's probes can: what began before may lack hops."""

    now: int  # CLOCK_MONOTONIC, ns


@dataclass(frozen=True, slots=True)
class Pulse:
    """Time to say how it goes."""

    seconds: float  # since the start


@dataclass(frozen=True, slots=True)
class Silence:
    """Nothing has matched for so long, though this was seen."""

    seconds: float
    seen: Seen


Item = Begin | LiveBegin | Know | Machine | Batch | Sent | Answer | Tell | Sweep | Armed | Pulse | Silence | Finish
