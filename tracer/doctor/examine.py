"""Looks at the machine. Everything that it needs for that is the commands' own."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator, Mapping

from tracer.doctor.apart import apart
from tracer.doctor.rights import read_rights
from tracer.doctor.software import read_parts
from tracer.errors import UserError
from tracer.model.health import EngineState, Health, Rights, Trial
from tracer.model.topology import Container, Namespace
from tracer.topology.backends import read_tables
from tracer.topology.engine import SOCKETS, Engine, EngineError, find_engine
from tracer.topology.settings import read_settings

FOR_PROGRAMS = {"CAP_BPF", "CAP_PERFMON"}
HERE = "/proc/self/ns/net"


def examine(environ: Mapping[str, str], *, in_lab: bool) -> Health:
    """This host, or the built-in lab's: the kernel is the same, settings, tables and engines are not. UserError if the lab
    is not up."""
    path = _lab() if in_lab else HERE
    rights = read_rights()
    btf, trial, untried = _kernel(rights, path)
    engines, problem = ((), None) if in_lab else _engines(environ)
    where = "the lab's host" if in_lab else "this host"
    return Health(where, os.uname().release, platform.machine(), btf, read_parts(), rights, trial, untried, engines, problem,
                  not in_lab, read_settings(path), read_tables(path))


def _lab() -> str:
    from tracer.topology import lab

    if not lab.status().up:
        raise UserError("The lab is not up: start it with `sudo dnettrace lab up`.")
    return lab.path("host")


def _kernel(rights: Rights, path: str) -> tuple[str | None, Trial | None, str]:
    """(why there are no types, what could be tried, why nothing was)"""
    from tracer.kernel.btf import Btf

    try:
        Btf().close()
    except UserError as error:
        return str(error), None, "no types to compile with"
    if not rights.root or FOR_PROGRAMS.intersection(rights.lacking):
        return None, None, "only root with all rights may try it" if rights.root else "only root may try it"
    try:
        from tracer.kernel.trial import try_mechanisms
        namespace = _namespace(path)
        return None, apart(lambda: try_mechanisms(namespace)), ""
    except ImportError as error:
        return None, None, f"{error.name} is missing"
    except UserError as error:
        return None, None, str(error)
    except OSError as error:
        return None, None, error.strerror or str(error)


def _namespace(path: str) -> Namespace | None:
    """None where it cannot be read: the tracepoints are tried all the same."""
    try:
        from tracer.topology.snapshot import read_namespace
        return read_namespace(path, "host", {})
    except (ImportError, OSError):
        return None


def _engines(environ: Mapping[str, str]) -> tuple[tuple[EngineState, ...], str | None]:
    """The engine that the commands would ask, then others that have a socket here."""
    try:
        chosen, problem = find_engine(environ), None
    except UserError as error:
        chosen, problem = None, str(error)
    others = (f"unix://{path}" for path in SOCKETS if os.path.exists(path) and (not chosen or chosen.place != path))
    return tuple(_asked(chosen, [Engine(address) for address in others])), problem


def _asked(chosen: Engine | None, others: list[Engine]) -> Iterator[EngineState]:
    seen = set()
    for engine in ([chosen] if chosen else []) + others:
        real = os.path.realpath(engine.place)  # /var/run is /run
        if real in seen:
            continue
        seen.add(real)
        try:
            running = [container for container in engine.containers() if container.state == "running"]
            far = next((container.name for container in running[:1] if not _is_near(engine.inspect(container.id))), "")
            yield EngineState(engine.place, engine.version(), "", engine is chosen, len(running), far)
        except EngineError as error:
            yield EngineState(engine.place, None, str(error), engine is chosen)


def _is_near(container: Container | None) -> bool:
    """Is its process one of this machine's, as seen from this process' own PID namespace?"""
    return container is None or not container.pid or os.path.exists(f"/proc/{container.pid}/ns")
