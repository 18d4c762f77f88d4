"""One run of `ping`: the sender, the probes and the output, wired together."""

from __future__ import annotations

import errno
import os
import secrets
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

from tracer import __version__
from tracer.cli.output import renderer_for
from tracer.cli.stopping import Stopping
from tracer.cli.telling import Telling
from tracer.errors import ExitStatus, UserError
from tracer.kernel.probes import Probes, require_root
from tracer.model.journey import Journey
from tracer.model.probes import Batch
from tracer.model.report import OnBridge, Place as ReportPlace, Start
from tracer.model.run import Answer, Begin, Finish, Item, Know, Sent, Sweep, Tell
from tracer.model.selection import PORTS, Relay, Selection
from tracer.model.topology import Address, LinkKey, Topology
from tracer.render.base import Renderer
from tracer.topology.changes import Changes
from tracer.topology.counters import Counters
from tracer.topology.host import Host
from tracer.topology.place import Destination, Place
from tracer.topology.rulesets import Rulesets
from tracer.topology.way import addresses_on_the_way, source_address
from tracer.traffic.answer import SendFailure
from tracer.traffic.ports import free_base_port, held
from tracer.traffic.prober import Prober

NOTHING = Batch([], 0)
POLL_S = 0.05  # how late an answer is noticed whose own events were lost: events wake the loop
WITHOUT_BRIDGE = {"macvlan", "ipvlan"}
SWEEP_S = 1.0  # between two looks for what came late
REARM_S = 0.1  # a pause between two requests that is worth taking the netfilter links away for
RELOOK_S = 0.5  # between two looks at the network for a device that nobody knows
NAMING_S = 2.5  # how long a device may stay without a name before it is told without


@dataclass(frozen=True, slots=True)
class Plan:
    """What to send, as ping's options say it. Times in seconds."""

    count: int | None
    interval: float
    timeout: float
    size: int
    ttl: int | None
    version: int | None
    transport: str  # "icmp", "tcp", "udp", "arp"
    port: int | None  # of tcp and udp
    rules: bool = True  # say which rules decided
    record: str | None = None  # path of the trace file
    force: bool = False  # replace one that is there
    expected: bool = False  # compare the first request's way with the one that the tables tell


class Session:
    """Made by open(), used once by run()."""

    def __init__(self, host: Host, source: Place, destination: Destination, plan: Plan, renderer: Renderer,
                 verbose: bool, notes: tuple[str, ...]) -> None:
        self._host, self._source, self._destination, self._plan = host, source, destination, plan
        self._notes = notes
        self._telling = Telling(renderer, verbose)
        self._waiting = self._telling.waiting
        self._listeners: list[Callable[[Item], None]] = [self._telling.play]
        self._rulesets = Rulesets()
        self._sender: Address | None = None  # the address that the kernel sends from; None without a route
        self._counters = Counters() if plan.rules else None
        self._stopping = Stopping()
        self._looked = 0.0
        self._named: set[int] = set()  # namespaces that were found on the way
        self._puzzles: dict[LinkKey, float] = {}  # devices that nobody knew -> when they were first met, monotonic s

    @classmethod
    def open(cls, source: str, destination: str, plan: Plan, *, in_lab: bool, verbose: bool, as_json: bool) -> Session:
        """Resolve the names. UserError where they mean nothing."""
        require_root()  # before names are looked up, which would fail less plainly
        host = Host.lab() if in_lab else Host.here(os.environ)
        start = host.find(source)
        goal = host.destination(destination, start, plan.version, _resolve)
        return cls(host, start, goal, plan, renderer_for(as_json), verbose,
                   tuple(dict.fromkeys((*start.notes, *goal.notes))))

    def run(self) -> ExitStatus:
        """Send, follow and tell until all is told. Ctrl-C ends it early, with the summary."""
        address, port = self._destination.address, self._plan.port
        if port and self._target() == self._host.place.netns:
            self._host.find_publishers(self._plan.transport, port)
        topology = self._host.topology()
        self._sender = source_address(self._source, self._destination)
        on_the_way = addresses_on_the_way(self._source, self._destination, self._sender, topology)
        transport = self._plan.transport
        relay = self._relay()
        if relay:
            on_the_way.add(relay.address)
        proxy = self._destination.place if relay else None
        held_in = {place.netns: place.path for place in (proxy, self._source) if place}
        token = free_base_port(held_in.values(), port) if port else secrets.randbelow(0xFFFF) + 1
        selection = Selection(address.version, transport, token, tuple(on_the_way), address, port, self._sender,
                              relay)
        with ExitStack() as stack:
            own = stack.enter_context(ExitStack())
            if port:  # nobody else may take one of them meanwhile, nor the proxy connect from one
                for netns, path in held_in.items():
                    (own if netns == self._source.netns else stack).enter_context(held(path, token, transport))
            probes = stack.enter_context(Probes(selection, self._plan.rules))
            self._changes = stack.enter_context(Changes())
            self._watch(topology, probes)
            own.close()  # the sender binds them itself
            prober = stack.enter_context(self._prober(selection, topology))
            if self._plan.record is not None:
                from tracer.capture.writer import Writer
                self._listeners.append(stack.enter_context(
                    Writer(self._plan.record, self._plan.force, self._telling.number)).play)
            self._play(Begin(self._start(topology, probes), selection, self._plan.timeout, probes.machine, topology,
                             self._source.netns, self._target(), time.time_ns(), self._expected()))
            with self._stopping:
                self._loop(probes, prober)
            for seq in sorted(self._waiting):
                self._tell(seq, probes)
            self._play(probes.machine)
            self._play(Finish())
        return ExitStatus.INTERRUPTED if self._stopping.asked else self._telling.status

    def _expected(self) -> Journey | None:
        """The request's way by the tables as they are now, if that was asked for."""
        if not self._plan.expected:
            return None
        from tracer.map.expected import expected
        from tracer.map.passage import Trip
        from tracer.topology.ruleset import read_ruleset

        plan, everything = self._plan, self._host.everything()
        source = everything.namespaces.get(self._source.netns)
        trip = Trip(source, self._destination.address, plan.transport if plan.port else None, plan.port) if source else None
        return expected(everything, read_ruleset, trip) if trip else None

    def _play(self, item: Item) -> None:
        for listener in self._listeners:
            listener(item)

    def _relay(self) -> Relay | None:
        """The userland proxy that listens at the destination, if one does."""
        from tracer.topology.sockets import listener

        place, plan = self._destination.place, self._plan
        if place is None or plan.port is None:
            return None
        try:
            found = listener(place.path, plan.transport, self._destination.address, plan.port)
        except OSError:  # a kernel without inet_diag: what can be seen from the outside is shown all the same
            return None
        if found is None or found.relay is None or found.pid is None:
            return None
        return Relay(found.pid, found.program or "", found.relay.address, found.relay.port)

    def _prober(self, selection: Selection, topology: Topology) -> Prober:
        """The sender of the plan's kind of probe."""
        path, address, plan, sender = self._source.path, self._destination.address, self._plan, self._sender
        if plan.transport == "tcp" and plan.port and selection.relay:
            from tracer.traffic.connect import ConnectProber
            return ConnectProber(path, address, plan.port, sender, selection.token)
        if plan.transport == "tcp" and plan.port:
            from tracer.traffic.tcp import SynProber
            return SynProber(path, address, plan.port, sender, selection.token, ttl=plan.ttl)
        if plan.transport == "udp" and plan.port:
            from tracer.traffic.udp import UdpProber
            return UdpProber(path, address, plan.port, sender, selection.token, size=plan.size, ttl=plan.ttl)
        if plan.transport == "arp":
            from tracer.traffic.arp import ArpProber
            namespace = topology.namespaces.get(self._source.netns)
            link = namespace.owner_of(sender) if namespace and sender else None
            if sender is None or link is None:
                raise UserError(f"{self._source.name} has no route to {address}: an ARP request needs a device to leave by.")
            return ArpProber(path, address, sender, link.name)
        from tracer.traffic.echo import Pinger
        return Pinger(path, address, selection.token, size=plan.size, ttl=plan.ttl)

    def _loop(self, probes: Probes, prober: Prober) -> None:
        assembler = self._telling.assembler
        seq = 1  # of the next one to send
        next_send = last_swept = time.monotonic()
        remaining = self._plan.count
        while not self._stopping.asked and (remaining is None or remaining > 0 or self._waiting):
            now = time.monotonic()
            held = self._plan.port is not None and seq - PORTS in self._waiting  # its source port still waits
            if (remaining is None or remaining > 0) and now >= next_send and not held:
                probes.arm()
                self._send(seq, prober)
                seq += 1
                next_send = max(next_send + self._plan.interval, now)  # no burst after a stall
                remaining = None if remaining is None else remaining - 1
            pause = POLL_S if remaining == 0 or self._waiting else RELOOK_S
            wait_ms = int(1000 * (pause if remaining == 0 or held else max(0.0, min(pause, next_send - now))))
            self._collect(probes, prober, wait_ms)
            self._look_again(probes)
            for waiting, sent in list(self._waiting.items()):
                done = assembler.settled(waiting, probes.until) or time.monotonic_ns() - sent > self._plan.timeout * 1e9
                if done and not self._puzzling():
                    prober.finish(waiting)  # its packets are on their way when this returns
                    self._read(probes, 0)
                    if self._changes.seen():
                        self._reread(probes)
                    self._tell(waiting, probes)
            if now - last_swept > SWEEP_S:
                last_swept = now
                self._play(probes.machine)
                self._play(Sweep(probes.until))
            if not self._waiting and next_send - time.monotonic() > REARM_S:
                probes.disarm()

    def _send(self, seq: int, prober: Prober) -> None:
        if self._counters:
            self._counters.before(seq)
        begun = time.monotonic_ns()
        sent = prober.send(seq)
        self._play(Sent(seq, begun, sent.text, errno.errorcode.get(sent.errno, "")) if isinstance(sent, SendFailure)
                   else Sent(seq, sent))

    def _read(self, probes: Probes, wait_ms: int) -> None:
        batch = self._rulesets.named(probes.read(wait_ms), self._telling.assembler.topology.namespaces)
        if batch != NOTHING:
            self._play(batch)

    def _collect(self, probes: Probes, prober: Prober, wait_ms: int) -> None:
        self._read(probes, wait_ms)
        for answer in prober.receive():
            if answer.seq not in self._waiting:
                continue
            # a refusal is an answer too; what comes from elsewhere ("astray") no program would take for one
            error = f"an answer came astray from {answer.source}" if answer.state == "astray" else \
                f"an ICMP error came from {answer.source}" if answer.kind == "error" and answer.state != "refused" else None
            # the stamp is the wall clock's, and its conversion can be off by what it took
            ms = max(answer.monotonic_ns - self._waiting[answer.seq], 0) / 1e6
            self._play(Answer(answer.seq, answer.state, ms, answer.kind == "reply", error))

    def _look_again(self, probes: Probes) -> None:
        """A packet was at a device that is not known: containers come and go. Read the network anew."""
        now = time.monotonic()
        unknown = self._telling.assembler.unknown()
        new = unknown - self._puzzles.keys()
        self._puzzles.update(dict.fromkeys(new, now))
        if not new and (now - self._looked < RELOOK_S or not self._puzzling()):
            return
        self._looked = now
        self._named |= {key.netns for key in unknown if self._host.refresh(key.netns)}
        self._reread(probes)

    def _reread(self, probes: Probes) -> None:
        topology = self._host.topology(self._named)
        self._watch(topology, probes)
        self._play(Know(topology, self._target()))

    def _tell(self, seq: int, probes: Probes) -> None:
        self._play(probes.machine)
        self._play(Tell(seq, self._stopping.asked, self._counters.after(seq) if self._counters else None))

    def _watch(self, topology: Topology, probes: Probes) -> None:
        """In namespaces that are not watched yet."""
        for namespace in topology.namespaces.values():
            probes.watch(namespace)
            self._changes.watch(namespace)
        if self._counters:
            untraced = probes.machine.untraced or {}
            for namespace in topology.namespaces.values():
                self._counters.watch(namespace, namespace.netns not in untraced)

    def _puzzling(self) -> bool:
        """Is there a device that may yet get its name? A container's engine knows it only a moment after its first
        packet, while a namespace that nobody made a name for stays without."""
        return any(time.monotonic() - self._puzzles.get(key, 0.0) < NAMING_S for key in self._telling.assembler.unknown())

    def _target(self) -> int | None:
        return self._destination.place.netns if self._destination.place else None

    def _start(self, topology: Topology, probes: Probes) -> Start:
        machine, sender = probes.machine, self._sender
        notes = self._notes if sender else (*self._notes, f"{self._source.name} has no route to {self._destination.address}")
        target, plan = self._target(), self._plan
        if target == topology.host:
            notes += tuple(f"port {plan.port} of the host is published by {container.name} (its port {p.container_port})"
                           for container in topology.containers for p in container.ports
                           if (p.protocol, p.host_port) == (plan.transport, plan.port))
        notes = tuple(dict.fromkeys(notes))  # once, though it is published in IPv4 and in IPv6
        for place in filter(None, (self._source, self._destination.place)):
            namespace = topology.namespaces.get(place.netns)
            kinds = {link.kind for link in namespace.links.values()} & WITHOUT_BRIDGE if namespace else set()
            notes = (*notes, *(f"{place.name} has a {kind} device: no bridge takes part in what goes by it"
                               for kind in sorted(filter(None, kinds))))
        return Start(
            __version__, machine.release,
            ReportPlace(self._source.name, str(sender or "?"), _on_bridge(topology, self._source.netns, sender)),
            ReportPlace(self._destination.name, str(self._destination.address),
                        _on_bridge(topology, target, self._destination.address) if target is not None else None),
            machine.attached, machine.missing, notes)


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
    from tracer.topology.netns import here
    from tracer.traffic.resolve import resolve

    etc = "/etc"
    if source.container:
        etc = f"/proc/{source.container.pid}/root/etc"
    elif source.netns != here():
        etc = f"/etc/netns/{source.name}"
    return resolve(name, source.path, etc, version)
