"""One run of `live`: what is followed, and the loop that tells it."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace

from tracer import __version__
from tracer.cli.live_telling import LiveTelling, Shown
from tracer.cli.output import live_renderer_for
from tracer.cli.stopping import Stopping
from tracer.errors import ExitStatus
from tracer.journey.headers import decode
from tracer.kernel.probes import Probes, require_root
from tracer.model.frame import cut
from tracer.model.journey import Packet
from tracer.model.probes import Batch
from tracer.model.report import LiveStart, Seen
from tracer.model.run import Armed, Finish, Item, Know, LiveBegin, Pulse, Silence, Sweep
from tracer.model.selection import Stream as Selection
from tracer.model.topology import Address, Network, Topology
from tracer.render.json_lines import LiveJsonRenderer
from tracer.render.live import LiveRenderer
from tracer.render.words import packet_name
from tracer.topology.host import Host
from tracer.topology.rulesets import Rulesets
from tracer.topology.watcher import Watcher

RING_BYTES = 1 << 23
POLL_MS = 50
REST_MS = 250  # the same, while nothing matches: what matches, and a change of the network, end it
ROUND_S = 0.02
SWEEP_S = 0.05  # between two looks for journeys that are over
STATUS_S = 0.25
SILENCE_S = 3.0
IDLE_S = 3.0  # without a match, until netfilter is left alone again


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
    record: str | None = None  # a file
    force: bool = False  # to replace one that is there


class Follower:
    """What a command that follows real traffic was asked for, and what is watched for it."""

    _probes: Probes
    _watcher: Watcher
    _topology: Topology  # that was played last

    def __init__(self, host: Host, following: Following, networks: list[Network], in_detail: bool = False) -> None:
        """`in_detail`: with the probes that cost more than a line a packet needs."""
        self._host, self._following, self._networks, self._in_detail = host, following, networks, in_detail
        self._armed, self._matched = False, 0.0  # is netfilter watched; the last match, monotonic s
        self._until: float | None = None  # as asked for, monotonic s

    @classmethod
    def named(cls, following: Following, in_lab: bool) -> tuple[Host, list[Network]]:
        """Resolve the names. UserError where they mean nothing, or libpcap does not take the filter."""
        require_root()
        from tracer.kernel.expression import filter_source
        from tracer.model.pcap import compile_expression

        filter_source(compile_expression(following.expression))
        host = Host.lab() if in_lab else Host.here(os.environ)
        for name in following.containers:
            host.look_for(name)
        return host, [subnet for name in following.networks for subnet in host.subnets(name)]

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

    def _chosen(self, topology: Topology) -> Iterator[Address]:
        """The addresses of the containers that are asked for, as far as they run. In the lab, of its namespaces."""
        names = self._following.containers
        for container in topology.containers:
            if container.name in names or container.id.startswith(names):
                yield from (address for end in container.attachments for address in end.addresses)
        for namespace in topology.namespaces.values():
            if namespace.name in names:
                yield from (i.ip for link in namespace.links.values() if not link.loopback for i in link.addresses)

    def _play(self, item: Item) -> None:
        raise NotImplementedError

    def _open(self, stack: ExitStack, ring_bytes: int) -> None:
        self._ring_bytes = ring_bytes
        self._probes = self._new_probes()
        stack.callback(lambda: self._probes.close())
        self._watcher = stack.enter_context(Watcher(self._host))
        self._topology = self._watcher.topology

    def _new_probes(self) -> Probes:
        selection = Selection(self._expression(), bool(self._following.containers))
        return Probes(selection, rules=False, ring_bytes=self._ring_bytes, shed=True, functions=self._in_detail)

    def _renew(self) -> None:
        """See what a module that was loaded meanwhile lets one see."""
        if self._probes.outdated:
            self._probes.close()
            self._probes = self._new_probes()
            if self._armed:
                self._arm()
            self._watcher.renew()  # the network as it is then, with its chains, is watched

    def _watch(self) -> bool:
        """True: netfilter is watched from now on where it was not until now."""
        if self._following.containers:
            self._probes.choose(self._chosen(self._topology))
        attached = [self._probes.watch(namespace) for namespace in self._topology.namespaces.values()]
        return any(attached)

    def _know(self, topology: Topology) -> None:
        self._topology = topology
        more = self._watch()
        self._play(self._probes.machine)
        if more:
            self._play(Armed(time.monotonic_ns()))
        self._play(Know(topology, None))

    def _start(self, now: float) -> None:
        if self._following.duration is not None:
            self._until = now + self._following.duration
        self._arm()

    def _wait(self) -> tuple[int, int]:
        """How long to read for, and what else ends it."""
        left = max(0, int(1000 * (self._until - time.monotonic()))) if self._until else REST_MS
        return min(left, POLL_MS if self._armed else REST_MS), self._watcher.news

    def _arm(self) -> None:
        """Watch netfilter too."""
        self._armed, self._matched = True, time.monotonic()
        self._probes.arm()
        self._play(Armed(time.monotonic_ns()))

    def _matches(self, matched: bool, now: float) -> None:
        """Netfilter is left alone while nothing matches."""
        if matched:
            self._matched = now
            self._watcher.stir()
            if not self._armed:
                self._arm()
        elif self._armed and now - self._matched > IDLE_S:
            self._probes.disarm()
            self._armed = False


class Stream(Follower):
    """Made by open(), used once by run()."""

    def __init__(self, host: Host, following: Following, renderer: LiveRenderer | LiveJsonRenderer,
                 networks: list[Network], in_detail: bool) -> None:
        super().__init__(host, following, networks, in_detail)
        self._renderer = renderer
        self._telling = LiveTelling(renderer, Shown(following.drops, following.tcp_problems, following.count))
        self._listeners: list[Callable[[Item], None]] = [self._telling.play]

    @classmethod
    def open(cls, following: Following, *, in_lab: bool, verbose: bool, as_json: bool) -> Stream:
        """Resolve the names. UserError where they mean nothing, or libpcap does not take the filter."""
        host, networks = cls.named(following, in_lab)
        return cls(host, following, live_renderer_for(as_json, verbose), networks, verbose)

    def run(self) -> ExitStatus:
        """Follow and tell until it is enough: Ctrl-C, the count or the time."""
        following = self._following
        with ExitStack() as stack:
            stack.callback(self._renderer.close)
            self._open(stack, RING_BYTES)
            topology = self._topology
            if following.record is not None:
                from tracer.capture.writer import Writer
                self._listeners.append(stack.enter_context(
                    Writer(following.record, following.force, self._telling.number)).play)
            machine = self._probes.machine
            running = {c.name for c in topology.containers if c.pid} | set(topology.names.values())
            notes = tuple(f"no container is called {name} yet: its packets are shown once it starts"
                          for name in following.containers if name not in running)
            start = LiveStart(__version__, machine.release, self._words(), machine.attached, machine.missing, notes)
            self._play(LiveBegin(start, machine, topology, time.time_ns()))
            self._know(topology)
            stopping = stack.enter_context(Stopping())
            self._loop(stopping)
            self._play(Finish())
        return ExitStatus.INTERRUPTED if stopping.asked and following.duration is not None else ExitStatus.OK

    def _cut(self, batch: Batch) -> Batch:
        """What is recorded has no payload; and what is told is what is recorded."""
        return replace(batch, events=[cut(event) for event in batch.events]) if self._following.record else batch

    def _play(self, item: Item) -> None:
        for listener in self._listeners:
            listener(item)

    def _loop(self, stopping: Stopping) -> None:
        begun = shown = swept = time.monotonic()
        watcher, rulesets = self._watcher, Rulesets()
        spoken = False
        traced: tuple[Packet, ...] = ()
        self._start(begun)
        while not stopping.asked and not self._telling.enough:
            batch = self._probes.read(*self._wait())
            now = time.monotonic()
            if self._until and now >= self._until:
                break
            self._matches(bool(batch.events), now)
            batch = rulesets.named(batch, self._topology.namespaces)
            if batch.events or batch.lost or batch.traces:
                self._play(self._cut(batch))
            heard = watcher.heard  # before it is asked for the topology
            if topology := watcher.poll():
                self._know(topology)
            if now - swept > SWEEP_S:
                swept = now
                watcher.met(self._telling.assembler.fresh())
                self._play(Sweep(self._probes.until, heard))
            if now - shown > STATUS_S:
                shown = now
                self._renew()
                watcher.met(self._telling.assembler.unknown())
                self._play(Pulse(now - begun))
                if (unexplained := tuple(self._telling.unexplained)) and unexplained != traced:
                    traced = unexplained
                    self._probes.trace(traced, self._topology.namespaces.values())
                    self._play(self._probes.machine)
            if not spoken and not self._telling.told and now - begun > SILENCE_S:
                spoken = True
                self._play(Silence(now - begun, _seen(self._probes)))
            if batch.events:
                time.sleep(ROUND_S)  # many events at a time cost less


def _seen(probes: Probes) -> Seen:
    """The packets that passed, by what most of them look like."""
    packets, samples = probes.passed()
    kinds: Counter[str] = Counter()
    for protocol, headers in samples:
        packet = decode(protocol, headers)
        ports = f":{packet.dport}" if packet.dport else ""
        kinds[f"{packet.proto} {packet.src} → {packet.dst}{ports}" if packet.src else packet_name(packet)] += 1
    return Seen(packets, {kind: round(packets * n / len(samples)) for kind, n in kinds.most_common(3)})
