"""nftables' trace messages to rules at hops.

A walk is one packet's way through one base chain and the chains that it calls. Its first message has the packet's headers,
which tell whose it is: they are those of an event at the same hook. Packets with the very same bytes (copies that a bridge
made, a repeated SYN) are told apart by their order.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from tracer.journey.headers import ARP, FRAGMENT, IPV4
from tracer.model.journey import End, Hop, Result, Rule, Stage
from tracer.model.layout import Event, Place
from tracer.model.probes import HOOKS, Batch, Trace
from tracer.model.topology import BaseChain, Topology

KEPT = 16384  # walks, and passages of hooks, that are remembered
OFF = "rule tracing is turned off"
FINAL = ("accept", "drop", "queue", "stolen")
# The hops at which a chain of the bridge or netdev families shows what it did.
L2 = (Stage.L2_FORWARD, Stage.L2_FLOOD)
STAGES = {("bridge", "prerouting"): (Stage.INGRESS,), ("bridge", "input"): (Stage.L2_LOCAL,), ("bridge", "forward"): L2,
          ("bridge", "output"): L2, ("bridge", "postrouting"): (Stage.EGRESS,),
          ("netdev", "ingress"): (Stage.INGRESS,), ("netdev", "egress"): (Stage.EGRESS,),
          ("inet", "ingress"): (Stage.INGRESS,)}


@dataclass(slots=True)
class Walk:
    """The messages of one packet in one base chain, in order."""

    traces: list[Trace]

    @property
    def first(self) -> Trace:
        return self.traces[0]

    @property
    def base(self) -> tuple[str, str, str]:
        """(family, table, chain): a walk begins in its base chain."""
        return self.first.family, self.first.table, self.first.chain

    @property
    def complete(self) -> bool:
        return any(t.kind == "policy" or t.verdict in FINAL for t in self.traces[-1:])

    @property
    def rules(self) -> list[Rule]:
        return [_rule(t) for t in self.traces if t.kind != "return"]

    @property
    def unsure(self) -> list[str]:
        return [trace.unsure for trace in self.traces if trace.unsure]

    @property
    def dropped(self) -> bool:
        return self.traces[-1].verdict == "drop"


def _rule(trace: Trace) -> Rule:
    verdict = f"{trace.verdict} {trace.target}" if trace.verdict in ("jump", "goto") else trace.verdict
    words = (trace.text or "").split()
    if verdict == "drop" and ("REJECT" in words or "reject" in words):  # it sends an error, and drops
        verdict = "reject"
    return Rule(trace.family, trace.table, trace.chain, trace.text, verdict, policy=trace.kind == "policy",
                handle=trace.handle)


Header = tuple[int, bytes]  # EtherType, network header and 8 bytes of the transport's


class Walks:
    """All walks of a run, and how packets passed the hooks."""

    def __init__(self) -> None:
        self._open: OrderedDict[tuple[int, int, str, str], Walk] = OrderedDict()  # by namespace, trace id, family, table
        self._walks: OrderedDict[tuple[int, Header], list[Walk]] = OrderedDict()
        self._passed: OrderedDict[tuple[int, int, int, Header], list[int]] = OrderedDict()  # (netns, hook, slot) -> times
        self._lost: set[int] = set()  # namespaces that lost messages

    def feed(self, batch: Batch) -> None:
        self._lost.update(batch.lost_traces)
        for event in batch.events:
            if event.place == Place.HOOK:
                self._passed.setdefault((event.netns, event.hook, event.slot, _header(event)), []).append(event.time)
        for trace in batch.traces:
            place = (trace.netns, trace.id, trace.family, trace.table)
            if trace.network:
                walk = self._open[place] = Walk([trace])
                self._walks.setdefault((trace.netns, _traced(trace)), []).append(walk)
            elif begun := self._open.get(place):
                begun.traces.append(trace)
            if trace.kind == "policy" or trace.verdict in FINAL:
                self._open.pop(place, None)
        for kept in (self._open, self._walks, self._passed):
            while len(kept) > KEPT:
                kept.popitem(last=False)

    def at_hook(self, group: Sequence[Event], hop: Hop, topology: Topology,
                untraced: Mapping[int, str] | None) -> tuple[tuple[Rule, ...], str | None]:
        """The rules that the packet met where these events are of, and why some may be lacking."""
        chains = _chains(topology, hop.netns)
        expected = [(t.family, t.table, t.chain) for t in (*(hop.tables or ()), *hop.stopped_at[:1]) if not t.legacy]
        if hop.tables is not None and not expected:
            return (), None
        if untraced is None:
            return (), OFF
        if hop.netns in untraced:
            return (), f"rules are not traced here: {untraced[hop.netns]}"
        met: list[Walk] = []
        notes: list[str] = []
        for header, event in {_header(event): event for event in reversed(group)}.items():
            times = self._passed.get((event.netns, event.hook, event.slot, header), [])
            times = times if event.time in times else [event.time]
            rank = times.index(event.time)
            by_chain: dict[BaseChain, list[Walk]] = {}
            for walk in self._walks.get((event.netns, header), ()):
                chain = chains.get(walk.base)
                if chain and chain.hook == HOOKS[event.hook] and chain.family in ("ip", "ip6", "inet"):
                    by_chain.setdefault(chain, []).append(walk)
            for chain, walks in by_chain.items():
                if len(walks) == len(times) or (chain.kind == "nat" and rank < len(walks)):
                    met.append(walks[rank])
                elif chain.kind != "nat":
                    notes.append(f"{chain.table}/{chain.name} was passed by several packets that look the same")
        met.sort(key=lambda walk: chains[walk.base].priority)
        silent = [f"{table}/{chain}" for family, table, chain in expected
                  if (family, table, chain) not in {walk.base for walk in met}
                  and not ((found := chains.get((family, table, chain))) and found.kind == "nat")]
        if silent and not notes:
            notes.append(f"no trace message of {', '.join(silent)} was seen"
                         + (": the kernel had no room for some" if hop.netns in self._lost else ""))
        notes += [f"messages of {walk.first.table}/{walk.first.chain} are missing" for walk in met if not walk.complete]
        notes += dict.fromkeys(note for walk in met for note in walk.unsure)
        return tuple(rule for walk in met for rule in walk.rules), "; ".join(notes) or None

    def at_devices(self, events: Sequence[Event], hops: Sequence[Hop], topology: Topology) -> list[Hop]:
        """The hops, with the rules of chains that belong to a bridge or a device."""
        told = list(hops)
        last = events[-1]
        for key in dict.fromkeys((event.netns, _header(event)) for event in events if event.place != Place.ROUTE):
            chains = _chains(topology, key[0])
            for walk in self._walks.get(key, ()):
                chain = chains.get(walk.base)
                # a base chain that is not known is newer than what was read: it counts where it ended the packet
                stages = STAGES.get((chain.family, chain.hook)) if chain else ()
                at = None if stages is None else _place_of(walk, stages, told)
                if at is None and stages is not None and walk.dropped and told and last.place == Place.DROP and \
                        (last.netns, _header(last)) == key and told[-1].netns == last.netns:
                    at = len(told) - 1  # the drop came before the hop that would show it
                if at is not None and not any((r.family, r.table, r.chain) == walk.base for r in told[at].rules):
                    notes = dict.fromkeys(filter(None, (told[at].rules_unknown, *walk.unsure)))
                    told[at] = replace(told[at], rules=(*told[at].rules, *walk.rules),
                                       rules_unknown="; ".join(notes) or None)
        return told


def stopped_by(end: End, hops: Sequence[Hop]) -> Rule | None:
    """The rule, or the policy, that ended the packet: nothing comes behind a drop."""
    last = hops[-1].rules[-1] if hops and hops[-1].rules else None
    return last if last and end.result is Result.DROPPED and last.verdict in ("drop", "reject") else None


def _place_of(walk: Walk, stages: Collection[Stage], hops: Sequence[Hop]) -> int | None:
    """Which of the hops shows what this chain did."""
    device = walk.first.iif if stages in ((Stage.INGRESS,), (Stage.L2_LOCAL,)) else walk.first.oif
    for at, hop in enumerate(hops):
        if hop.netns == walk.first.netns and hop.stage in stages and (stages == (Stage.L2_LOCAL,) or device == (
                next((later.ifindex for later in hops[at:] if later.stage is Stage.EGRESS), device)
                if stages == L2 else hop.ifindex)):
            return at
    return None


def _chains(topology: Topology, netns: int) -> dict[tuple[str, str, str], BaseChain]:
    namespace = topology.namespaces.get(netns)
    return {(c.family, c.table, c.name): c for c in (namespace.chains or () if namespace else ()) if not c.legacy}


def _header(event: Event) -> Header:
    data = event.packet[:event.captured]
    return event.protocol, _key(event.protocol, data, data[_size(event.protocol, data):])


def _traced(trace: Trace) -> Header:
    return trace.protocol, _key(trace.protocol, trace.network, trace.transport)


def _key(protocol: int, network: bytes, transport: bytes) -> bytes:
    return network[:28] if protocol == ARP else network[:20 if protocol == IPV4 else 40] + transport[:8]


def _size(protocol: int, data: bytes) -> int:
    """Where the transport's header begins."""
    if protocol == IPV4:
        return (data[0] & 15) * 4 if data else 0
    return 48 if len(data) > 6 and data[6] == FRAGMENT else 40
