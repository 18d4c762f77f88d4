"""The live source of events: compiles, attaches what this kernel allows, and hands out events in batches.

Everything attached hangs on file descriptors of this process: whatever way it ends, the kernel takes it all away.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import time
from collections.abc import Callable, Collection, Iterable
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from types import ModuleType
from typing import Any

from tracer.errors import UserError
from tracer.kernel import btf, syscall
from tracer.kernel.btf import Btf
from tracer.kernel.catalogue import CATALOGUE, TABLES, TRACEPOINT_WAYS, WHOLE_HOOKS, Mechanism, Probe
from tracer.kernel.compiler import Program, compile_program
from tracer.kernel.functions import HookWay, find_functions, find_way, is_loaded, load_function, open_function
from tracer.kernel.hooks import CONNTRACK, hook_points, whole_hooks
from tracer.kernel.own_chains import OwnChains
from tracer.kernel.rules import RuleTracer, alike, selected
from tracer.kernel.shedding import Shedding
from tracer.model.forms import FIRST, Forms, made
from tracer.model.journey import Packet
from tracer.model.layout import EVENT, TAIL_BYTES, TUPLES, Event, Place
from tracer.model.probes import HOOKS, SUBSYSTEM_SHIFT, Batch, HookPoint, Machine, Missing
from tracer.model.selection import PORTS, Selection, Stream
from tracer.model.topology import Address, Namespace, has_cookie
from tracer.topology import netns

ETH_P = {4: 0x0800, 6: 0x86DD}
ETH_P_ARP = 0x0806
ICMP = {4: 1, 6: 58}  # IPPROTO_ICMP, IPPROTO_ICMPV6
TRANSPORTS = {"tcp": 6, "udp": 17}  # the others are ICMP's
TRANSPORT_AT = {4: 9, 6: 6}  # offset of the protocol's number in the IP header
NFPROTO = {4: 2, 6: 10}
VARIANT_MARK = struct.pack("<i", 0x5107)  # bpf/probes.c
LOOK_S = 0.2  # between two looks whether watched namespaces still live
REST_S = 5.0  # the same, while nothing is attached there
GONE_S = 10.0  # what was attached in a namespace that ended is remembered for packets that are yet to be told
NEIGHBOURS = 16  # tracers at one hook at the same time
CAST_MARK = 0x5108  # bpf/read.h
RING_MARK = struct.pack("<i", 0x7FFF5109)  # bpf/follow.h; no other instruction has it
STACKS = 4096  # different ones that are kept
FRAME = struct.Struct("=Q")
SAMPLE = struct.Struct("=H40s4s2x")  # struct sample of bpf/stream.h
CALL, PSEUDO_KFUNC_CALL = 0x85, 2  # BPF_JMP | BPF_CALL, and its src_reg
MOVE_IMMEDIATE = 0xB7  # BPF_ALU64 | BPF_MOV | BPF_K
FORM = struct.Struct("=" + EVENT.format.removeprefix(f"={FIRST}").removesuffix("96s2s"))  # of an event, less its packet
DEPTH_AND_PLACE = struct.Struct("=32xHB")  # of the same
RECORD = struct.Struct(f"={FIRST}{FORM.size}s96s2x{TAIL_BYTES}s")  # of ring.RECORD


class Refused(UserError):
    """The kernel takes no program that would do; `why` is what it said."""

    def __init__(self, why: str) -> None:
        super().__init__(f"This kernel lets no tracepoint program load ({why}): boot Linux 5.10 or newer, with lockdown off "
                         "(`cat /sys/kernel/security/lockdown`).")
        self.why = why


def require_root() -> None:
    if os.geteuid() != 0:
        raise UserError("Tracing needs root (CAP_BPF, CAP_PERFMON, CAP_NET_ADMIN, CAP_SYS_ADMIN): run it with sudo.")


def _import_ring() -> ModuleType:
    try:
        from tracer.kernel import ring
    except ImportError as error:
        raise UserError("numpy is missing: run `sudo ./scripts/setup`, or install python3-numpy (Debian, Ubuntu, Fedora) "
                        f"({error}).") from None
    return ring


class Probes:
    """Probes for what a run follows. Raises UserError where this machine cannot trace at all. A context manager."""

    until: int  # what happened before was read, CLOCK_MONOTONIC ns

    def __init__(self, selection: Selection | Stream, rules: bool = True, ring_bytes: int = 1 << 20,
                 shed: bool = False, functions: bool = True, mechanisms: Collection[Mechanism] = tuple(Mechanism)) -> None:
        """`ring_bytes`: a power of two, and whole pages. `shed`: leave out whole journeys where events come faster than they
        are read. `functions`: probe those too that make more exact what others show. `mechanisms`: no other is tried."""
        require_root()
        ring = _import_ring()
        self._rules = RuleTracer(*selected(selection)) if rules and isinstance(selection, Selection) else None
        self._versions = (4, 6) if isinstance(selection, Stream) else (selection.version,)
        flags = stream_flags(selection) if isinstance(selection, Stream) else selection_flags(selection)
        self._flags = (*flags, f"-DRING_BYTES={ring_bytes}", *(["-DSHED"] if shed else []))
        self._selection = selection
        self._mechanisms = mechanisms
        self.until = 0
        self._symbols: dict[int, str] = {}
        self._stacks: dict[bytes, tuple[str, ...]] = {}
        self._forms = Forms()  # by all that a record has but its first members and its packet
        self._hooks: dict[int, int] = {}  # slot -> program
        self._watched: dict[int, tuple[str, list[HookPoint]]] = {}  # number -> (path, where its links go)
        self._names: dict[int, str] = {}  # of watched namespaces
        self._gone: dict[int, float] = {}  # those that ended -> when that was noticed, monotonic s
        self._looked = 0.0  # whether they live, monotonic s
        self._links_in: dict[int, ExitStack] = {}  # netfilter links that are attached, by namespace
        self._armed = False
        self._when_armed: list[Callable[[], int]] = []  # each opens a link
        self._points: dict[tuple[int, str, int], HookPoint] = {}
        self._attached: list[str] = []
        self._missing: dict[str, str] = {}
        with ExitStack() as stack:
            stack.callback(self._close_rules)
            self._btf = Btf()
            stack.callback(self._btf.close)
            self._reasons = {
                **{number << SUBSYSTEM_SHIFT: name.removeprefix("SKB_DROP_REASON_SUBSYS_")
                   for number, name in self._btf.enum("skb_drop_reason_subsys").items()},
                **{number: name.removeprefix("SKB_DROP_REASON_")
                   for number, name in self._btf.enum("skb_drop_reason").items()}}
            self._cast = self._btf.id("bpf_rdonly_cast", btf.FUNC)
            self._hooking = find_way(self._btf, self._mechanisms)
            self._functions = find_functions(self._btf, self._hooking, self._mechanisms) \
                if functions else HookWay(None)
            if self._hooking.why:
                self._missing["netfilter"] = self._hooking.why
            self._links = stack.enter_context(ExitStack())
            self._hook_links = stack.enter_context(ExitStack())
            self._program = self._start()
            try:
                self._ring = ring.open_ring(self._program.map_fd("events"))
                stack.callback(self._ring.close)
                stream = isinstance(selection, Stream)
                self._passed = ring.map_counters(self._program.map_fd("passed")) if stream else None
                self._samples = ring.map_counters(self._program.map_fd("samples"), words=SAMPLE.size // 8) \
                    if stream else None
                self._lost_now = ring.map_counters(self._program.map_fd("lost"))
                self._shedding = Shedding(ring.map_counters(self._program.map_fd("share"), writable=True),
                                          time.monotonic()) if shed else None
            except OSError as error:
                raise UserError(f"The kernel's events cannot be read: {error}.") from None
            self._lost = list(self._lost_now)
            self._stack = stack.pop_all()

    def __enter__(self) -> Probes:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def close(self) -> None:
        self._stack.close()

    @property
    def machine(self) -> Machine:
        """What is known of the machine by now: watching a namespace adds to it."""
        return Machine(
            release=os.uname().release,
            clock_offset_ns=time.time_ns() - time.monotonic_ns(),
            reasons=self._reasons,
            attached=tuple(self._attached),
            missing=tuple(Missing(name, why) for name, why in (*self._missing.items(), *self._untraced())),
            hook_points=dict(self._points),
            untraced=dict(self._rules.untraced) if self._rules else None)

    def _untraced(self) -> list[tuple[str, str]]:
        untraced = self._rules.untraced if self._rules else {}
        return [(f"rules in {self._names.get(number, number)}", why) for number, why in untraced.items()]

    @property
    def outdated(self) -> bool:
        """What could not be seen for want of a module, new probes would see by now."""
        return bool(self._hooking.lacks) and is_loaded(self._hooking.lacks)

    @property
    def behind(self) -> bool:
        """The last read left events that were there already."""
        return bool(self._ring.behind)

    def watch(self, namespace: Namespace) -> bool:
        """See netfilter's hooks in this namespace too, whenever armed. Where the kernel cannot, that is noted once. True:
        something was attached."""
        self._names[namespace.netns] = namespace.name
        if self._rules:
            self._rules.watch(namespace)
        if "netfilter" in self._missing or Mechanism.NETFILTER_LINK not in self._mechanisms:
            return False
        if namespace.netns in self._watched:
            if netns.leads(self._watched[namespace.netns][0], namespace.netns):
                return False
            self._unwatch(namespace.netns)
        points = whole_hooks(namespace, self._versions, {
            probe.version for probe in CATALOGUE if probe.version and probe.name in TABLES and probe.name in self._attached}
        ) if self._whole else hook_points(namespace, self._versions)
        try:
            if self._hooking.mechanism is Mechanism.NETFILTER_LINK:
                for slot in {point.slot for point in points} - self._hooks.keys():
                    self._hooks[slot] = self._load_hook(slot)
        except OSError as error:
            self._missing["netfilter"] = f"netfilter links: {error.strerror or error}"
            return False
        self._watched[namespace.netns] = (namespace.path, points)
        self._forget(namespace.netns)
        self._points.update({(p.netns, p.hook, p.slot): p for p in points})
        if "netfilter" not in self._attached:
            self._attached.append("netfilter")
        if self._armed:
            self._attach_links(namespace.netns)
        return self._armed and not self._whole

    @property
    def _whole(self) -> bool:
        """Are netfilter's hooks seen as a whole, by probes that need nothing in any namespace?"""
        return WHOLE_HOOKS[0] in self._hooking.probes

    def choose(self, addresses: Iterable[Address]) -> None:
        """From now on, of what matches a stream's expression only what is from or to one of these."""
        self._program.set_keys("addresses", {_key(address) for address in addresses})

    def _close_rules(self) -> None:
        if self._rules:
            self._rules.close()

    def trace(self, packets: Iterable[Packet], namespaces: Iterable[Namespace]) -> None:
        """From now on, the rules that packets of these flows meet are traced in a stream, in these namespaces and in those
        that are watched later; of no others."""
        self._close_rules()
        self._rules = RuleTracer(tuple(match for packet in packets for match in alike(packet)))
        for namespace in namespaces:
            self._rules.watch(namespace)
        self._rules.arm()

    def arm(self) -> None:
        """Attach the netfilter links and what else costs many packets of the host: it is there only while a probe is under
        way. A link costs some 35 ns at its hook before it does anything."""
        if not self._armed:
            self._armed = True
            for open_link in self._when_armed:
                self._hook_links.callback(os.close, open_link())
            for number in tuple(self._watched):
                self._attach_links(number)
            if self._rules:
                self._rules.arm()

    def disarm(self) -> None:
        self._armed = False
        if self._rules:
            self._rules.disarm()
        self._hook_links.close()
        self._links_in.clear()

    def read(self, timeout_ms: int, *others: int) -> Batch:
        """Wait for events, or for something to read at other file descriptors, at most so long, and return what there is, in
        the order in which it happened: of a ring of 1 MiB all, of a larger one so much at a time."""
        records, batch = self.read_records(timeout_ms, *others)
        return replace(batch, events=self.events(records))

    def read_records(self, timeout_ms: int, *others: int) -> tuple[Any, Batch]:
        """The same without an object for each: the events as numpy's array of ring.RECORD, and what else a batch says."""
        if time.monotonic() - self._looked > (LOOK_S if self._armed or self._rules else REST_S):
            self._let_go()
        self._ring.wait(timeout_ms, *others)
        now = time.monotonic_ns()
        records = self._ring.read()
        self.until = int(records["time"][-1]) if self._ring.behind and len(records) else now
        before, self._lost = self._lost, list(self._lost_now)
        lost = {place: now - then for place, (now, then) in enumerate(zip(self._lost, before, strict=True)) if now > then}
        if self._shedding and not self._ring.behind:
            self._shedding.adjust(time.monotonic())
        share = self._shedding.share if self._shedding else 1.0
        # behind the ring: the messages about what it told are there already
        traces, lost_traces = self._rules.read() if self._rules else ([], [])
        return records, Batch([], sum(lost.values()), tuple(traces), tuple(lost_traces), lost, share)

    def passed(self) -> tuple[int, list[tuple[int, bytes]]]:
        """What a stream's probes saw sent and did not follow: how many packets, and of some of the latest the EtherType and
        the headers from the network's on, without options."""
        if self._passed is None or self._samples is None:
            return 0, []
        return sum(self._passed), [(protocol, l3[:20] + l4 if protocol == ETH_P[4] else l3 + l4)
                                   for protocol, l3, l4 in SAMPLE.iter_unpack(self._samples.tobytes()) if protocol]

    def _let_go(self) -> None:
        """Of namespaces that ended: what is attached there keeps them alive, with their devices."""
        self._looked = time.monotonic()
        for number, (path, _points) in tuple(self._watched.items()):
            if not netns.leads(path, number):
                self._unwatch(number)
        for number in [number for number, since in self._gone.items() if since < self._looked - GONE_S]:
            self._forget(number)
            self._names.pop(number, None)
        if self._rules:
            self._rules.let_go()

    def _unwatch(self, number: int) -> None:
        del self._watched[number]
        self._gone[number] = time.monotonic()
        if links := self._links_in.pop(number, None):
            links.close()

    def _forget(self, number: int) -> None:
        self._gone.pop(number, None)
        for key in [key for key in self._points if key[0] == number]:
            del self._points[key]

    def events(self, records: Any) -> list[Event]:
        """Objects of these records: of a whole batch, or of what numpy made of it by an index, a slice or a mask."""
        found = []
        for *first, head, packet, tail in RECORD.iter_unpack(records.tobytes()):
            depth, place = DEPTH_AND_PLACE.unpack_from(head)
            hook = place == Place.HOOK
            rest = tail[:TUPLES.size] if hook else tail[:8 * depth]
            form = self._forms.get(head + rest) or self._forms.add(
                head + rest, FORM.unpack(head), *(((), rest) if hook else (self.stack_of(rest), b"")))
            found.append(made(tuple(first), form, packet))
        return found

    def _start(self) -> Program:
        """Compile, and attach the tracepoints by the first way that the kernel takes."""
        why = ""
        flags = ["-DHAVE_reason"] * (self._btf.tracepoint("kfree_skb")[1] >= 3)
        flags += ["-DNETNS_COOKIES"] * has_cookie(netns.here())
        if isinstance(self._selection, Stream):
            from tracer.kernel.expression import BYTES_STRUCT, filter_source
            from tracer.model.pcap import compile_expression

            expression = filter_source(compile_expression(self._selection.expression))
            header = self._btf.id(BYTES_STRUCT, btf.STRUCT)
        else:
            expression = ""
            header = self._btf.id("iphdr" if self._versions == (4,) else "ipv6hdr", btf.STRUCT)
        ways = {Mechanism.CAST_TRACEPOINT: ("-DTYPED", f"-D{'BYTES' if expression else 'HEADER'}_ID={header}"),
                Mechanism.TYPED_TRACEPOINT: ("-DTYPED",), Mechanism.RAW_TRACEPOINT: ()}
        hooking, functions = self._hooking, self._functions
        for way in TRACEPOINT_WAYS:
            if way not in self._mechanisms:
                continue
            if way is Mechanism.CAST_TRACEPOINT and not (self._cast and header):
                why = "this kernel has no bpf_rdonly_cast (Linux 6.2 brought it)"
                continue
            if hooking.mechanism is Mechanism.KPROBE and way is not Mechanism.RAW_TRACEPOINT:
                continue  # one program has all: kprobes may not follow pointers by plain loads
            program = compile_program(self._btf, (*flags, *self._flags, *hooking.flags, *functions.flags, *ways[way]),
                                      expression)
            if isinstance(self._selection, Selection):
                program.set_keys("addresses", {_key(address) for address in self._selection.addresses})
                program.set_keys("ends", selection_ends(self._selection))
            try:
                for probe in CATALOGUE:
                    if not self._concerns(probe):
                        continue
                    if way in probe.ways:
                        self._attach(program, probe, way)
                    elif probe.takes and functions.mechanism in probe.ways:
                        self._attach(program, probe, functions.mechanism)
                    elif probe.name in hooking.probes and hooking.mechanism in probe.ways:
                        self._attach(program, probe, hooking.mechanism)
                return program
            except OSError as error:
                why = str(error.strerror)
                self._links.close()
                self._attached.clear()
                self._when_armed.clear()
                program.close()
        raise Refused(why)

    def _concerns(self, probe: Probe) -> bool:
        """Are there packets that it could see?"""
        transport = self._selection.transport if isinstance(self._selection, Selection) else probe.transport
        return probe.version in (None, *self._versions) and probe.transport in (None, transport)

    def _attach(self, program: Program, probe: Probe, way: Mechanism) -> None:
        try:
            code = self._code(program, probe.function)
            if probe.variant is not None:
                code = _variant(code, probe.variant)
            if way in (Mechanism.FENTRY, Mechanism.KPROBE):
                loaded = load_function(self._btf, probe.symbol, probe, code, way)
                open_link = partial(open_function, loaded, probe, way)
            elif way is Mechanism.RAW_TRACEPOINT:
                loaded = syscall.load_program(probe.name, code, syscall.TYPE_RAW_TRACEPOINT)
                open_link = partial(syscall.open_raw_tracepoint, loaded, probe.name)
            else:
                loaded = syscall.load_program(probe.name, code, syscall.TYPE_TRACING, syscall.ATTACH_TRACE_RAW_TP,
                                              self._btf.tracepoint(probe.name)[0])
                open_link = partial(syscall.open_raw_tracepoint, loaded, None)
            self._links.callback(os.close, loaded)
            if probe.armed or (probe.takes and isinstance(self._selection, Stream)):  # of a busy host's packets
                self._when_armed.append(open_link)
            else:
                self._links.callback(os.close, open_link())
        except OSError as error:
            if probe.required:
                raise
            if not probe.takes:  # else what it shows is told all the same
                self._missing[probe.name] = f"{probe.shows}: {error.strerror or error}"
        else:
            self._attached.append(probe.name)

    def _load_hook(self, slot: int) -> int:
        code = self._code(self._program, "on_hook")
        program = syscall.load_program(f"hook_{slot}", _variant(code, slot), syscall.TYPE_NETFILTER,
                                       syscall.ATTACH_NETFILTER)
        self._links.callback(os.close, program)
        return program

    def _code(self, program: Program, function: str) -> bytes:
        """The function with what BCC cannot express written over its marks: the kernel function's id at each CAST_MARK, a
        call of BPF_PSEUDO_KFUNC_CALL kind, and the ring's file descriptor."""
        code = with_cast(program.bytecode(function), self._cast)
        return code.replace(RING_MARK, struct.pack("<i", program.map_fd("events")))

    def _attach_links(self, number: int) -> None:
        if self._whole:
            return
        path, points = self._watched[number]
        links = self._links_in[number] = ExitStack()
        self._hook_links.callback(links.close)

        def attach() -> None:
            if netns.here() != number:
                raise OSError(errno.ESTALE, "its process ended")
            if self._hooking.mechanism is not Mechanism.NETFILTER_LINK:
                links.callback(OwnChains(points, self._versions).close)
                return
            for point, behind in zip(points, [*points[1:], None], strict=True):
                last = min((t.priority for t in behind.tables or ()), default=CONNTRACK) - 1 \
                    if behind and behind.hook == point.hook else 2**31 - 2
                for version in self._versions:
                    link, priority = self._link_at(point, last, version)
                    links.callback(os.close, link)
                    self._points[point.netns, point.hook, point.slot] = replace(point, priority=priority)

        try:
            netns.in_namespace(path, attach)
        except OSError as error:
            self._unwatch(number)
            if os.path.exists(path) and error.errno != errno.ESTALE:  # else its container ended: no packet can be there
                self._missing[f"netfilter in {self._names[number]}"] = error.strerror or str(error)

    def _link_at(self, point: HookPoint, last: int, version: int) -> tuple[int, int]:
        """A link at this point, or a little behind it, up to the priority `last`, where other tracers have the place
        already; and its priority."""
        for priority in range(point.priority, min(point.priority + NEIGHBOURS, last + 1)):
            try:
                return syscall.link_netfilter(self._hooks[point.slot], NFPROTO[version], HOOKS.index(point.hook),
                                              priority), priority
            except OSError as error:
                if error.errno != errno.EBUSY:
                    raise
        raise OSError(errno.EBUSY, f"other tracers hold all places at the hook {point.hook}")

    def stack_of(self, frames: bytes) -> tuple[str, ...]:
        """Names of the functions. Packets take the same few ways: each is looked up once."""
        stack = self._stacks.get(frames)
        if stack is None:
            if len(self._stacks) >= STACKS:
                self._stacks.clear()
            stack = self._stacks[frames] = tuple(self._symbol(frame) for (frame,) in FRAME.iter_unpack(frames))
        return stack

    def _symbol(self, address: int) -> str:
        name = self._symbols.get(address)
        if name is None:
            name = self._symbols[address] = self._program.symbol(address)
        return name


def selection_flags(selection: Selection) -> tuple[str, ...]:
    """What to follow, as bpf/filter.h wants it compiled in."""
    version = selection.version
    flags = {"PROTOCOL": socket.htons(ETH_P[version]), "NEIGHBOR": socket.htons(ETH_P_ARP) if version == 4 else 0,
             "TRANSPORT": TRANSPORTS.get(selection.transport, ICMP[version]), "TRANSPORT_AT": TRANSPORT_AT[version],
             "ERRORS": ICMP[version], "OWN_PID": os.getpid(), "TOKEN": selection.token, "TOKEN_PORTS": PORTS,
             "RELAY_PID": selection.relay.pid if selection.relay else 0, "ANY_SENDER": int(selection.sender is None)}
    return tuple(f"-D{name}={value}" for name, value in flags.items())


def stream_flags(stream: Stream) -> tuple[str, ...]:
    """As bpf/stream.h wants it."""
    return ("-DLIVE", f"-DCHOSEN={int(stream.chosen)}", "-DADDRESSES=4096", "-DFOLLOWED=65536")


def with_cast(code: bytes, function: int) -> bytes:
    """The program with a kernel function, by its BTF id, called at each CAST_MARK."""
    call = struct.pack("<BBhi", CALL, 0, 0, CAST_MARK)
    kernel_call = struct.pack("<BBhi", CALL, PSEUDO_KFUNC_CALL << 4, 0, function)
    instructions = (code[i:i + 8] for i in range(0, len(code), 8))
    return b"".join(kernel_call if instruction == call else instruction for instruction in instructions)


def selection_ends(selection: Selection) -> set[bytes]:
    """Keys of the map `ends` of bpf/filter.h."""
    found = [(selection.destination, selection.port or selection.token)]
    found += [(selection.sender, 0)] if selection.sender else []
    found += [(selection.relay.address, selection.relay.port)] if selection.relay else []
    return {_key(address) + struct.pack("=I", port) for address, port in found}


def _key(address: Address) -> bytes:
    return address.packed.ljust(16, b"\0")


def _variant(code: bytes, value: int) -> bytes:
    """The program with `value` written over the mark that bpf/probes.c left in it."""
    marked = [i for i in range(0, len(code), 8) if code[i] == MOVE_IMMEDIATE and code[i + 4:i + 8] == VARIANT_MARK]
    assert len(marked) == 1, "bpf/probes.c marks one instruction"
    at = marked[0] + 4
    return code[:at] + struct.pack("<i", value) + code[at + 4:]
