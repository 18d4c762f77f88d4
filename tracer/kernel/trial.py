"""Every mechanism of the catalogue, loaded and attached once, and closed at once.

The loader is the one of the commands, with all mechanisms but one left out, so that what works here works there. What it
follows meanwhile is a packet that nobody sends.
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import ip_address

from tracer.errors import UserError
from tracer.kernel.catalogue import CATALOGUE, TRACEPOINT_WAYS, Mechanism, shown_by
from tracer.kernel.probes import Probes, Refused
from tracer.model.health import Trial, Tried
from tracer.model.probes import Machine
from tracer.model.selection import Selection, Stream
from tracer.model.topology import Namespace

NOWHERE = {4: ip_address("192.0.2.1"), 6: ip_address("2001:db8::1")}  # for documentation, RFC 5737 and RFC 3849


def try_mechanisms(namespace: Namespace | None) -> Trial:
    """`namespace`: where netfilter is tried; where None, nothing of it is. UserError where nothing can be tried at all."""
    tried = [_tracepoint(way) for way in TRACEPOINT_WAYS]
    traces = any(found.works for found in tried)
    for mechanism in Mechanism:
        if mechanism not in TRACEPOINT_WAYS:
            tried.append(_other(mechanism, traces, namespace))
    if not traces:
        return Trial(tuple(tried), problem=tried[len(TRACEPOINT_WAYS) - 1].why)
    machines = [_probe(_selection(version), namespace) for version in (4, 6)]
    missing = {lack.name: lack for machine in machines for lack in machine.missing if not lack.name.startswith("rules in ")}
    return Trial(
        tuple(tried), tuple(dict.fromkeys(name for machine in machines for name in machine.attached)),
        tuple(missing.values()), untraced=_untraced(machines, namespace), problem_of_streams=_stream(namespace))


def _tracepoint(way: Mechanism) -> Tried:
    try:
        _probe(_selection(4), None, (way,))
    except Refused as refused:
        return Tried(way.words, False, refused.why)
    except OSError as error:
        return Tried(way.words, False, error.strerror or str(error))
    return Tried(way.words, True)


def _other(mechanism: Mechanism, traces: bool, namespace: Namespace | None) -> Tried:
    """One that comes beside tracepoints, whichever way they go."""
    if not traces or namespace is None:
        return Tried(mechanism.words, None, "not tried: the network namespace cannot be read" if traces else
                     "not tried: no tracepoint works")
    shows = {probe.shows for probe in CATALOGUE if mechanism in probe.ways}
    try:
        machine = _probe(_selection(4), namespace, (*TRACEPOINT_WAYS, mechanism))
    except Refused as refused:
        return Tried(mechanism.words, False, refused.why)
    except OSError as error:
        return Tried(mechanism.words, False, error.strerror or str(error))
    why = next((lack.why for lack in machine.missing if shown_by(lack.name) in shows), "")
    return Tried(mechanism.words, not why and any(shown_by(name) in shows for name in machine.attached), why)


def _stream(namespace: Namespace | None) -> str | None:
    """Why real traffic could not be followed: its programs are others."""
    try:
        _probe(Stream(chosen=True), namespace)  # of no address: it follows nothing
    except (UserError, OSError) as error:
        return str(error)
    return None


def _probe(selection: Selection | Stream, namespace: Namespace | None,
           mechanisms: Iterable[Mechanism] = tuple(Mechanism)) -> Machine:
    with Probes(selection, mechanisms=tuple(mechanisms)) as probes:
        if namespace:
            probes.watch(namespace)
        probes.arm()
        return probes.machine


def _selection(version: int) -> Selection:
    return Selection(version, "icmp", 0, (), NOWHERE[version])  # no run of `ping` has the identifier 0


def _untraced(machines: Iterable[Machine], namespace: Namespace | None) -> str | None:
    for machine in machines:
        if namespace and machine.untraced and namespace.netns in machine.untraced:
            return machine.untraced[namespace.netns]
    return None
