"""nftables' trace messages to rules at hops.

A walk is one packet's way through one base chain and the chains that it calls. Its first message has the packet's headers,
which tell whose it is: they are those of an event at the same hook. Packets with the very same bytes (copies that a bridge
made, a repeated SYN) are told apart by their order.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from tracer.journey.reasons import QUEUES
from tracer.model.frame import ARP, IPV4, TCP, UDP, Header, header, header_of
from tracer.model.gathering import Gathering, ends
from tracer.model.journey import End, Hop, Result, Rule, Stage, Table
from tracer.model.layout import Event, Place
from tracer.model.probes import HOOKS, Batch, Trace
from tracer.model.topology import BaseChain, Topology

ALIKE = 256  # packets with the very same bytes that are told apart
KEPT = 16384  # walks, and passages of hooks, that are remembered
OFF = "rule tracing is turned off"
NOT_CHOSEN = "rules are traced from the packet on that follows a dropped one"
QUOTED = re.compile(r'"[^"]*"')
REJECTS = re.compile(r"^-A .* -j REJECT\b|^(?!-A ).*\breject\b")
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
        return any(map(ends, self.traces[-1:]))

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
    if verdict == "drop" and REJECTS.search(QUOTED.sub("", trace.text or "")):  # it sends an error, and drops
        verdict = "reject"
    return Rule(trace.family, trace.table, trace.chain, trace.text, verdict, policy=trace.kind == "policy",
                handle=trace.handle)


class Walks:
    """All walks of a run, and how packets passed the hooks."""

    def __init__(self, chosen: bool = False) -> None:
        """`chosen`: only the packets of some flows are traced."""
        self._chosen = chosen
        self._gathering = Gathering(KEPT)
        self._walks: OrderedDict[tuple[int, Header], list[Walk]] = OrderedDict()
        self._by_identity: OrderedDict[tuple[int, Header], list[Walk]] = OrderedDict()
        self._passed: OrderedDict[tuple[int, int, int, Header], list[int]] = OrderedDict()  # (netns, hook, slot) -> times
        self._lost: set[int] = set()  # namespaces that lost messages

    def feed(self, batch: Batch) -> None:
        self._lost.update(batch.lost_traces)
        for event in batch.events:
            if event.place == Place.HOOK:
                times = self._passed.setdefault((event.netns, event.hook, event.slot, header(event)), [])
                times.append(event.time)
                if len(times) > ALIKE:
                    self._forget(event.netns, header(event))
        for trace in batch.traces:
            if begun := self._gathering.add(trace):
                walk = Walk(begun)
                key = header_of(trace.protocol, trace.network, trace.transport)
                self._walks.setdefault((trace.netns, key), []).append(walk)
                self._by_identity.setdefault((trace.netns, _identity(key)), []).append(walk)
        for kept in (self._walks, self._by_identity, self._passed):
            while len(kept) > KEPT:
                kept.popitem(last=False)

    def _forget(self, netns: int, alike: Header) -> None:
        """Packets that look all the same came one after the other for long."""
        for place in [place for place in self._passed if place[0] == netns and place[3] == alike]:
            del self._passed[place]
        self._walks.pop((netns, alike), None)
        self._by_identity.pop((netns, _identity(alike)), None)

    def at_hook(self, group: Sequence[Event], hop: Hop, topology: Topology,
                untraced: Mapping[int, str] | None) -> tuple[tuple[Rule, ...], str | None]:
        """The rules that the packet met where these events are of, and why some may be lacking."""
        chains = _chains(topology, hop.netns)
        expected = [(t.family, t.table, t.chain) for t in (*(hop.tables or ()), *hop.stopped_at[:1]) if not t.legacy]
        if hop.tables is not None and not expected:
            return (), None
        if untraced is None:
            return (), NOT_CHOSEN if self._chosen else OFF
        if hop.netns in untraced:
            return (), f"rules are not traced here: {untraced[hop.netns]}"
        if self._chosen and not any((event.netns, header(event)) in self._walks for event in group):
            return (), NOT_CHOSEN
        met: list[Walk] = []
        notes: list[str] = []
        for one, event in {header(event): event for event in reversed(group)}.items():
            times = self._passed.get((event.netns, event.hook, event.slot, one), [])
            times = times if event.time in times else [event.time]
            rank = times.index(event.time)
            by_chain: dict[BaseChain, list[Walk]] = {}
            for walk in self._walks.get((event.netns, one), ()):
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

    def at_devices(self, events: Sequence[Event], hops: Sequence[Hop], topology: Topology,
                   linked: Collection[int]) -> list[Hop]:
        """The hops, with the rules of chains that belong to a bridge or a device. `linked`: namespaces with netfilter
        links."""
        told = self._unlinked(events, hops, topology, linked)
        last = events[-1]
        for key in dict.fromkeys((event.netns, header(event)) for event in events if event.place != Place.ROUTE):
            chains = _chains(topology, key[0])
            for walk in self._walks.get(key, ()):
                chain = chains.get(walk.base)
                # a base chain that is not known is newer than what was read: it counts where it ended the packet
                stages = STAGES.get((chain.family, chain.hook)) if chain else ()
                at = None if stages is None else _place_of(walk, stages, told)
                if at is None and stages is not None and walk.dropped and told and last.place == Place.DROP and \
                        (last.netns, header(last)) == key and told[-1].netns == last.netns:
                    at = len(told) - 1  # the drop came before the hop that would show it
                if at is not None and not any((r.family, r.table, r.chain) == walk.base for r in told[at].rules):
                    notes = dict.fromkeys(filter(None, (told[at].rules_unknown, *walk.unsure)))
                    told[at] = told[at]._replace(rules=(*told[at].rules, *walk.rules),
                                                 rules_unknown="; ".join(notes) or None)
        return told

    def _unlinked(self, events: Sequence[Event], hops: Sequence[Hop], topology: Topology,
                  linked: Collection[int]) -> list[Hop]:
        """The hops, and one for each hook that only trace messages tell of: a kernel before 6.4 has no netfilter links."""
        told = list(hops)
        keys = dict.fromkeys((event.netns, _identity(header(event))) for event in events if event.netns not in linked
                             and event.place in (Place.QUEUE, Place.RECEIVE, Place.DROP))
        for key in keys:
            chains = _chains(topology, key[0])
            by_hook: dict[str, list[Walk]] = {}
            for walk in self._by_identity.get(key, ()):
                chain = chains.get(walk.base)
                if chain and chain.family in ("ip", "ip6", "inet") and chain.hook in HOOKS:
                    by_hook.setdefault(chain.hook, []).append(walk)
            for hook, walks in by_hook.items():
                bases = [walk.base for walk in walks]
                if len(set(bases)) < len(bases):
                    continue  # of several packets that look the same
                at = _position(Stage(hook), key[0], told)
                beside = told[min(at, len(told) - 1)]
                device = topology.link(key[0], walks[0].first.iif or walks[0].first.oif)
                told.insert(at, Hop(
                    beside.t_ns, key[0], topology.node(key[0]), device.name if device else None,
                    device.ifindex if device else None, Stage(hook),
                    tables=tuple(Table(*walk.base, chains[walk.base].priority) for walk in walks),
                    rules=tuple(rule for walk in walks for rule in walk.rules),
                    rules_unknown="; ".join(dict.fromkeys(note for walk in walks for note in walk.unsure)) or None,
                    detail="seen by its rules alone", timed=False))
        return told


def _position(stage: Stage, netns: int, hops: Sequence[Hop]) -> int:
    """Where a hop at this hook belongs: on the way in behind the device, on the way out before it."""
    own = [at for at, hop in enumerate(hops) if hop.netns == netns]
    if stage in (Stage.PREROUTING, Stage.INPUT):
        come = [at for at in own if hops[at].stage in (Stage.INGRESS, Stage.PREROUTING)
                or (stage is Stage.INPUT and hops[at].stage in (Stage.L2_LOCAL, Stage.ROUTE))]
        return come[-1] + 1 if come else own[0] if own else len(hops)
    gone = [at for at in own if hops[at].stage is Stage.EGRESS]
    return gone[0] if gone else own[-1] + 1 if own else len(hops)


def stopped_by(end: End, hops: Sequence[Hop]) -> Rule | None:
    """The rule, or the policy, that ended the packet: nothing comes behind a drop."""
    last = hops[-1].rules[-1] if hops and hops[-1].rules else None
    ended = last and (last.verdict in ("drop", "reject") or (last.verdict == "queue" and end.function in QUEUES))
    return last if ended and end.result is Result.DROPPED else None


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


def _identity(whole: Header) -> Header:
    """What NAT and forwarding leave alone: the IPv4 id, the transport and of its header ICMP's type, code and sequence,
    TCP's sequence, UDP's length; IPv6 has no id, so that UDP's ports must do."""
    protocol, data = whole
    if protocol == ARP or len(data) < 28:
        return whole
    number, network, ports = (data[9], data[4:6], b"") if protocol == IPV4 else (data[6], b"", data[-8:-4])
    transport = data[-8:]
    left = transport[4:8] if number == TCP else ports + transport[4:6] if number == UDP else transport[:2] + transport[6:]
    return protocol, network + bytes([number]) + left
