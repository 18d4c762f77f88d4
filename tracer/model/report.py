"""What a run says before and after its journeys, as plain data: the inputs of every output in `tracer/render`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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


@dataclass(frozen=True, slots=True)
class LiveStart:
    """Said once, before the first journey of live traffic."""

    version: str
    kernel: str  # its release, as `uname -r` prints it
    following: str = ""  # what is asked for, in words: "tcp port 80 of c1"; "" for all packets
    attached: tuple[str, ...] = ()  # names of probes
    missing: tuple[Missing, ...] = ()
    notes: tuple[str, ...] = ()  # sentences for a person


@dataclass(frozen=True, slots=True)
class LiveStatus:
    """How it goes at this moment. Numbers count from the start, but for `rate` and `share`."""

    seconds: float  # since the start
    journeys: int = 0
    delivered: int = 0
    dropped: int = 0
    rate: float = 0.0  # journeys a second, lately
    lost: Mapping[str, int] = field(default_factory=dict)  # events that the kernel had no room for, by probe
    share: float = 1.0  # of the journeys that begin, how many are followed by now: less than all under overload
    talkers: Sequence[tuple[str, int]] = ()  # flows with the most journeys: name, journeys


@dataclass(frozen=True, slots=True)
class Seen:
    """What passed the probes and did not match."""

    packets: int
    kinds: Mapping[str, int] = field(default_factory=dict)  # "UDP 172.17.0.2 → 172.17.0.3:5201" -> packets


@dataclass(frozen=True, slots=True)
class Latency:
    """Of so many packets, the time that half of them took at most, and the time that 99 of 100 took at most."""

    count: int
    median_ns: int
    p99_ns: int


@dataclass(frozen=True, slots=True)
class Spot:
    """Where a hop was seen."""

    node: str
    device: str | None
    stage: str  # Stage's value


@dataclass(frozen=True, slots=True)
class Step:
    """From one hop to the next that has a time of its own."""

    before: Spot
    after: Spot
    latency: Latency


@dataclass(frozen=True, slots=True)
class OneWay:
    """One direction of a flow."""

    journeys: int
    delivered: int
    latency: Latency | None = None  # from first hop to the end, of those that were delivered
    steps: tuple[Step, ...] = ()  # in the order of the way
    more_steps: int = 0  # seen, but there were too many different ones to keep


@dataclass(frozen=True, slots=True)
class FlowSummary:
    """All connections of one client to one service, in both directions and across NAT."""

    name: str  # "c1 → c2:80"
    client: str  # a node, or an address that nobody known has
    service: str
    port: int | None
    proto: str  # as Packet has it; "ndp" for IPv6's neighbour discovery
    connections: int | None  # that began or were first seen meanwhile; None: the protocol has no ports
    journeys: int
    delivered: int
    drops: Mapping[str, int]  # a cause's name, else the kernel's reason -> journeys
    ends: Mapping[str, int]  # Result's value -> journeys
    bridges: Mapping[str, tuple[str, ...]]  # name -> its roles, sorted
    incomplete: int  # journeys that may lack a hop
    request: OneWay
    reply: OneWay


@dataclass(frozen=True, slots=True)
class LiveSummary:
    """Said once, at the end of live traffic."""

    journeys: int
    delivered: int
    drops: Mapping[str, int]  # as FlowSummary has them, of all journeys
    ends: Mapping[str, int]
    bridges: Mapping[str, tuple[str, ...]]
    copies: int  # copies and parts of these journeys, which are not among them
    flows: tuple[FlowSummary, ...]  # those with the most journeys first
    other_journeys: int = 0  # of flows that are not among `flows`, since others had more
    other_dropped: int = 0
    seconds: float = 0.0
    events: int = 0
    lost: Mapping[str, int] = field(default_factory=dict)  # events that the kernel had no room for, by probe
    share: float = 1.0  # the least share of the journeys that began that was followed
    notes: tuple[str, ...] = ()  # sentences for a person
