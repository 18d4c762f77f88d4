"""One run of `ping`: the sender, the probes and the output, wired together."""

from __future__ import annotations

import os
import secrets
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import count as counter

from tracer import __version__
from tracer.errors import ExitStatus, UserError
from tracer.journey.assemble import Assembler
from tracer.journey.lookups import sentences
from tracer.kernel.probes import Probes
from tracer.model.journey import Journey, Result
from tracer.model.report import Failure, MissingProbe, OnBridge, Place as ReportPlace, RoundTrip, Start, Summary
from tracer.model.selection import Selection
from tracer.model.topology import Address, LinkKey, Topology
from tracer.render.base import Renderer
from tracer.topology.host import Host
from tracer.topology.place import Destination, Place
from tracer.topology.way import addresses_on_the_way, source_address
from tracer.traffic.answer import SendFailure
from tracer.traffic.echo import Pinger

POLL_S = 0.05  # how late an answer is noticed whose own events were lost: events wake the loop
REARM_S = 0.1  # a pause between two requests that is worth taking the netfilter links away for
RELOOK_S = 0.5  # between two looks at the network for a device that nobody knows
NAMING_S = 2.5  # how long a device may stay without a name before it is told without


@dataclass(frozen=True, slots=True)
class Echo:
    """What to send, as ping's options say it. Times in seconds."""

    count: int | None
    interval: float
    timeout: float
    size: int
    ttl: int | None
    version: int | None


@dataclass(slots=True)
class Tally:
    """What the summary counts."""

    sent: int = 0
    journeys: int = 0
    lookups: int = 0
    rtts: list[float] = field(default_factory=list)  # ms
    ends: dict[str, int] = field(default_factory=dict)
    roles: dict[str, set[str]] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)

    def add(self, journey: Journey) -> None:
        self.journeys += 1
        self.ends[journey.end.result.value] = self.ends.get(journey.end.result.value, 0) + 1
        if journey.kind == "arp":
            self.lookups += 1
        elif journey.kind != "copy":
            for hop in journey.hops:
                if hop.bridge and hop.role:
                    self.roles.setdefault(hop.bridge, set()).add(hop.role.value)


class Session:
    """Made by open(), used once by run()."""

    def __init__(self, host: Host, source: Place, destination: Destination, echo: Echo, renderer: Renderer,
                 verbose: bool, notes: tuple[str, ...]) -> None:
        self._host, self._source, self._destination, self._echo = host, source, destination, echo
        self._renderer, self._verbose, self._notes = renderer, verbose, notes
        self._tally = Tally()
        self._waiting: dict[int, int] = {}  # seq -> when it was sent, CLOCK_MONOTONIC ns
        self._answered: set[int] = set()
        self._errors: dict[int, str] = {}  # seq -> the ICMP error that came instead of an answer
        self._interrupted = False
        self._looked = 0.0
        self._puzzles: dict[LinkKey, float] = {}  # devices that nobody knew -> when they were first met, monotonic s

    @classmethod
    def open(cls, source: str, destination: str, echo: Echo, *, in_lab: bool, verbose: bool, as_json: bool) -> Session:
        """Resolve the names. UserError where they mean nothing."""
        if os.geteuid() != 0:
            raise UserError("Tracing needs root (CAP_BPF, CAP_PERFMON, CAP_NET_ADMIN, CAP_SYS_ADMIN): run it with sudo.")
        host = Host.lab() if in_lab else Host.here(os.environ)
        start = host.find(source)
        goal = host.destination(destination, start, echo.version, _resolve)
        renderer: Renderer
        if as_json:
            from tracer.render.json_lines import JsonRenderer
            renderer = JsonRenderer(sys.stdout)
        else:
            from tracer.render.text import PlainConsole, TextRenderer
            renderer = TextRenderer(PlainConsole())
        return cls(host, start, goal, echo, renderer, verbose, tuple(dict.fromkeys((*start.notes, *goal.notes))))

    def run(self) -> ExitStatus:
        """Send, follow and tell until all is told. Ctrl-C ends it early, with the summary."""
        topology = self._host.topology()
        address = self._destination.address
        on_the_way = addresses_on_the_way(self._source, self._destination, topology)
        selection = Selection(address.version, "icmp", secrets.randbelow(0xFFFF) + 1, tuple(on_the_way))
        with ExitStack() as stack:
            probes = stack.enter_context(Probes(selection))
            for namespace in topology.namespaces.values():
                probes.watch(namespace)
            pinger = stack.enter_context(Pinger(self._source.path, address, selection.token, size=self._echo.size,
                                                ttl=self._echo.ttl))
            assembler = Assembler(selection, topology, lambda: probes.machine, self._target())
            self._renderer.header(self._start(topology, probes))
            with self._interruptible():
                self._loop(probes, pinger, assembler)
            for seq in sorted(self._waiting):
                self._tell(seq, assembler)
            self._show(assembler.rest(), assembler)
            self._renderer.summary(self._summary(assembler))
        if self._interrupted:
            return ExitStatus.INTERRUPTED
        return ExitStatus.OK if len(self._answered) == self._tally.sent else ExitStatus.LOST

    @contextmanager
    def _interruptible(self) -> Iterator[None]:
        """Ctrl-C and SIGTERM end the loop at its next turn: as an exception, they would vanish in a callback of BCC's or
        tear a journey from the output."""
        def stop(_signal: int, _frame: object) -> None:
            self._interrupted = True

        before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _loop(self, probes: Probes, pinger: Pinger, assembler: Assembler) -> None:
        sequence = counter(1)
        next_send = time.monotonic()
        remaining = self._echo.count
        while not self._interrupted and (remaining is None or remaining > 0 or self._waiting):
            now = time.monotonic()
            if (remaining is None or remaining > 0) and now >= next_send:
                probes.arm()
                self._send(next(sequence), pinger)
                next_send += self._echo.interval
                remaining = None if remaining is None else remaining - 1
            pause = POLL_S if remaining == 0 or self._waiting else RELOOK_S
            wait_ms = int(1000 * (pause if remaining == 0 else max(0.0, min(pause, next_send - now))))
            self._collect(probes, pinger, assembler, wait_ms)
            self._look_again(probes, assembler)
            for seq, sent in list(self._waiting.items()):
                now_ns = time.monotonic_ns()
                done = assembler.settled(seq, now_ns) or now_ns - sent > self._echo.timeout * 1e9
                if done and not self._puzzling(assembler):
                    self._tell(seq, assembler)
            if not self._waiting and next_send - time.monotonic() > REARM_S:
                probes.disarm()

    def _send(self, seq: int, pinger: Pinger) -> None:
        self._tally.sent += 1
        sent = pinger.send(seq)
        if isinstance(sent, SendFailure):
            self._tally.failures.append(Failure(seq, f"never left: {sent.text}"))
            self._waiting[seq] = time.monotonic_ns()
        else:
            self._waiting[seq] = sent

    def _collect(self, probes: Probes, pinger: Pinger, assembler: Assembler, wait_ms: int) -> None:
        assembler.feed(probes.read(wait_ms))
        for answer in pinger.receive():
            if answer.kind == "error":
                self._errors.setdefault(answer.seq, f"an ICMP error came from {answer.source}")
            elif answer.kind == "reply" and answer.seq in self._waiting and answer.seq not in self._answered:
                self._answered.add(answer.seq)
                assembler.answered(answer.seq)
                self._tally.rtts.append((answer.monotonic_ns - self._waiting[answer.seq]) / 1e6)

    def _look_again(self, probes: Probes, assembler: Assembler) -> None:
        """A packet was at a device that is not known: containers come and go. Read the network anew."""
        now = time.monotonic()
        unknown = assembler.unknown()
        new = unknown - self._puzzles.keys()
        self._puzzles.update(dict.fromkeys(new, now))
        if not new and (now - self._looked < RELOOK_S or not self._puzzling(assembler)):
            return
        self._looked = now
        named = {key.netns for key in unknown if self._host.refresh(key.netns)}
        topology = self._host.topology(named)
        for namespace in topology.namespaces.values():
            if namespace.inode in named and namespace.owner_of(self._destination.address):
                probes.watch(namespace)
        assembler.know(topology, self._target())

    def _puzzling(self, assembler: Assembler) -> bool:
        """Is there a device that may yet get its name? A container's engine knows it only a moment after its first
        packet, while a namespace that nobody made a name for stays without."""
        return any(time.monotonic() - self._puzzles.get(key, 0.0) < NAMING_S for key in assembler.unknown())

    def _tell(self, seq: int, assembler: Assembler) -> None:
        del self._waiting[seq]
        journeys = assembler.take(seq)
        failed = any(failure.seq == seq for failure in self._tally.failures)
        if seq not in self._answered and not failed:
            self._tally.failures.append(Failure(seq, self._why(seq, journeys)))
        self._show(journeys, assembler)

    def _why(self, seq: int, journeys: list[Journey]) -> str:
        for journey in journeys:
            if journey.kind in ("request", "reply") and journey.end.result is Result.DROPPED:
                return f"the {journey.kind} was dropped in {journey.end.node}"
        if error := self._errors.get(seq):
            return error
        return f"no answer within {self._echo.timeout:g} s"

    def _show(self, journeys: list[Journey], assembler: Assembler) -> None:
        for journey in journeys:
            self._tally.add(journey)
        copies: dict[int, list[Journey]] = {}
        for journey in journeys:
            if journey.kind == "copy" and journey.parent is not None:
                copies.setdefault(journey.parent, []).append(journey)
        if not self._verbose:
            for sentence in sentences(journeys, assembler.topology):
                self._renderer.note(sentence)
        for journey in journeys:
            if journey.kind != "copy":
                self._renderer.journey(journey, self._verbose, copies.get(journey.id, ()))

    def _target(self) -> int | None:
        return self._destination.place.netns if self._destination.place else None

    def _start(self, topology: Topology, probes: Probes) -> Start:
        machine = probes.machine
        sender = source_address(self._source, self._destination)
        notes = self._notes if sender else (*self._notes, f"{self._source.name} has no route to {self._destination.address}")
        target = self._target()
        return Start(
            __version__, machine.release,
            ReportPlace(self._source.name, str(sender or "?"), _on_bridge(topology, self._source.netns, sender)),
            ReportPlace(self._destination.name, str(self._destination.address),
                        _on_bridge(topology, target, self._destination.address) if target is not None else None),
            machine.attached, tuple(MissingProbe(m.name, m.why) for m in machine.missing), notes)

    def _summary(self, assembler: Assembler) -> Summary:
        tally = self._tally
        rtt = RoundTrip(min(tally.rtts), sum(tally.rtts) / len(tally.rtts), max(tally.rtts)) if tally.rtts else None
        return Summary(tally.sent, len(self._answered), tally.journeys, assembler.events, assembler.lost,
                       {name: tuple(sorted(roles)) for name, roles in sorted(tally.roles.items())}, tally.ends, rtt,
                       tuple(tally.failures), tally.lookups)


def _on_bridge(topology: Topology, netns: int, address: Address | None) -> OnBridge | None:
    """The bridge that the owner of this address hangs on, or is."""
    namespace = topology.namespaces.get(netns)
    link = namespace.owner_of(address) if namespace and address else None
    if link is None:
        return None
    if link.kind == "bridge":
        return OnBridge(link.name, str(address), itself=True)
    bridge = topology.bridge(link.peer.netns, link.peer.ifindex) if link.peer else None
    if bridge is None or address is None:
        return None
    own = next((str(i) for i in bridge.addresses if i.version == address.version and not i.ip.is_link_local), None)
    return OnBridge(bridge.name, own)


def _resolve(source: Place, name: str, version: int | None) -> Address:
    """A hostname, as the source itself would resolve it."""
    from tracer.traffic.resolve import resolve

    etc = "/etc"
    if source.container:
        etc = f"/proc/{source.container.pid}/root/etc"
    elif source.netns != _here():
        etc = f"/etc/netns/{source.name}"
    return resolve(name, source.path, etc, version)


def _here() -> int:
    return os.stat("/proc/self/ns/net").st_ino
