"""One run of `live`: what is followed, and the loop that tells it."""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass, replace

from tracer import __version__
from tracer.cli.stopping import Stopping
from tracer.errors import ExitStatus
from tracer.journey.causes import explain
from tracer.journey.families import families
from tracer.journey.flows import Flows
from tracer.journey.headers import decode
from tracer.journey.owners import owned
from tracer.journey.problems import Problems
from tracer.journey.stream import Stream as Assembler
from tracer.kernel.probes import Probes, require_root
from tracer.model.journey import Journey, Result
from tracer.model.layout import Place
from tracer.model.probes import Batch
from tracer.model.report import LiveStart, LiveStatus, Seen
from tracer.model.selection import Stream as Selection
from tracer.model.topology import Address, Network, Topology
from tracer.render.json_lines import LiveJsonRenderer
from tracer.render.live import LiveRenderer
from tracer.render.words import packet_name
from tracer.topology.host import Host
from tracer.topology.watcher import Watcher

RING_BYTES = 1 << 23
POLL_MS = 50
STATUS_S = 0.25
SILENCE_S = 3.0
IDLE_S = 3.0  # without a match, until netfilter is left alone again
RELOOK_S = 0.1  # between two looks for devices that nobody knows


@dataclass(frozen=True, slots=True)
class Following:
    """What to follow and for how long, as live's options say it."""

    expression: str
    containers: tuple[str, ...]
    networks: tuple[str, ...]
    drops: bool
    tcp_problems: bool
    count: int | None
    duration: float | None  # s


class Stream:
    """Made by open(), used once by run()."""

    def __init__(self, host: Host, following: Following, renderer: LiveRenderer | LiveJsonRenderer, networks: list[Network]):
        self._host, self._following, self._renderer = host, following, renderer
        self._networks = networks
        self._flows = Flows()
        self._problems = Problems()
        self._told = self._delivered = self._dropped = 0
        self._lost: Counter[str] = Counter()
        self._looked = 0.0
        self._share = 1.0

    @classmethod
    def open(cls, following: Following, *, in_lab: bool, verbose: bool, as_json: bool) -> Stream:
        """Resolve the names. UserError where they mean nothing, or libpcap does not take the filter."""
        require_root()
        from tracer.kernel.expression import filter_source
        from tracer.kernel.pcap import compile_expression

        filter_source(compile_expression(following.expression))
        host = Host.lab() if in_lab else Host.here(os.environ)
        for name in following.containers:
            host.look_for(name)
        networks = [subnet for name in following.networks for subnet in host.subnets(name)]
        if as_json:
            return cls(host, following, LiveJsonRenderer(sys.stdout), networks)
        from tracer.render.text import PlainConsole

        return cls(host, following, LiveRenderer(PlainConsole(), verbose), networks)

    def run(self) -> ExitStatus:
        """Follow and tell until it is enough: Ctrl-C, the count or the time."""
        with ExitStack() as stack:
            self._watcher = stack.enter_context(Watcher(self._host))
            topology = self._watcher.topology
            stack.callback(self._renderer.close)
            probes = stack.enter_context(Probes(Selection(self._expression(), bool(self._following.containers)),
                                                rules=False, ring_bytes=RING_BYTES, shed=True))
            self._choose(probes, topology)
            self._watch(probes, topology)
            assembler = Assembler(topology, lambda: probes.machine)
            machine = probes.machine
            self._renderer.header(LiveStart(__version__, machine.release, self._words(), machine.attached, machine.missing))
            stopping = stack.enter_context(Stopping())
            self._loop(probes, assembler, stopping)
            self._show(assembler.rest(), assembler.topology)
            self._renderer.summary(replace(self._flows.summary(), lost=dict(self._lost)))
        return ExitStatus.INTERRUPTED if stopping.asked and self._following.duration is not None else ExitStatus.OK

    def _loop(self, probes: Probes, assembler: Assembler, stopping: Stopping) -> None:
        begun = matched = shown = time.monotonic()
        spoken = False
        armed = self._arm(probes, assembler)
        while not stopping.asked and not self._is_enough(time.monotonic() - begun):
            batch = probes.read(POLL_MS)
            now = time.monotonic()
            if batch.events:
                matched = now
                armed = armed or self._arm(probes, assembler)
            elif armed and now - matched > IDLE_S:
                probes.disarm()
                armed = False
            self._take(batch, assembler)
            self._look_again(probes, assembler, now)
            self._show(assembler.take(time.monotonic_ns()), assembler.topology)
            if now - shown > STATUS_S:
                shown = now
                self._renderer.status(self._status(now - begun))
            if not spoken and not self._told and now - begun > SILENCE_S:
                spoken = True
                self._renderer.silence(now - begun, _seen(probes))

    def _arm(self, probes: Probes, assembler: Assembler) -> bool:
        """Watch netfilter too."""
        probes.arm()
        assembler.armed(time.monotonic_ns())
        return True

    def _is_enough(self, seconds: float) -> bool:
        following = self._following
        return (following.count is not None and self._told >= following.count) or \
            (following.duration is not None and seconds >= following.duration)

    def _take(self, batch: Batch, assembler: Assembler) -> None:
        assembler.feed(batch)
        self._share = batch.share
        for place, lost in batch.lost_by.items():
            self._lost[Place(place).name.lower()] += lost

    def _show(self, journeys: list[Journey], topology: Topology) -> None:
        following = self._following
        for journey, branches in families(explain([owned(j, topology) for j in journeys], topology)):
            problem = self._problems.of(journey)
            if following.drops and not any(j.end.result is Result.DROPPED for j in (journey, *branches)):
                continue
            if following.tcp_problems and not problem:
                continue
            if following.count is not None and self._told >= following.count:
                break
            self._told += 1
            self._delivered += journey.end.result is Result.DELIVERED
            self._dropped += journey.end.result is Result.DROPPED
            self._flows.add(journey)
            self._renderer.journey(journey, branches)

    def _status(self, seconds: float) -> LiveStatus:
        return LiveStatus(seconds, self._told, self._delivered, self._dropped, self._told / max(seconds, 0.001),
                          dict(self._lost), self._share, self._flows.talkers())

    # -- what is followed ------------------------------------------------------------------------------------------

    def _expression(self) -> str:
        parts = [self._following.expression] if self._following.expression else []
        parts += [" or ".join(f"net {network}" for network in self._networks)] if self._networks else []
        parts += ["tcp"] if self._following.tcp_problems else []
        return " and ".join(f"({part})" for part in parts)

    def _words(self) -> str:
        following = self._following
        said = [following.expression] if following.expression else []
        said += [f"of {' or '.join(following.containers)}"] if following.containers else []
        said += [f"on network {' or '.join(following.networks)}"] if following.networks else []
        return ", ".join(said)

    def _choose(self, probes: Probes, topology: Topology) -> None:
        if self._following.containers:
            probes.choose(self._addresses(topology))

    def _addresses(self, topology: Topology) -> Iterable[Address]:
        """Of the containers that are asked for, as far as they run."""
        for namespace in topology.namespaces.values():
            if namespace.name in self._following.containers:
                yield from (i.ip for link in namespace.links.values() if not link.loopback for i in link.addresses)

    # -- names -----------------------------------------------------------------------------------------------------

    def _watch(self, probes: Probes, topology: Topology) -> None:
        for namespace in topology.namespaces.values():
            probes.watch(namespace)

    def _look_again(self, probes: Probes, assembler: Assembler, now: float) -> None:
        """Containers come and go; and where a packet was at a device that is not known, there is something to find."""
        if now - self._looked > RELOOK_S:
            self._looked = now
            self._watcher.met(assembler.unknown())
        topology = self._watcher.poll()
        if topology:
            self._choose(probes, topology)
            self._watch(probes, topology)
            assembler.know(topology)


def _seen(probes: Probes) -> Seen:
    """The packets that passed, by what most of them look like."""
    packets, samples = probes.passed()
    kinds: Counter[str] = Counter()
    for protocol, headers in samples:
        packet = decode(protocol, headers)
        ports = f":{packet.dport}" if packet.dport else ""
        kinds[f"{packet.proto} {packet.src} → {packet.dst}{ports}" if packet.src else packet_name(packet)] += 1
    return Seen(packets, {kind: round(packets * n / len(samples)) for kind, n in kinds.most_common(3)})
