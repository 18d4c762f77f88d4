"""What a run says before and after its journeys, as plain data: the inputs of every output in `tracer/render`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from tracer.model.journey import Cause
from tracer.model.probes import Missing


@dataclass(frozen=True, slots=True)
class OnBridge:
    """The bridge that an end of the run hangs on."""

    bridge: str
    address: str | None = None  # the bridge's own, with its prefix: "172.17.0.1/16"
    itself: bool = False  # the end's address is the bridge's own


@dataclass(frozen=True, slots=True)
class Place:
    """Where the run's packets come from or go to."""

    name: str  # "c1", "host", "netns:lab"; for a destination that nobody known has, its address again
    address: str
    on: OnBridge | None = None


@dataclass(frozen=True, slots=True)
class Start:
    """Said once, before the first packet is sent."""

    version: str
    kernel: str  # its release, as `uname -r` prints it
    source: Place
    destination: Place
    attached: tuple[str, ...] = ()  # names of probes
    missing: tuple[Missing, ...] = ()
    notes: tuple[str, ...] = ()  # sentences for a person


@dataclass(frozen=True, slots=True)
class RoundTrip:
    """Times from the send to the answer, in milliseconds."""

    min: float
    avg: float
    max: float


@dataclass(frozen=True, slots=True)
class Failure:
    """A probe that got no answer, or never left."""

    seq: int
    text: str  # "no answer within 1 s"; "never left: no route to 203.0.113.1"
    cause: Cause | None = None  # of what never left; that of others is their journeys'


@dataclass(frozen=True, slots=True)
class Summary:
    """Said once, after the last journey."""

    sent: int
    answered: int
    journeys: int
    events: int
    lost_events: int
    bridges: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # name -> its roles, sorted: ("nic", "switch")
    ends: Mapping[str, int] = field(default_factory=dict)  # Result's value -> number of journeys
    rtt: RoundTrip | None = None  # None: nothing was answered
    failures: tuple[Failure, ...] = ()
    neighbor_lookups: int = 0  # ARP requests and neighbour solicitations that were seen
    states: Mapping[str, int] = field(default_factory=dict)  # what the answers said: "open", "refused", ... -> how many
    notes: tuple[str, ...] = ()  # sentences for a person
    routed: bool = False  # the host looked up a route for one of the packets
